#include "tuning/load.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "megafold/core/error.h"
#include "megafold/ops/tuning.h"
#include "tuning/table.h"

namespace megafold::tuning {
namespace {

namespace fs = std::filesystem;

// The folder that libmegafold was loaded from, or nothing.
fs::path LibraryFolder() {
  const auto function = &ops::SetTunedChoices;
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(function), &info) == 0 || info.dli_fname == nullptr) {
    return {};
  }
  std::error_code error;
  return fs::canonical(info.dli_fname, error).parent_path();
}

void AddFolder(const fs::path& folder, std::vector<fs::path>* files) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (entry->path().extension() == ".json") found.push_back(entry->path());
  }
  std::sort(found.begin(), found.end());
  files->insert(files->end(), found.begin(), found.end());
}

}  // namespace

std::vector<fs::path> TableFiles(std::vector<std::string>* problems) {
  std::vector<fs::path> files;
  const char* variable = std::getenv("MEGAFOLD_TUNING");
  const std::string named = variable == nullptr ? "" : variable;
  if (named == "off") return files;
  if (const fs::path library = LibraryFolder(); !library.empty()) {
    std::error_code error;
    const fs::path shared = library.parent_path() / "share" / "megafold" / "tuning";
    AddFolder(fs::is_directory(shared, error) ? shared : library / "tuning", &files);
  }
  if (named.empty()) return files;
  std::error_code error;
  if (fs::is_directory(named, error)) {
    AddFolder(named, &files);
  } else if (fs::exists(named, error)) {
    files.emplace_back(named);
  } else {
    problems->push_back(
        StrCat("MEGAFOLD_TUNING is '", named,
               "', which does not exist; expected a table, a folder of them, or off"));
  }
  return files;
}

TableReport ReadTables(Device device) {
  TableReport report;
  std::map<std::string, std::string> choices;
  try {
    const std::vector<fs::path> files = TableFiles(&report.problems);
    if (files.empty()) return report;
    const std::string name = ops::DescribeDevice(device).name;
    if (name.empty()) return report;
    for (const fs::path& file : files) {
      try {
        const Table table = ReadTable(file);
        if (table.device != name) continue;
        for (const TableEntry& entry : table.entries) {
          choices[entry.problem] = entry.implementation;
        }
        report.used.push_back(StrCat(file.string(), ": ", table.entries.size(), " entries, ",
                                     table.date, ", commit ", table.commit));
      } catch (const Error& error) {
        report.problems.push_back(StrCat(error.what(), "; this table is ignored"));
      }
    }
    for (const auto& [problem, implementation] : choices) {
      report.choices.push_back({problem, implementation});
    }
    for (const std::string& line : ops::RefusedChoices(device.type, report.choices)) {
      report.problems.push_back(StrCat("entry ", line, "; it is ignored"));
    }
  } catch (const std::exception& error) {
    report.problems.push_back(StrCat("tables are ignored: ", error.what()));
  }
  return report;
}

void LoadTablesOnce(Device device) {
  constexpr int kMaxDevices = 64;  // as many as can have choices
  static std::array<std::once_flag, 3 * kMaxDevices> loaded;
  if (device.index < 0 || device.index >= kMaxDevices) return;
  const int slot = static_cast<int>(device.type) * kMaxDevices + device.index;
  std::call_once(loaded[static_cast<std::size_t>(slot)], [device] {
    if (!ops::TunedChoices(device).empty()) return;
    const TableReport report = ReadTables(device);
    for (const std::string& line : report.problems) {
      std::fprintf(stderr, "megafold: tuning: %s\n", line.c_str());
    }
    ops::SetTunedChoices(device, report.choices);
  });
}

}  // namespace megafold::tuning
