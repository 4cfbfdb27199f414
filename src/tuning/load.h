// Where tables are found, and handing their choices to the operators.
//
// First the shipped tables, then those that the environment variable MEGAFOLD_TUNING names, which rule where both speak
// of one class. Shipped tables are all .json files of share/megafold/tuning beside the library's folder (an installation,
// a build tree), or of the folder tuning beside the library (the Python package). MEGAFOLD_TUNING is a file, a folder of
// .json files, or "off": no table at all.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "megafold/core/device.h"
#include "megafold/ops/tuning.h"

namespace megafold::tuning {

struct TableReport {
  std::vector<ops::TunedChoice> choices;  // what the tables say of this device
  std::vector<std::string> used;          // one line for each of its tables: the file and its entries
  std::vector<std::string> problems;      // one line for each table or entry that is ignored, and why
};

// The tables' files, those that rule last. A name in MEGAFOLD_TUNING that does not exist becomes a line in `problems`.
std::vector<std::filesystem::path> TableFiles(std::vector<std::string>* problems);

// Reads the tables that were made on a device like this one. Never throws: a missing, damaged or unknown table costs
// speed, not the run.
TableReport ReadTables(Device device);

// Sets the choices that ReadTables finds, once in a process for each device, unless the program set some itself before;
// every problem is printed to stderr. Cheap after the first call.
void LoadTablesOnce(Device device);

}  // namespace megafold::tuning
