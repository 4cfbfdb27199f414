#include "tests/ops/cases.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace megafold::test {

std::vector<Case> LoadCases(const std::string& op) {
  const std::string path = std::string(MEGAFOLD_SOURCE_DIR) + "/tests/cases/" + op + ".json";
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  const nlohmann::json content = nlohmann::json::parse(file);
  std::vector<Case> cases;
  for (const nlohmann::json& entry : content.at("test")) {
    cases.push_back({entry.dump(), entry.get<std::map<std::string, std::int64_t>>()});
  }
  if (cases.empty()) throw std::runtime_error(path + " has no test shapes");
  return cases;
}

}  // namespace megafold::test
