// From at::Tensor to what libmegafold takes: views, devices, streams and scratch memory.
//
// No vendor header: devices and streams pass through PyTorch's device-generic interfaces, so that
// one build works with a CPU, CUDA or ROCm PyTorch.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "megafold/core/device.h"
#include "megafold/core/tensor_view.h"
#include "megafold/core/workspace.h"

namespace megafold::torch_ops {

// Throws kInvalidArgument for a device that no operator knows; `name` says whose it is.
Device ToDevice(const char* name, c10::Device device);

// An undefined or absent tensor gives an undefined view. Throws kInvalidArgument for a dtype,
// device or layout that no operator knows; `name` says which operand it was.
TensorView ToView(const char* name, const at::Tensor& tensor);
TensorView ToView(const char* name, const std::optional<at::Tensor>& tensor);

// "[2, 3]", for messages; symbolic sizes by their names.
std::string ShapeText(const at::Tensor& tensor);

// Views of an operator's inputs. Keeps the copies that a view had to be made of, so it must outlive
// the call.
class Inputs {
 public:
  // The tensor as it is when its last dimension is contiguous, else a copy.
  TensorView Packed(const char* name, const std::optional<at::Tensor>& tensor);
  // [..., K] as [M, K] with contiguous rows; a copy only when the strides do not allow a view.
  TensorView Rows(const char* name, const at::Tensor& tensor);

 private:
  std::vector<at::Tensor> kept_;
};

// A contiguous [..., K] output or gradient as [M, K]; undefined stays undefined.
TensorView OutputRows(const char* name, const at::Tensor& tensor);

// A contiguous tensor of statistics as [M].
TensorView Flat(const char* name, const at::Tensor& tensor);

// Uninitialised, contiguous, on like's device. Symbolic sizes are kept. A large one on the CPU asks
// for huge pages.
at::Tensor EmptyLike(const at::Tensor& like, c10::SymIntArrayRef sizes, at::ScalarType type);

// A gradient for `of`, uninitialised and contiguous: undefined unless it is needed. Symbolic sizes
// are kept. Throws kInvalidArgument when the gradient of an absent operand is asked for.
at::Tensor EmptyGradient(bool needed, const std::optional<at::Tensor>& of);

// The type that statistics are kept in: float32, or float64 for float64.
at::ScalarType StatisticsType(const at::Tensor& storage);

// An optional operand as a tensor that may be undefined, which is how autograd takes it.
at::Tensor Unwrap(const std::optional<at::Tensor>& tensor);
std::optional<at::Tensor> Wrap(const at::Tensor& tensor);

// Makes the device current, and the CPU backend use as many threads as PyTorch, for one call. The first on a device loads
// its tuned tables.
class CallScope {
 public:
  explicit CallScope(const at::Tensor& lead);
  Stream stream() const { return stream_; }
  // Scratch from PyTorch's caching allocator; valid while this object lives.
  Workspace Allocate(std::size_t bytes);

 private:
  c10::DeviceGuard guard_;
  c10::Device device_;
  Stream stream_;
  at::Tensor scratch_;
};

// Runs an operator of libmegafold on the current stream of lead's device.
template <typename Args>
void Run(std::size_t (*workspace)(const Args&), void (*run)(const Args&, Workspace, Stream),
         const Args& args, const at::Tensor& lead) {
  CallScope scope(lead);
  const Workspace scratch = scope.Allocate(workspace(args));
  run(args, scratch, scope.stream());
}

}  // namespace megafold::torch_ops
