#include "backends/cpu/gates.h"

#include <cstdint>

#include "backends/cpu/gemm.h"

// foreach_target.h must come before any other Highway header.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/gates.cc"
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

Int Lanes() { return static_cast<Int>(hn::Lanes(D())); }

// 1 / (1 + exp(-t)) through exp(-|t|), which cannot overflow.
V Sigmoid(D d, V t) {
  const V e = Exp2(d, hn::Mul(hn::Abs(t), hn::Set(d, -kLog2E)));
  const V one = hn::Set(d, 1.0F);
  const V numerator = hn::IfThenElse(hn::Lt(t, hn::Zero(d)), e, one);
  return hn::Div(numerator, hn::Add(one, e));
}

void SwiGluImpl(Block gate, Block value) {
  const D d;
  const Int padded = PadColumns(gate.columns);
  for (Int r = 0; r < gate.rows; ++r) {
    float* g_row = gate.data + r * gate.stride;
    const float* v_row = value.data + r * value.stride;
    for (Int n = 0; n < padded; n += Lanes()) {
      const V t = hn::LoadU(d, g_row + n);
      const V silu = hn::Mul(t, Sigmoid(d, t));
      hn::StoreU(hn::Mul(silu, hn::LoadU(d, v_row + n)), d, g_row + n);
    }
  }
}

void SwiGluBackwardImpl(Block gate, Block value, Block dhidden) {
  const D d;
  const Int padded = PadColumns(gate.columns);
  const V one = hn::Set(d, 1.0F);
  for (Int r = 0; r < gate.rows; ++r) {
    float* g_row = gate.data + r * gate.stride;
    float* v_row = value.data + r * value.stride;
    float* h_row = dhidden.data + r * dhidden.stride;
    for (Int n = 0; n < padded; n += Lanes()) {
      const V t = hn::LoadU(d, g_row + n);
      const V v = hn::LoadU(d, v_row + n);
      const V dh = hn::LoadU(d, h_row + n);
      const V s = Sigmoid(d, t);
      const V silu = hn::Mul(t, s);
      const V dsilu = hn::Mul(s, hn::MulAdd(t, hn::Sub(one, s), one));
      hn::StoreU(hn::Mul(hn::Mul(dh, v), dsilu), d, g_row + n);
      hn::StoreU(hn::Mul(dh, silu), d, v_row + n);
      hn::StoreU(hn::Mul(silu, v), d, h_row + n);
    }
  }
}

void SigmoidRowsImpl(Block rows) {
  const D d;
  const Int padded = PadColumns(rows.columns);
  for (Int r = 0; r < rows.rows; ++r) {
    float* row = rows.data + r * rows.stride;
    for (Int n = 0; n < padded; n += Lanes()) {
      hn::StoreU(Sigmoid(d, hn::LoadU(d, row + n)), d, row + n);
    }
  }
}

void GateImpl(Block gate, Block value, const float* factor) {
  const D d;
  const Int padded = PadColumns(gate.columns);
  for (Int r = 0; r < gate.rows; ++r) {
    float* g_row = gate.data + r * gate.stride;
    float* v_row = value.data + r * value.stride;
    const V scale = hn::Set(d, factor[r]);
    for (Int n = 0; n < padded; n += Lanes()) {
      const V s = Sigmoid(d, hn::LoadU(d, g_row + n));
      hn::StoreU(s, d, g_row + n);
      hn::StoreU(hn::Mul(hn::Mul(s, scale), hn::LoadU(d, v_row + n)), d, v_row + n);
    }
  }
}

void GateBackwardImpl(Block s, Block p, Block dy) {
  const D d;
  const Int padded = PadColumns(s.columns);
  const V one = hn::Set(d, 1.0F);
  for (Int r = 0; r < s.rows; ++r) {
    const float* s_row = s.data + r * s.stride;
    float* p_row = p.data + r * p.stride;
    float* dy_row = dy.data + r * dy.stride;
    for (Int n = 0; n < padded; n += Lanes()) {
      const V sv = hn::LoadU(d, s_row + n);
      const V dp = hn::Mul(hn::LoadU(d, dy_row + n), sv);
      hn::StoreU(hn::Mul(hn::Mul(dp, hn::LoadU(d, p_row + n)), hn::Sub(one, sv)), d, p_row + n);
      hn::StoreU(dp, d, dy_row + n);
    }
  }
}

void GatedProductBackwardImpl(const float* dproduct, float* product, float* s, Int count) {
  const D d;
  const V one = hn::Set(d, 1.0F);
  for (Int n = 0; n < count; n += Lanes()) {
    const V dp = hn::LoadU(d, dproduct + n);
    const V sv = hn::LoadU(d, s + n);
    const V dgate = hn::Mul(hn::Mul(dp, hn::LoadU(d, product + n)), hn::Sub(one, sv));
    hn::StoreU(dgate, d, product + n);
    hn::StoreU(hn::Mul(dp, sv), d, s + n);
  }
}

}  // namespace
}  // namespace megafold::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace megafold::cpu {

HWY_EXPORT(SwiGluImpl);
HWY_EXPORT(SwiGluBackwardImpl);
HWY_EXPORT(SigmoidRowsImpl);
HWY_EXPORT(GateImpl);
HWY_EXPORT(GateBackwardImpl);
HWY_EXPORT(GatedProductBackwardImpl);

void SwiGlu(Block gate, Block value) { HWY_DYNAMIC_DISPATCH(SwiGluImpl)(gate, value); }

void SwiGluBackward(Block gate, Block value, Block dhidden) {
  HWY_DYNAMIC_DISPATCH(SwiGluBackwardImpl)(gate, value, dhidden);
}

void SigmoidRows(Block rows) { HWY_DYNAMIC_DISPATCH(SigmoidRowsImpl)(rows); }

void Gate(Block gate, Block value, const float* factor) {
  HWY_DYNAMIC_DISPATCH(GateImpl)(gate, value, factor);
}

void GateBackward(Block s, Block p, Block dy) { HWY_DYNAMIC_DISPATCH(GateBackwardImpl)(s, p, dy); }

void GatedProductBackward(const float* dproduct, float* product, float* s, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(GatedProductBackwardImpl)(dproduct, product, s, count);
}

}  // namespace megafold::cpu
#endif  // HWY_ONCE
