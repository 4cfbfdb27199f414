#include "train/csv_log.h"

#include <cstdlib>

#include "megafold/core/error.h"
#include "train/files.h"

namespace megafold::train {
namespace {

std::string Joined(const std::string& first, const std::vector<std::string>& rest) {
  std::string line = first;
  for (const std::string& item : rest) line += "," + item;
  return line;
}

}  // namespace

CsvLog::CsvLog(std::filesystem::path file, std::int64_t last_step) : path_(std::move(file)) {
  std::string kept;
  std::ifstream old(path_);
  if (last_step > 0 && std::getline(old, header_)) {
    kept = header_ + "\n";
    std::string line;
    // A row that was cut short by a crash has no line end; its step is made anew in any case.
    while (std::getline(old, line) && std::strtoll(line.c_str(), nullptr, 10) <= last_step) {
      kept += line + "\n";
    }
  }
  WriteFileAtomically(path_, kept);
  stream_.open(path_, std::ios::app);
}

void CsvLog::Row(const std::vector<std::string>& columns, std::int64_t step,
                 const std::vector<std::string>& values) {
  const std::string header = Joined("step", columns);
  if (header_.empty()) {
    stream_ << header << "\n";
    header_ = header;
  }
  Require(header == header_, path_.string(), ": this run's columns are '", header,
          "', the log so far has '", header_, "'; begin another run folder");
  stream_ << Joined(std::to_string(step), values) << "\n";
  stream_.flush();
  if (!stream_) Fail(ErrorCode::kInternal, path_.string(), ": cannot write");
}

}  // namespace megafold::train
