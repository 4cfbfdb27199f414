// Which key the user most likely meant.
#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "config/config.h"

namespace megafold::config {
namespace {

std::size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string LastPart(const std::string& path) { return path.substr(path.rfind('.') + 1); }

}  // namespace

std::string NearestKey(const std::vector<Field>& fields, const std::string& key) {
  std::set<std::string> keys;
  for (const Field& field : fields) {
    for (std::size_t dot = field.path.find('.'); dot != std::string::npos;
         dot = field.path.find('.', dot + 1)) {
      keys.insert(field.path.substr(0, dot));
    }
    keys.insert(field.path);
  }
  std::string nearest;
  std::size_t best = std::numeric_limits<std::size_t>::max();
  for (const std::string& candidate : keys) {
    // A right name in the wrong section is as likely a slip as a typing error of a few letters.
    const std::size_t distance = std::min(EditDistance(key, candidate),
                                          EditDistance(LastPart(key), LastPart(candidate)) + 2);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace megafold::config
