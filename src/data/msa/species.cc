#include <algorithm>
#include <cctype>
#include <string>

#include "data/msa/alignment.h"

namespace megafold::data {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsUpperOrDigit(char c) { return (c >= 'A' && c <= 'Z') || IsDigit(c); }

std::string_view DigitsAfter(std::string_view header, std::string_view key) {
  const auto at = header.find(key);
  if (at == std::string_view::npos) return {};
  header.remove_prefix(at + key.size());
  const auto end = std::find_if_not(header.begin(), header.end(), IsDigit);
  return header.substr(0, static_cast<std::size_t>(end - header.begin()));
}

// The part after '_' in an entry name: 1 to 10 letters or digits, then the species in 2 to 5.
std::string_view Mnemonic(std::string_view name) {
  const auto underscore = name.find('_');
  if (underscore == std::string_view::npos || underscore == 0 || underscore > 10) return {};
  const auto species = name.substr(underscore + 1);
  const bool plain =
      std::all_of(name.begin(), name.begin() + static_cast<long>(underscore), IsUpperOrDigit) &&
      std::all_of(species.begin(), species.end(), IsUpperOrDigit);
  return plain && species.size() >= 2 && species.size() <= 5 ? species : std::string_view();
}

}  // namespace

std::string SpeciesOf(std::string_view header) {
  for (const char* key : {"OX=", "TaxID="}) {
    const auto digits = DigitsAfter(header, key);
    if (!digits.empty()) return "taxon " + std::string(digits);
  }
  // The first word may be sp|P01112|RASH_HUMAN/1-166 or RASH_HUMAN; UniRef has RepID=RASH_HUMAN.
  auto word = header.substr(0, header.find_first_of(" \t"));
  const auto representative = header.find("RepID=");
  if (representative != std::string_view::npos) {
    word = header.substr(representative + 6);
    word = word.substr(0, word.find_first_of(" \t"));
  }
  word = word.substr(0, word.find('/'));
  const auto bar = word.rfind('|');
  if (bar != std::string_view::npos) word.remove_prefix(bar + 1);
  return std::string(Mnemonic(word));
}

}  // namespace megafold::data
