// A C interface to the CUDA backend's EvoAttention for tests and benchmarks that drive it from
// Python through ctypes. Tensors come as flat arrays of 64-bit integers; errors go back as text.
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <stdexcept>
#include <string>

#include "backends/cuda/cuda_backend.h"
#include "megafold/ops/evo_attention.h"

namespace {

using megafold::TensorView;

// {data, dtype, rank, sizes[6], strides[6]}; rank 0 is an absent operand.
constexpr int kFields = 15;

TensorView View(const std::int64_t* fields, int device) {
  TensorView view;
  view.rank = static_cast<int>(fields[2]);
  if (view.rank == 0) return view;
  view.data = reinterpret_cast<void*>(fields[0]);
  view.dtype = static_cast<megafold::DType>(fields[1]);
  view.device = {megafold::DeviceType::kCuda, device};
  for (std::size_t dim = 0; dim < 6; ++dim) {
    view.sizes[dim] = fields[3 + dim];
    view.strides[dim] = fields[9 + dim];
  }
  return view;
}

// Runs `body` and copies what it throws into `message`; 0 is success.
template <typename Body>
int Guarded(char* message, std::size_t bytes, const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), bytes - 1);
    message[bytes - 1] = '\0';
    return 1;
  }
}

const megafold::EvoAttentionImplementation& Find(const char* name) {
  for (const auto& implementation : megafold::cuda::EvoAttentionImplementations()) {
    if (std::strcmp(implementation.name, name) == 0) return implementation;
  }
  throw std::runtime_error(std::string("no implementation named ") + name);
}

template <typename Kernel, typename Args>
void RunOrQuery(const Kernel& kernel, const Args& args, void* workspace,
                std::int64_t* workspace_bytes, int device, void* stream) {
  const megafold::Support support = kernel.supports(args);
  if (!support) throw std::runtime_error("unsupported: " + support.reason());
  const std::size_t needed = kernel.workspace(args);
  if (workspace_bytes[1] == 0) {  // a query
    workspace_bytes[0] = static_cast<std::int64_t>(needed);
    return;
  }
  kernel.run(args, {workspace, static_cast<std::size_t>(workspace_bytes[0])},
             {{megafold::DeviceType::kCuda, device}, stream});
}

// What forward and backward take alike: the first seven operands.
template <typename Args>
Args CommonArgs(const std::int64_t* operands, float scale, int allow_tf32, int device) {
  Args args;
  args.scale = scale;
  args.allow_tf32 = allow_tf32 != 0;
  int index = 0;
  for (TensorView* view :
       {&args.q, &args.k, &args.v, &args.mask, &args.bias, &args.out, &args.lse}) {
    *view = View(operands + index++ * kFields, device);
  }
  return args;
}

}  // namespace

// The implementations' names, fastest first, separated by newlines.
extern "C" int megafold_shim_names(char* names, std::size_t bytes) {
  return Guarded(names, bytes, [&] {
    std::string text;
    for (const auto& implementation : megafold::cuda::EvoAttentionImplementations()) {
      if (!text.empty()) text += '\n';
      text += implementation.name;
    }
    if (text.size() >= bytes) throw std::runtime_error("the buffer for the names is too small");
    std::memcpy(names, text.c_str(), text.size() + 1);
  });
}

// `operands` holds q, k, v, mask, bias, out, lse. workspace_bytes is {bytes, 0} to ask for the
// size, {bytes, 1} to run.
extern "C" int megafold_shim_forward(const char* implementation, const std::int64_t* operands,
                                     float scale, int allow_tf32, void* workspace,
                                     std::int64_t* workspace_bytes, int device, void* stream,
                                     char* message, std::size_t bytes) {
  return Guarded(message, bytes, [&] {
    auto args =
        CommonArgs<megafold::ops::EvoAttentionForwardArgs>(operands, scale, allow_tf32, device);
    RunOrQuery(Find(implementation).forward, args, workspace, workspace_bytes, device, stream);
  });
}

// `operands` holds q, k, v, mask, bias, out, lse, dout, dq, dk, dv, dbias.
extern "C" int megafold_shim_backward(const char* implementation, const std::int64_t* operands,
                                      float scale, int allow_tf32, void* workspace,
                                      std::int64_t* workspace_bytes, int device, void* stream,
                                      char* message, std::size_t bytes) {
  return Guarded(message, bytes, [&] {
    auto args =
        CommonArgs<megafold::ops::EvoAttentionBackwardArgs>(operands, scale, allow_tf32, device);
    args.dout = View(operands + 7 * kFields, device);
    args.dq = View(operands + 8 * kFields, device);
    args.dk = View(operands + 9 * kFields, device);
    args.dv = View(operands + 10 * kFields, device);
    args.dbias = View(operands + 11 * kFields, device);
    RunOrQuery(Find(implementation).backward, args, workspace, workspace_bytes, device, stream);
  });
}
