#include "backends/cpu/partial_sum.h"

#include <algorithm>

#include "backends/cpu/gemm.h"
#include "backends/cpu/parallel.h"

namespace megafold::cpu {

PartialSum::PartialSum(Arena& arena, int slabs, std::int64_t rows, std::int64_t columns,
                       bool wanted)
    : slabs_(slabs), wanted_(wanted) {
  if (!wanted_) return;
  const std::int64_t stride = PadColumns(columns);
  slab_size_ = rows * stride;
  first_slab_ = {arena.Floats(slabs * slab_size_), rows, columns, stride};
}

Block PartialSum::Of(std::int64_t slab) const {
  Block block = first_slab_;
  if (block.data != nullptr) block.data += slab * slab_size_;
  return block;
}

void PartialSum::Clear(std::int64_t slab) const {
  if (wanted_) std::fill_n(Of(slab).data, slab_size_, 0.0F);
}

void PartialSum::AddProduct(std::int64_t slab, Block left, Block right, std::int64_t row,
                            std::int64_t column) const {
  if (!wanted_) return;
  const Block sum = Of(slab);
  float* part = sum.data + row * sum.stride + column;
  Gemm({left.columns, right.columns, left.rows}, Transposed(left.data, left.stride),
       Rows(right.data, right.stride), part, sum.stride, part, sum.stride);
}

void PartialSum::Store(const TensorView& target, std::int64_t first) const {
  if (!target.defined()) return;
  const bool vector = target.rank == 1;
  const std::int64_t rows = vector ? 1 : target.size(0);
  const Slabs parts(rows, 16, NumThreads());
  ParallelFor(parts.count, [&](std::int64_t part) {
    const std::int64_t begin = parts.Begin(part);
    Block sum = Of(0);
    sum.data += (first + begin) * sum.stride;
    sum.rows = parts.End(part) - begin;
    for (int slab = 1; slab < slabs_; ++slab) {
      AddInto(sum.data, sum.data + slab * slab_size_, sum.rows * sum.stride);
    }
    StoreRows(sum, vector ? StoredRows{target.data, target.dtype, 0} : RowsOf(target, begin));
  });
}

}  // namespace megafold::cpu
