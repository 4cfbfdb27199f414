// A gradient that sums over rows: each slab of rows has a sum of its own, and these are added in
// slab order at the end.
#pragma once

#include <cstdint>

#include "backends/cpu/rows.h"
#include "backends/cpu/scratch.h"
#include "megafold/core/tensor_view.h"

namespace megafold::cpu {

class PartialSum {
 public:
  // Takes room for `slabs` sums of `rows` by `columns`, none where the gradient `target` is
  // undefined.
  PartialSum(Arena& arena, int slabs, std::int64_t rows, std::int64_t columns, bool wanted);

  bool wanted() const { return wanted_; }
  // The sum of one slab; data is null when the gradient is not wanted.
  Block Of(std::int64_t slab) const;
  // Sets a slab's sum to zero.
  void Clear(std::int64_t slab) const;
  // Adds left^T right, a sum over the rows of both blocks, to the part of the sum that begins at
  // (row, column); column is a multiple of kColumnPadding. Does nothing when the gradient is not
  // wanted.
  void AddProduct(std::int64_t slab, Block left, Block right, std::int64_t row = 0,
                  std::int64_t column = 0) const;

  // Adds rows [first, first + target's rows) of all slabs' sums and stores them in `target`;
  // nothing where that is undefined.
  void Store(const TensorView& target, std::int64_t first = 0) const;

 private:
  Block first_slab_{};
  std::int64_t slab_size_ = 0;
  int slabs_;
  bool wanted_;
};

}  // namespace megafold::cpu
