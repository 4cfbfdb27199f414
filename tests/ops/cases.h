// The shapes in tests/cases/<operator>.json, which tests and benchmarks share.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace megafold::test {

struct Case {
  std::string text;  // the entry as written
  std::map<std::string, std::int64_t> sizes;

  std::int64_t operator[](const std::string& name) const { return sizes.at(name); }
};

// The "test" shapes of an operator. Fails when the file or an entry cannot be read.
std::vector<Case> LoadCases(const std::string& op);

}  // namespace megafold::test
