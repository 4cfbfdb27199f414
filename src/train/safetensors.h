// Reading and writing .safetensors files: tensors by name, no code inside.
//
// Layout: 8 bytes little-endian header length n, n bytes of JSON
//   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//    "__metadata__": {"key": "text"}}
// then the data; offsets count from its start, and tensors cover it without a hole.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <map>
#include <string>

namespace megafold::train {

using NamedTensors = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

struct SafetensorsFile {
  NamedTensors tensors;  // on the CPU, contiguous
  Metadata metadata;
};

// Writes the tensors (any device and strides; data is copied to the CPU one tensor at a time) and
// returns once they are on the disk. The caller makes the file appear under its name at once
// (files.h). Throws kInvalidArgument for a dtype the format lacks.
void WriteSafetensors(const std::filesystem::path& file, const NamedTensors& tensors,
                      const Metadata& metadata = {});

// Every size is held against the file's before memory is taken. Throws kNotFound, or kDataCorrupt
// with the file, the tensor and what is wrong.
SafetensorsFile ReadSafetensors(const std::filesystem::path& file);

}  // namespace megafold::train
