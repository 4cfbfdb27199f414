// How an EvoAttention problem is cut for the kernels for small grids.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/spread/evo_attention_params.h"
#include "backends/cuda/strips/strips.h"
#include "megafold/ops/evo_attention.h"

namespace megafold::cuda {

// Times that the device's multiprocessors are filled by this many blocks.
std::int64_t Fills(std::int64_t blocks, int device);

// ---- In strips. ----

// Tiles of a block of the forward, and how many blocks of so many tiles there are.
int ForwardTiles(const StripProblem& p, int device);
std::int64_t ForwardBlocks(const StripProblem& p, int tiles);

// The backward in strips, where there is one.
struct StripBackwardPlan {
  StripProblem problem;
  int tiles = 0;  // none: the problem is for the other kernel
  std::size_t workspace = 0;
};

StripBackwardPlan PlanStripBackward(const ops::EvoAttentionBackwardArgs& args);

// ---- The other kernels. ----

// The forward of vectors that are too long for strips.
SpreadParams MakeForwardParams(const AttentionProblem& problem, int dim, int device);

// dBias gets a part for each row that shares it, as long as the parts take little memory; else a
// block walks over the rows. That depends on the shape alone, so results do not change with the
// device.
SpreadParams MakeBackwardParams(const ops::EvoAttentionBackwardArgs& args);

// What the other backward needs in workspace, in bytes: delta where O is too coarse for it, then
// the parts of dBias.
struct SpreadWorkspace {
  std::size_t delta = 0, parts = 0;
};

SpreadWorkspace SizeWorkspace(const SpreadParams& p);

// Sets the tiles of a block and the numbers of blocks.
void SetBlocks(SpreadParams& p, int dim, bool keeps_keys, bool keeps_queries, int device);

// As few rounds as the shared memory of the device allows.
void CutSides(SpreadParams& p, int (*bytes)(const SpreadParams&), int device);

}  // namespace megafold::cuda
