#include "tuning/table.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "megafold/core/error.h"
#include "megafold/core/read_file.h"

namespace megafold::tuning {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "megafold tuning 1";
constexpr std::uintmax_t kMostBytes = std::uintmax_t{16} << 20;

// A part of the document with its place, for errors.
struct Node {
  const Json& json;
  const std::string& source;
  std::string place;

  [[noreturn]] void Refuse(const std::string& what) const {
    Fail(ErrorCode::kDataCorrupt, source, ": ", place, what);
  }
  Node Field(const char* key) const {
    if (!json.is_object()) Refuse("is not an object");
    const auto found = json.find(key);
    if (found == json.end()) Refuse(StrCat("has no '", key, "'"));
    return {*found, source, StrCat(place, "'", key, "' ")};
  }
  std::string Text() const {
    if (!json.is_string()) Refuse("is not a text");
    return json.get<std::string>();
  }
};

TableEntry ParseEntry(const Node& node) {
  TableEntry entry{.problem = node.Field("problem").Text(),
                   .implementation = node.Field("implementation").Text(),
                   .standard = node.Field("default").Text(),
                   .measured = node.Field("measured").Text(),
                   .times_ms = {},
                   .failed = {}};
  const Node times = node.Field("times_ms");
  if (!times.json.is_object()) times.Refuse("is not an object");
  for (const auto& [name, time] : times.json.items()) {
    if (!time.is_number() || !(time.get<double>() > 0)) {
      times.Refuse(StrCat("of '", name, "' is not a positive number"));
    }
    entry.times_ms[name] = time.get<double>();
  }
  const Node failed = node.Field("failed");
  if (!failed.json.is_object()) failed.Refuse("is not an object");
  for (const auto& [name, why] : failed.json.items()) {
    entry.failed[name] = Node{why, failed.source, failed.place}.Text();
  }
  return entry;
}

}  // namespace

std::string ToJson(const Table& table) {
  Json entries = Json::array();
  for (const TableEntry& entry : table.entries) {
    entries.push_back({{"problem", entry.problem},
                       {"implementation", entry.implementation},
                       {"default", entry.standard},
                       {"measured", entry.measured},
                       {"times_ms", entry.times_ms},
                       {"failed", entry.failed}});
  }
  const Json document = {{"format", kFormat},        {"device", table.device},
                         {"driver", table.driver},   {"megafold", table.megafold},
                         {"commit", table.commit},   {"date", table.date},
                         {"command", table.command}, {"entries", entries}};
  // What is no UTF-8 (a device's name, an error's text) must not keep a measurement from being
  // written.
  return document.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Table ParseTable(const std::string& text, const std::string& source) {
  Json document;
  try {
    document = Json::parse(text);
  } catch (const Json::exception& error) {
    Fail(ErrorCode::kDataCorrupt, source, ": is not JSON: ", error.what());
  }
  const Node root{document, source, ""};
  if (const std::string format = root.Field("format").Text(); format != kFormat) {
    root.Refuse(StrCat("has the format '", format, "', expected '", kFormat, "'"));
  }
  Table table{.device = root.Field("device").Text(),
              .driver = root.Field("driver").Text(),
              .megafold = root.Field("megafold").Text(),
              .commit = root.Field("commit").Text(),
              .date = root.Field("date").Text(),
              .command = root.Field("command").Text(),
              .entries = {}};
  const Node entries = root.Field("entries");
  if (!entries.json.is_array()) entries.Refuse("is not an array");
  std::set<std::string> problems;
  for (std::size_t i = 0; i < entries.json.size(); ++i) {
    const Node node{entries.json[i], source, StrCat("entry ", i, " ")};
    table.entries.push_back(ParseEntry(node));
    if (!problems.insert(table.entries.back().problem).second) {
      node.Refuse(StrCat("repeats the problem '", table.entries.back().problem, "'"));
    }
  }
  return table;
}

Table ReadTable(const std::filesystem::path& file) {
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(file, error);
  if (error) Fail(ErrorCode::kNotFound, file.string(), ": cannot read this file");
  if (bytes > kMostBytes) {
    Fail(ErrorCode::kDataCorrupt, file.string(), ": has ", bytes, " bytes, expected at most ",
         kMostBytes);
  }
  const std::optional<std::string> text = ReadFile(file.string(), kMostBytes);
  if (!text) Fail(ErrorCode::kNotFound, file.string(), ": cannot read this file");
  return ParseTable(*text, file.string());
}

}  // namespace megafold::tuning
