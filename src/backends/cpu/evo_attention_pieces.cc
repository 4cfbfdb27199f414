#include "backends/cpu/evo_attention_pieces.h"

#include <limits>

#include "backends/cpu/gemm.h"
#include "backends/cpu/half.h"

namespace megafold::cpu {
namespace {

using Int = std::int64_t;

template <typename Convert, typename T>
void Gather(const T* from, Int stride, Int count, float* to, Convert convert) {
  for (Int n = 0; n < count; ++n) to[n] = convert(from[n * stride]);
}

// `count` elements of `view` from `offset` on, `stride` apart. bool becomes 0 or -inf.
void GatherTerms(const TensorView& view, Int offset, Int stride, Int count, float* to) {
  switch (view.dtype) {
    case DType::kBool:
      Gather(view.ptr<std::uint8_t>() + offset, stride, count, to, [](std::uint8_t attend) {
        return attend != 0 ? 0.0F : -std::numeric_limits<float>::infinity();
      });
      break;
    case DType::kBFloat16:
      Gather(view.ptr<std::uint16_t>() + offset, stride, count, to, FromBFloat16);
      break;
    case DType::kFloat16:
      Gather(view.ptr<std::uint16_t>() + offset, stride, count, to, FromFloat16);
      break;
    default:
      Gather(view.ptr<float>() + offset, stride, count, to, [](float value) { return value; });
      break;
  }
}

// Four tiles of the matrix product (gemm.h), between which a few rows are asked for.
constexpr Int kStepRows = 24;

Int SharedIndex(const TensorView& view, int dim, Int index) {
  return view.size(dim) == 1 ? 0 : index;
}

}  // namespace

HeadRow::HeadRow(const AttentionDims& dims, Int group, Int row_in_group) {
  const bool all_heads = dims.groups == 1;
  const Int index = all_heads ? row_in_group / dims.heads : row_in_group;
  batch = dims.groups > dims.heads ? group / dims.heads : index / dims.rows;
  row = index % dims.rows;
  head = (all_heads ? row_in_group : group) % dims.heads;
}

StoredRows HeadRow::Of(const TensorView& view, Int first) const {
  const Int offset = batch * view.stride(0) + row * view.stride(1) + first * view.stride(2) +
                     head * view.stride(3);
  auto* bytes = view.ptr<unsigned char>();
  return {bytes + offset * static_cast<Int>(SizeOf(view.dtype)), view.dtype, view.stride(2)};
}

float* HeadRow::Statistic(const TensorView& lse) const {
  return lse.ptr<float>() + ((batch * lse.size(1) + row) * lse.size(2) + head) * lse.size(3);
}

BiasPlane::BiasPlane(const TensorView& bias, Int queries, Arena& arena) : bias_(bias) {
  if (bias.defined() && !InPlace()) copy_ = arena.Floats(queries * bias.size(4));
}

bool BiasPlane::InPlace() const {
  return bias_.dtype == DType::kFloat32 && (bias_.stride(4) == 1 || bias_.size(4) == 1);
}

void BiasPlane::Load(Int group, Int first, Int count) {
  if (!bias_.defined()) return;
  const Int heads = bias_.size(2);
  const Int keys = bias_.size(4);
  const Int offset = group / heads * bias_.stride(0) + group % heads * bias_.stride(2);
  if (InPlace()) {
    data_ = bias_.ptr<float>() + offset;
    stride_ = bias_.stride(3);
    return;
  }
  for (Int i = 0; i < count; ++i) {
    GatherTerms(bias_, offset + (first + i) * bias_.stride(3), bias_.stride(4), keys,
                copy_ + i * keys);
  }
  data_ = copy_ - first * keys;
  stride_ = keys;
}

ScoreTerms BiasPlane::Terms(Int query, Int key, const float* mask) const {
  const float* bias = data_ == nullptr ? nullptr : data_ + query * stride_ + key;
  return {bias, stride_, mask};
}

ScoreTerms ScoreTile(Block q, Block keys, Int first, ScoreTerms terms, Block scores, Ahead& ahead,
                     GemmSoon soon) {
  const bool whole = scores.columns % kColumnPadding == 0;
  const float* init = whole ? terms.bias : nullptr;
  // The rows of the next step, or of a tile to come.
  if (init != nullptr) soon = {init + kStepRows * terms.bias_stride, terms.bias_stride};
  ForEachTile(0, q.rows, kStepRows, [&](Int row, Int rows) {
    ahead.Step();
    const GemmSoon lines{soon.data == nullptr ? nullptr : soon.data + row * soon.stride,
                         soon.stride};
    Gemm({rows, scores.columns, q.columns}, RowMajor(q.data + row * q.stride, q.stride),
         Rows(keys.data + first, keys.stride),
         init == nullptr ? nullptr : init + row * terms.bias_stride, terms.bias_stride,
         scores.data + row * scores.stride, scores.stride, lines);
  });
  if (whole) terms.bias = nullptr;
  return terms;
}

Int StepsAhead(const AttentionDims& dims, Int queries) {
  const Int key_tiles = (dims.keys + kKeyTile - 1) / kKeyTile;
  return std::max<Int>(1, key_tiles * ((queries + kStepRows - 1) / kStepRows));
}

MaskRow::MaskRow(const TensorView& mask, Int keys, Arena& arena) : mask_(mask) {
  if (mask.defined()) terms_ = arena.Floats(keys);
}

void MaskRow::Load(const HeadRow& row) const {
  if (!mask_.defined()) return;
  const Int offset = SharedIndex(mask_, 0, row.batch) * mask_.stride(0) +
                     SharedIndex(mask_, 1, row.row) * mask_.stride(1);
  GatherTerms(mask_, offset, mask_.stride(4), mask_.size(4), terms_);
}

}  // namespace megafold::cpu
