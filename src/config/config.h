// Reading a configuration struct from YAML and the command line, writing it back, listing its keys.
//
// Every key is checked. A wrong one is an Error (kInvalidArgument) of one line, for example
//   configs/my.yaml:12: unknown key 'model.pairformer.block'; the nearest is
//   'model.pairformer.blocks'
//   --set train.steps=many: 'train.steps' is 'many', expected an integer of at least 1
// A file may begin with `include: other.yaml` (relative to itself): that file is read first, then
// this one over it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "config/fields.h"

namespace megafold::config {

// Reads the YAML file at `file` over the current values. Errors: kNotFound for a missing file, else
// kInvalidArgument.
void ReadFile(const std::vector<Field>& fields, const std::filesystem::path& file);

// Same for YAML text; `name` stands for the file in errors and `include` is taken relative to its
// folder.
void ReadText(const std::vector<Field>& fields, const std::string& text, const std::string& name);

// Applies one "a.b.c=value" of the command line; the value is YAML too ("[1, 2]" is a list).
void Override(const std::vector<Field>& fields, const std::string& assignment);

// All values as YAML that ReadText accepts and that reads back to equal values.
std::string ToYaml(const std::vector<Field>& fields);

// One line per key: path, current value, doc, expected; `train --help-config` prints it for a
// default struct.
std::string HelpText(const std::vector<Field>& fields);

// The key (leaf or section) nearest to `key` by edit distance.
std::string NearestKey(const std::vector<Field>& fields, const std::string& key);

template <typename Config>
void ReadFileInto(Config& config, const std::filesystem::path& file) {
  ReadFile(FieldsOf(config), file);
}
template <typename Config>
void ReadTextInto(Config& config, const std::string& text, const std::string& name = "<text>") {
  ReadText(FieldsOf(config), text, name);
}
template <typename Config>
void OverrideIn(Config& config, const std::string& assignment) {
  Override(FieldsOf(config), assignment);
}
// By value, because FieldsOf refers to a mutable struct.
template <typename Config>
std::string YamlOf(Config config) {
  return ToYaml(FieldsOf(config));
}

}  // namespace megafold::config
