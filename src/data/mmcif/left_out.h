// Counts of what a file holds and the features do not.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "data/summary.h"

namespace megafold::data {

class LeftOutCounts {
 public:
  void Add(const std::string& what, const std::string& why, std::int64_t count = 1) {
    if (count > 0) counts_[{what, why}] += count;
  }
  // Sorted by what, then why.
  std::vector<LeftOut> List() const {
    std::vector<LeftOut> list;
    for (const auto& [key, count] : counts_) list.push_back({key.first, key.second, count});
    return list;
  }

 private:
  std::map<std::pair<std::string, std::string>, std::int64_t> counts_;
};

}  // namespace megafold::data
