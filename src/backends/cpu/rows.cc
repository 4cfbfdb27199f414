#include "backends/cpu/rows.h"

#include <algorithm>
#include <cmath>

#include "backends/cpu/gemm.h"

// foreach_target.h must come before any other Highway header.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/rows.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace megafold::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using Int = std::int64_t;
// At most one padding unit, so that padded rows are whole vectors.
using D = hn::CappedTag<float, kColumnPadding>;
using DHalf = hn::CappedTag<float, kColumnPadding / 2>;
using V = hn::Vec<D>;
using BF16 = hwy::bfloat16_t;
using F16 = hwy::float16_t;

Int Lanes() { return static_cast<Int>(hn::Lanes(D())); }

template <class DF>
hn::Vec<DF> LoadAny(DF d, const float* from) {
  return hn::LoadU(d, from);
}

template <class DF>
hn::Vec<DF> LoadAny(DF d, const BF16* from) {
  const hn::RebindToUnsigned<DF> du32;
  const hn::Rebind<std::uint16_t, DF> du16;
  const auto bits = hn::LoadU(du16, reinterpret_cast<const std::uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du32, bits)));
}

template <class DF>
hn::Vec<DF> LoadAny(DF d, const F16* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<F16, DF>(), from));
}

template <class DF>
void StoreAny(DF d, hn::Vec<DF> value, float* to) {
  hn::StoreU(value, d, to);
}

template <class DF>
void StoreAny(DF, hn::Vec<DF> value, BF16* to) {
  const hn::RebindToUnsigned<DF> du32;
  const hn::RebindToSigned<DF> di32;
  const hn::Rebind<std::uint16_t, DF> du16;
  const auto bits = hn::BitCast(du32, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du32, 1));
  const auto nearest = hn::Add(hn::Add(bits, hn::Set(du32, 0x7FFF)), odd);
  const auto quiet = hn::Or(bits, hn::Set(du32, 0x400000));  // NaN stays NaN
  const auto is_nan = hn::RebindMask(du32, hn::Ne(value, value));
  const auto high = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, nearest));
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di32, high)), du16,
             reinterpret_cast<std::uint16_t*>(to));
}

template <class DF>
void StoreAny(DF, hn::Vec<DF> value, F16* to) {
  const hn::Rebind<F16, DF> df16;
  hn::StoreU(hn::DemoteTo(df16, value), df16, to);
}

// What is left of a row after its last whole vector, `count` elements, and zeros up to `padded`.
// Half vectors where those are whole: 24 features are a vector and a half, and a copy through the
// stack would be waited for.
template <typename T>
void LoadEnd(const T* from, Int count, Int padded, float* to) {
  const DHalf d;
  const Int lanes = static_cast<Int>(hn::Lanes(d));
  HWY_ALIGN T tail[kColumnPadding] = {};
  Int n = 0;
  for (; n + lanes <= count; n += lanes) hn::StoreU(LoadAny(d, from + n), d, to + n);
  if (n < count) {
    std::copy(from + n, from + count, tail);
    hn::StoreU(LoadAny(d, tail), d, to + n);
    n += lanes;
  }
  for (; n < padded; n += lanes) hn::StoreU(hn::Zero(d), d, to + n);
}

template <typename T>
void LoadTyped(const T* from, Int from_stride, Block to) {
  const D d;
  const Int whole = to.columns / Lanes() * Lanes();
  const Int left = to.columns - whole;
  const Int padded = PadColumns(to.columns) - whole;
  for (Int r = 0; r < to.rows; ++r) {
    const T* in = from + r * from_stride;
    float* out = to.data + r * to.stride;
    for (Int n = 0; n < whole; n += Lanes()) hn::StoreU(LoadAny(d, in + n), d, out + n);
    if (padded > 0) LoadEnd(in + whole, left, padded, out + whole);
  }
}

template <typename T>
void StoreEnd(const float* from, Int count, T* to) {
  const DHalf d;
  const Int lanes = static_cast<Int>(hn::Lanes(d));
  HWY_ALIGN T tail[kColumnPadding];
  Int n = 0;
  for (; n + lanes <= count; n += lanes) StoreAny(d, hn::LoadU(d, from + n), to + n);
  if (n < count) {
    StoreAny(d, hn::LoadU(d, from + n), tail);
    std::copy(tail, tail + (count - n), to + n);
  }
}

template <typename T>
void StoreTyped(Block from, T* to, Int to_stride) {
  const D d;
  const Int whole = from.columns / Lanes() * Lanes();
  const Int left = from.columns - whole;
  for (Int r = 0; r < from.rows; ++r) {
    const float* in = from.data + r * from.stride;
    T* out = to + r * to_stride;
    for (Int n = 0; n < whole; n += Lanes()) StoreAny(d, hn::LoadU(d, in + n), out + n);
    if (left > 0) StoreEnd(in + whole, left, out + whole);
  }
}

void LoadRowsImpl(StoredRows from, Block to) {
  switch (from.dtype) {
    case DType::kBFloat16:
      LoadTyped(static_cast<const BF16*>(from.data), from.stride, to);
      break;
    case DType::kFloat16:
      LoadTyped(static_cast<const F16*>(from.data), from.stride, to);
      break;
    default:
      LoadTyped(static_cast<const float*>(from.data), from.stride, to);
      break;
  }
}

void StoreRowsImpl(Block from, StoredRows to) {
  switch (to.dtype) {
    case DType::kBFloat16:
      StoreTyped(from, static_cast<BF16*>(to.data), to.stride);
      break;
    case DType::kFloat16:
      StoreTyped(from, static_cast<F16*>(to.data), to.stride);
      break;
    default:
      StoreTyped(from, static_cast<float*>(to.data), to.stride);
      break;
  }
}

void NormaliseRow(const float* row, Int padded, const LayerNormParameters& parameters, float mean,
                  float rstd, float* out) {
  const D d;
  const V means = hn::Set(d, mean);
  const V scale = hn::Set(d, rstd);
  for (Int n = 0; n < padded; n += Lanes()) {
    const V xhat = hn::Mul(hn::Sub(hn::LoadU(d, row + n), means), scale);
    const V gamma = hn::LoadU(d, parameters.gamma + n);
    hn::StoreU(hn::MulAdd(xhat, gamma, hn::LoadU(d, parameters.beta + n)), d, out + n);
  }
}

// The sum of squares about the mean is taken in a second pass: one pass would cancel where the mean
// is large.
void LayerNormRowsImpl(Block x, LayerNormParameters parameters, float* mean, float* rstd,
                       Block out) {
  const D d;
  const Int padded = PadColumns(x.columns);
  const Int whole = x.columns / Lanes() * Lanes();
  const auto tail = hn::FirstN(d, static_cast<std::size_t>(x.columns - whole));
  const auto count = static_cast<float>(x.columns);
  for (Int r = 0; r < x.rows; ++r) {
    const float* row = x.data + r * x.stride;
    V sum = hn::Zero(d);
    for (Int n = 0; n < padded; n += Lanes()) sum = hn::Add(sum, hn::LoadU(d, row + n));
    mean[r] = hn::GetLane(hn::SumOfLanes(d, sum)) / count;
    const V means = hn::Set(d, mean[r]);
    V squares = hn::Zero(d);
    for (Int n = 0; n < whole; n += Lanes()) {
      const V centred = hn::Sub(hn::LoadU(d, row + n), means);
      squares = hn::MulAdd(centred, centred, squares);
    }
    if (whole < x.columns) {
      const V centred = hn::IfThenElseZero(tail, hn::Sub(hn::LoadU(d, row + whole), means));
      squares = hn::MulAdd(centred, centred, squares);
    }
    const float variance = hn::GetLane(hn::SumOfLanes(d, squares)) / count;
    rstd[r] = 1.0F / std::sqrt(variance + parameters.eps);
    NormaliseRow(row, padded, parameters, mean[r], rstd[r], out.data + r * out.stride);
  }
}

void NormaliseRowsImpl(Block x, LayerNormParameters parameters, const float* mean,
                       const float* rstd, Block out) {
  const Int padded = PadColumns(x.columns);
  for (Int r = 0; r < x.rows; ++r) {
    NormaliseRow(x.data + r * x.stride, padded, parameters, mean[r], rstd[r],
                 out.data + r * out.stride);
  }
}

void AddProduct(float* sum, V a, V b) {
  const D d;
  hn::StoreU(hn::MulAdd(a, b, hn::LoadU(d, sum)), d, sum);
}

// The gradient's padding must be zero; gamma's is, so x's padding drops out of both means.
void LayerNormBackwardRowsImpl(Block grad, Block x, const float* gamma, const float* mean,
                               const float* rstd, float* dgamma, float* dbeta) {
  const D d;
  const Int padded = PadColumns(grad.columns);
  const float inverse = 1.0F / static_cast<float>(grad.columns);
  for (Int r = 0; r < grad.rows; ++r) {
    float* g_row = grad.data + r * grad.stride;
    float* x_row = x.data + r * x.stride;
    const V means = hn::Set(d, mean[r]);
    const V scale = hn::Set(d, rstd[r]);
    V sum_g = hn::Zero(d);
    V sum_g_xhat = hn::Zero(d);
    for (Int n = 0; n < padded; n += Lanes()) {
      const V xhat = hn::Mul(hn::Sub(hn::LoadU(d, x_row + n), means), scale);
      const V du = hn::LoadU(d, g_row + n);
      const V g = hn::Mul(du, hn::LoadU(d, gamma + n));
      sum_g = hn::Add(sum_g, g);
      sum_g_xhat = hn::MulAdd(g, xhat, sum_g_xhat);
      if (dgamma != nullptr) AddProduct(dgamma + n, du, xhat);
      if (dbeta != nullptr) hn::StoreU(hn::Add(hn::LoadU(d, dbeta + n), du), d, dbeta + n);
    }
    const V mean_g = hn::Set(d, hn::GetLane(hn::SumOfLanes(d, sum_g)) * inverse);
    const V mean_g_xhat = hn::Set(d, hn::GetLane(hn::SumOfLanes(d, sum_g_xhat)) * inverse);
    for (Int n = 0; n < padded; n += Lanes()) {
      const V xhat = hn::Mul(hn::Sub(hn::LoadU(d, x_row + n), means), scale);
      const V g = hn::Mul(hn::LoadU(d, g_row + n), hn::LoadU(d, gamma + n));
      const V centred = hn::NegMulAdd(xhat, mean_g_xhat, hn::Sub(g, mean_g));
      hn::StoreU(hn::Mul(scale, centred), d, g_row + n);
    }
  }
}

void AddColumnSumsImpl(Block block, float* sum) {
  const D d;
  const Int padded = PadColumns(block.columns);
  for (Int n = 0; n < padded; n += Lanes()) {
    V total = hn::LoadU(d, sum + n);
    for (Int r = 0; r < block.rows; ++r) {
      total = hn::Add(total, hn::LoadU(d, block.data + r * block.stride + n));
    }
    hn::StoreU(total, d, sum + n);
  }
}

void ScaleRowsImpl(Block rows, const float* factor) {
  const D d;
  const Int padded = PadColumns(rows.columns);
  for (Int r = 0; r < rows.rows; ++r) {
    float* row = rows.data + r * rows.stride;
    const V scale = hn::Set(d, factor[r]);
    for (Int n = 0; n < padded; n += Lanes()) {
      hn::StoreU(hn::Mul(hn::LoadU(d, row + n), scale), d, row + n);
    }
  }
}

void AddIntoImpl(float* sum, const float* part, Int count) {
  const D d;
  for (Int n = 0; n < count; n += Lanes()) {
    hn::StoreU(hn::Add(hn::LoadU(d, sum + n), hn::LoadU(d, part + n)), d, sum + n);
  }
}

}  // namespace
}  // namespace megafold::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megafold::cpu {

HWY_EXPORT(LoadRowsImpl);
HWY_EXPORT(StoreRowsImpl);
HWY_EXPORT(LayerNormRowsImpl);
HWY_EXPORT(NormaliseRowsImpl);
HWY_EXPORT(LayerNormBackwardRowsImpl);
HWY_EXPORT(AddColumnSumsImpl);
HWY_EXPORT(ScaleRowsImpl);
HWY_EXPORT(AddIntoImpl);

StoredRows RowsOf(const TensorView& matrix, std::int64_t first_row) {
  auto* bytes = matrix.ptr<unsigned char>();
  const std::int64_t offset = first_row * matrix.stride(0);
  return {bytes + offset * static_cast<std::int64_t>(SizeOf(matrix.dtype)), matrix.dtype,
          matrix.stride(0)};
}

void LoadRows(StoredRows from, Block to) { HWY_DYNAMIC_DISPATCH(LoadRowsImpl)(from, to); }
void StoreRows(Block from, StoredRows to) { HWY_DYNAMIC_DISPATCH(StoreRowsImpl)(from, to); }

void LoadVector(const TensorView& vector, std::int64_t size, float fallback, float* out) {
  if (vector.defined()) {
    LoadRows({vector.data, vector.dtype, 0}, {out, 1, size, size});
  } else {
    std::fill(out, out + size, fallback);
    std::fill(out + size, out + PadColumns(size), 0.0F);
  }
}

void LayerNormRows(Block x, LayerNormParameters parameters, float* mean, float* rstd, Block out) {
  HWY_DYNAMIC_DISPATCH(LayerNormRowsImpl)(x, parameters, mean, rstd, out);
}

void NormaliseRows(Block x, LayerNormParameters parameters, const float* mean, const float* rstd,
                   Block out) {
  HWY_DYNAMIC_DISPATCH(NormaliseRowsImpl)(x, parameters, mean, rstd, out);
}

void LayerNormBackwardRows(Block grad, Block x, const float* gamma, const float* mean,
                           const float* rstd, float* dgamma, float* dbeta) {
  HWY_DYNAMIC_DISPATCH(LayerNormBackwardRowsImpl)(grad, x, gamma, mean, rstd, dgamma, dbeta);
}

void AddColumnSums(Block block, float* sum) { HWY_DYNAMIC_DISPATCH(AddColumnSumsImpl)(block, sum); }

void ScaleRows(Block rows, const float* factor) {
  HWY_DYNAMIC_DISPATCH(ScaleRowsImpl)(rows, factor);
}

void AddInto(float* sum, const float* part, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(AddIntoImpl)(sum, part, count);
}

}  // namespace megafold::cpu
#endif  // HWY_ONCE
