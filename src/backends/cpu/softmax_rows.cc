#include "backends/cpu/softmax_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/gemm.h"

// foreach_target.h must come before any other Highway header.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/softmax_rows.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backends/cpu/exp2-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace megafold::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using Int = std::int64_t;
// At most one padding unit, so that padded rows are whole vectors.
using D = hn::CappedTag<float, kColumnPadding>;
using V = hn::Vec<D>;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

Int Lanes() { return static_cast<Int>(hn::Lanes(D())); }

// Loads all lanes of a vector, or the first `count` of them.
template <bool kTail>
V Load(D d, const float* from, Int count) {
  if constexpr (!kTail) return hn::LoadU(d, from);
  HWY_ALIGN float tail[kColumnPadding] = {};
  std::copy(from, from + count, tail);
  return hn::Load(d, tail);
}

template <bool kTail, bool kBias, bool kMask>
V Score(D d, const float* scores, const float* bias, const float* mask, Int count) {
  V score = hn::LoadU(d, scores);
  if constexpr (kBias) score = hn::Add(score, Load<kTail>(d, bias, count));
  if constexpr (kMask) score = hn::Add(score, Load<kTail>(d, mask, count));
  return score;
}

// The scores of a row with their terms added in place, the tail's surplus at -inf. Returns the
// largest.
template <bool kBias, bool kMask>
float AddTerms(float* row, Int columns, const float* bias, const float* mask) {
  const D d;
  const V lowest = hn::Set(d, kMinusInfinity);
  V largest = lowest;
  Int n = 0;
  for (; n + Lanes() <= columns; n += Lanes()) {
    const V score = Score<false, kBias, kMask>(d, row + n, bias + n, mask + n, 0);
    hn::StoreU(score, d, row + n);
    largest = hn::Max(largest, score);
  }
  if (n < columns) {
    const Int left = columns - n;
    const V score = Score<true, kBias, kMask>(d, row + n, bias + n, mask + n, left);
    const V kept = hn::IfThenElse(hn::FirstN(d, static_cast<std::size_t>(left)), score, lowest);
    hn::StoreU(kept, d, row + n);
    largest = hn::Max(largest, kept);
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

template <bool kBias, bool kMask>
void OnlineSoftmax(Block scores, ScoreTerms terms, RunningSoftmax state, float* rescale) {
  const D d;
  const V log2e = hn::Set(d, kLog2E);
  const auto largest_of = [&](Int r) {
    float* row = scores.data + r * scores.stride;
    const float* bias = kBias ? terms.bias + r * terms.bias_stride : row;
    const float* mask = kMask ? terms.mask : row;
    return AddTerms<kBias, kMask>(row, scores.columns, bias, mask) * kLog2E;
  };
  float next_top = largest_of(0);
  for (Int r = 0; r < scores.rows; ++r) {
    float* row = scores.data + r * scores.stride;
    const float top = next_top;
    // One row early: the exponentials of this row hide how long a maximum over lanes takes.
    if (r + 1 < scores.rows) next_top = largest_of(r + 1);
    const float before = state.largest[r];
    const float largest = top > before ? top : before;
    // A row of -inf so far: any finite shift makes its weights zero.
    const float shift = largest == kMinusInfinity ? 0.0F : largest;
    const V minus_shift = hn::Set(d, -shift);
    V sum = hn::Zero(d);
    for (Int n = 0; n < scores.columns; n += Lanes()) {
      const V weight = Exp2(d, hn::MulAdd(hn::LoadU(d, row + n), log2e, minus_shift));
      hn::StoreU(weight, d, row + n);
      sum = hn::Add(sum, weight);
    }
    // Nothing was summed before the first tile, and a maximum that stays rescales nothing.
    rescale[r] = before == shift            ? 1.0F
                 : before == kMinusInfinity ? 0.0F
                                            : std::exp2(before - shift);
    state.largest[r] = largest;
    state.sum[r] = state.sum[r] * rescale[r] + hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

void OnlineSoftmaxImpl(Block scores, ScoreTerms terms, RunningSoftmax state, float* rescale) {
  if (terms.bias != nullptr && terms.mask != nullptr) {
    OnlineSoftmax<true, true>(scores, terms, state, rescale);
  } else if (terms.bias != nullptr) {
    OnlineSoftmax<true, false>(scores, terms, state, rescale);
  } else if (terms.mask != nullptr) {
    OnlineSoftmax<false, true>(scores, terms, state, rescale);
  } else {
    OnlineSoftmax<false, false>(scores, terms, state, rescale);
  }
}

struct RowGradient {
  V minus_lse, delta;
  bool accumulate;
};

template <bool kTail, bool kBias, bool kMask, bool kGradient>
void BackwardVector(const RowGradient& g, float* s, float* dp, const float* bias, const float* mask,
                    float* dbias, Int count) {
  const D d;
  const V score = Score<kTail, kBias, kMask>(d, s, bias, mask, count);
  const V p = Exp2(d, hn::MulAdd(score, hn::Set(d, kLog2E), g.minus_lse));
  V ds = hn::Mul(p, hn::Sub(hn::LoadU(d, dp), g.delta));
  hn::StoreU(p, d, s);
  hn::StoreU(ds, d, dp);
  if constexpr (kGradient) {
    if (g.accumulate) ds = hn::Add(ds, Load<kTail>(d, dbias, count));
    if constexpr (kTail) {
      HWY_ALIGN float tail[kColumnPadding];
      hn::Store(ds, d, tail);
      std::copy(tail, tail + count, dbias);
    } else {
      hn::StoreU(ds, d, dbias);
    }
  }
}

template <bool kBias, bool kMask, bool kGradient>
void Backward(Block scores, Block dp, ScoreTerms terms, ScoreGradient gradient) {
  const D d;
  for (Int r = 0; r < scores.rows; ++r) {
    float* row = scores.data + r * scores.stride;
    float* dp_row = dp.data + r * dp.stride;
    const float* bias = kBias ? terms.bias + r * terms.bias_stride : row;
    const float* mask = kMask ? terms.mask : row;
    float* dbias = kGradient ? gradient.dbias + r * gradient.dbias_stride : row;
    const RowGradient g{hn::Set(d, -gradient.lse[r] * kLog2E), hn::Set(d, gradient.delta[r]),
                        gradient.accumulate};
    Int n = 0;
    for (; n + Lanes() <= scores.columns; n += Lanes()) {
      BackwardVector<false, kBias, kMask, kGradient>(g, row + n, dp_row + n, bias + n, mask + n,
                                                     dbias + n, 0);
    }
    if (n < scores.columns) {
      BackwardVector<true, kBias, kMask, kGradient>(g, row + n, dp_row + n, bias + n, mask + n,
                                                    dbias + n, scores.columns - n);
    }
  }
}

void BackwardImpl(Block scores, Block dp, ScoreTerms terms, ScoreGradient gradient) {
  using Function = void (*)(Block, Block, ScoreTerms, ScoreGradient);
  const bool mask = terms.mask != nullptr;
  Function run = mask ? &Backward<false, true, false> : &Backward<false, false, false>;
  if (gradient.dbias != nullptr) {
    run = terms.bias != nullptr
              ? (mask ? &Backward<true, true, true> : &Backward<true, false, true>)
              : (mask ? &Backward<false, true, true> : &Backward<false, false, true>);
  } else if (terms.bias != nullptr) {
    run = mask ? &Backward<true, true, false> : &Backward<true, false, false>;
  }
  run(scores, dp, terms, gradient);
}

void DotRowsImpl(Block a, Block b, float* out) {
  const D d;
  const Int padded = PadColumns(a.columns);
  for (Int r = 0; r < a.rows; ++r) {
    V sum = hn::Zero(d);
    for (Int n = 0; n < padded; n += Lanes()) {
      sum = hn::MulAdd(hn::LoadU(d, a.data + r * a.stride + n),
                       hn::LoadU(d, b.data + r * b.stride + n), sum);
    }
    out[r] = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

}  // namespace
}  // namespace megafold::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megafold::cpu {

HWY_EXPORT(OnlineSoftmaxImpl);
HWY_EXPORT(BackwardImpl);
HWY_EXPORT(DotRowsImpl);

void OnlineSoftmaxRows(Block scores, ScoreTerms terms, RunningSoftmax state, float* rescale) {
  HWY_DYNAMIC_DISPATCH(OnlineSoftmaxImpl)(scores, terms, state, rescale);
}

void FinishSoftmax(RunningSoftmax state, std::int64_t rows, float* factor, float* lse) {
  constexpr double kLn2 = 0.6931471805599453;
  for (std::int64_t r = 0; r < rows; ++r) {
    const bool empty = state.sum[r] == 0;
    const double log2_sum = std::log2(static_cast<double>(state.sum[r]));
    factor[r] = empty ? 0 : 1 / state.sum[r];
    lse[r] = empty ? std::numeric_limits<float>::infinity()
                   : static_cast<float>((state.largest[r] + log2_sum) * kLn2);
  }
}

void SoftmaxBackwardRows(Block scores, Block dp, ScoreTerms terms, ScoreGradient gradient) {
  HWY_DYNAMIC_DISPATCH(BackwardImpl)(scores, dp, terms, gradient);
}

void DotRows(Block a, Block b, float* out) { HWY_DYNAMIC_DISPATCH(DotRowsImpl)(a, b, out); }

}  // namespace megafold::cpu
#endif  // HWY_ONCE
