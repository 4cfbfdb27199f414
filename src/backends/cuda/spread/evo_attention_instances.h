// The kernels for small grids that were built: one entry a storage type and padded head dimension,
// the lists sorted by head dimension (FindInstance of attention/instances.h).
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/spread/evo_attention_params.h"
#include "backends/cuda/strips/evo_attention_params.h"

namespace megafold::cuda {

struct StripInstance {
  DType type;
  int dim;
  void (*forward)(const StripProblem&, int tiles, int shared_limit, cudaStream_t);
  void (*backward)(const StripProblem&, int tiles, float* dq_parts, int shared_limit, cudaStream_t);
};
inline constexpr StripInstance kStrips[] = {
#define MEGAFOLD_STRIP_ATTENTION(type, dim)                     \
  {DType::type, dim, StripAttention<DType::type, dim>::Forward, \
   StripAttention<DType::type, dim>::Backward},
#include "cuda_strip_attention_instances.inc"
#undef MEGAFOLD_STRIP_ATTENTION
};

struct SpreadInstance {
  DType type;
  int dim;
  void (*forward)(const SpreadParams&, cudaStream_t);
  int (*forward_bytes)(const SpreadParams&);
  void (*backward)(const SpreadParams&, cudaStream_t);
  int (*backward_bytes)(const SpreadParams&);
  void (*delta)(const SpreadParams&, float*, cudaStream_t);
};
inline constexpr SpreadInstance kSpreads[] = {
#define MEGAFOLD_SPREAD_ATTENTION(type, dim)         \
  {DType::type,                                      \
   dim,                                              \
   SpreadAttention<DType::type, dim>::Forward,       \
   SpreadAttention<DType::type, dim>::ForwardBytes,  \
   SpreadAttention<DType::type, dim>::Backward,      \
   SpreadAttention<DType::type, dim>::BackwardBytes, \
   SpreadAttention<DType::type, dim>::Delta},
#include "cuda_spread_attention_instances.inc"
#undef MEGAFOLD_SPREAD_ATTENTION
};

}  // namespace megafold::cuda
