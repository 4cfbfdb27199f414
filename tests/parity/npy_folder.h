// A folder of .npy files: how a program here hands tensors to a Python script.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "megafold/core/error.h"

namespace megafold::model::testing {

class NpyFolder {
 public:
  explicit NpyFolder(std::filesystem::path path) : path_(std::move(path)) {
    std::filesystem::create_directories(path_);
  }

  // NumPy's format 1.0, float32, C order.
  void Write(const std::string& name, const at::Tensor& tensor) const {
    const at::Tensor values = tensor.detach().to(at::kFloat).contiguous();
    std::string shape;
    for (const std::int64_t size : values.sizes()) shape += std::to_string(size) + ",";
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }";
    while ((10 + header.size() + 1) % 64 != 0) header += ' ';
    header += '\n';
    std::ofstream file(path_ / (name + ".npy"), std::ios::binary);
    const char length[2] = {static_cast<char>(header.size() & 0xff),
                            static_cast<char>(header.size() >> 8)};
    file.write("\x93NUMPY\x01\x00", 8).write(length, 2);
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    file.write(static_cast<const char*>(values.data_ptr()),
               static_cast<std::streamsize>(values.nbytes()));
    if (!file) Fail(ErrorCode::kInternal, "cannot write ", path_ / name);
  }

  // Each parameter as parameter.NAME.npy.
  void WriteParameters(const torch::nn::Module& module) const {
    for (const auto& item : module.named_parameters()) {
      Write("parameter." + item.key(), item.value());
    }
  }

 private:
  std::filesystem::path path_;
};

}  // namespace megafold::model::testing
