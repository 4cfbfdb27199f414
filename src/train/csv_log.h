// The run's log as CSV: one row per step, on the disk's way before the next step begins.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace megafold::train {

class CsvLog {
 public:
  // Continues `file` after `last_step`: rows of later steps, which a resumed run makes anew, are
  // removed. 0 begins a new file.
  CsvLog(std::filesystem::path file, std::int64_t last_step);

  // The first column is "step". The columns of a log stay the same from its first row on.
  void Row(const std::vector<std::string>& columns, std::int64_t step,
           const std::vector<std::string>& values);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::string header_;  // of the rows on the disk; empty before the first
  std::ofstream stream_;
};

}  // namespace megafold::train
