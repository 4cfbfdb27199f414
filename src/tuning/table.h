// A table of tuned choices as a file: what was measured, where and by what, and the choice that followed.
//
//   {"format": "megafold tuning 1", "device": "NVIDIA H200, sm_90", "driver": "CUDA 13.0", "megafold": "0.1.0",
//    "commit": "874d601", "date": "2026-11-25T01:00:00Z", "command": "megafold tune ...",
//    "entries": [{"problem": "evo_attention forward bfloat16 batch=1 ...", "implementation": "cuda sm90",
//                 "default": "cuda sm90", "measured": "triangle attention: q [1, 384, 384, 4, 32], ...",
//                 "times_ms": {"cuda sm80": 0.28, "cuda sm90": 0.14}, "failed": {}}]}
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace megafold::tuning {

struct TableEntry {
  std::string problem;         // the class (megafold/ops/tuning.h)
  std::string implementation;  // the choice
  std::string standard;        // what is taken without a choice; "default" in the file
  std::string measured;        // the shapes behind the times, for people
  std::map<std::string, double> times_ms;     // of every candidate that ran
  std::map<std::string, std::string> failed;  // of every other, why
};

struct Table {
  std::string device;  // DescribeDevice().name: the table says nothing about another
  std::string driver, megafold, commit, date, command;
  std::vector<TableEntry> entries;
};

// The file's text, with a newline at the end.
std::string ToJson(const Table& table);

// Reads what ToJson wrote. Throws kDataCorrupt with `source` and what is wrong: no JSON, another format, a missing or
// mistyped field, two entries of one problem, a time that is not positive.
Table ParseTable(const std::string& text, const std::string& source);

// Throws kNotFound where the file cannot be read, kDataCorrupt as above and for more than 16 MiB.
Table ReadTable(const std::filesystem::path& file);

}  // namespace megafold::tuning
