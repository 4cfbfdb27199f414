// 2^x in vectors, for every target that includes this (foreach_target.h).
#if defined(MEGAFOLD_CPU_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MEGAFOLD_CPU_EXP2_INL_H_
#undef MEGAFOLD_CPU_EXP2_INL_H_
#else
#define MEGAFOLD_CPU_EXP2_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace megafold::cpu::HWY_NAMESPACE {

inline constexpr float kLog2E = 1.4426950408889634F;

// 2^x for x <= 127: a polynomial of degree 5 after range reduction, relative error below 3e-7;
// zero below 2^-126.5. Adding 1.5 * 2^23 + 127 leaves the nearest integer, with the exponent's
// bias, in the low mantissa bits; the shift moves it into the exponent and everything else out. At
// -127 that exponent is the zero's. NaN stays NaN.
template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToSigned<D> di;
  const V lowest = hn::Set(d, -127.0F);
  x = hn::IfThenElse(hn::Lt(x, lowest), lowest, x);  // false for NaN
  const V magic = hn::Set(d, 12583039.0F);
  const V shifted = hn::Add(x, magic);
  const V f = hn::Sub(x, hn::Sub(shifted, magic));
  V p = hn::Set(d, 1.3276472e-3F);
  p = hn::MulAdd(p, f, hn::Set(d, 9.675541e-3F));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550713e-2F));
  p = hn::MulAdd(p, f, hn::Set(d, 2.402212e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9314697e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 1.00000007F));
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

}  // namespace megafold::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
