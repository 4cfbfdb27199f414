// The backward of EvoAttention in tiles of 64 x 64 scores (compute capability 8.0 and newer), one
// of those of `cuda sm80 spread`.
#pragma once

#include <cstddef>

#include "backends/cuda/tiles/evo_attention_params.h"
#include "megafold/core/device.h"
#include "megafold/core/workspace.h"
#include "megafold/ops/evo_attention.h"

namespace megafold::cuda {

struct TileInstance;

// How a problem is cut, by its shape alone, so that results do not change with the device.
struct TileBackwardPlan {
  const TileInstance* instance = nullptr;  // none: the problem is for other kernels
  TileParams params;
  std::size_t dbias_parts = 0, dq_parts = 0,
              key_parts = 0;  // bytes; dK's and dV's alike
  std::size_t Workspace() const { return dbias_parts + dq_parts + 2 * key_parts; }
};

TileBackwardPlan PlanTileBackward(const ops::EvoAttentionBackwardArgs& args);

void RunTileBackward(const ops::EvoAttentionBackwardArgs& args, const TileBackwardPlan& plan,
                     Workspace workspace, Stream stream);

}  // namespace megafold::cuda
