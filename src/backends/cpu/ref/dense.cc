#include "backends/cpu/ref/dense.h"

#include <array>
#include <cstddef>

#include "backends/cpu/half.h"

namespace megafold::cpu::ref {
namespace {

double ReadElement(const TensorView& view, std::int64_t offset) {
  switch (view.dtype) {
    case DType::kFloat64:
      return view.ptr<double>()[offset];
    case DType::kFloat32:
      return view.ptr<float>()[offset];
    case DType::kBFloat16:
      return FromBFloat16(view.ptr<std::uint16_t>()[offset]);
    case DType::kFloat16:
      return FromFloat16(view.ptr<std::uint16_t>()[offset]);
    case DType::kBool:
      return view.ptr<std::uint8_t>()[offset] != 0 ? 1 : 0;
  }
  return 0;
}

void WriteElement(const TensorView& view, std::int64_t offset, double value) {
  switch (view.dtype) {
    case DType::kFloat64:
      view.ptr<double>()[offset] = value;
      break;
    case DType::kFloat32:
      view.ptr<float>()[offset] = static_cast<float>(value);
      break;
    case DType::kBFloat16:
      view.ptr<std::uint16_t>()[offset] = ToBFloat16(static_cast<float>(value));
      break;
    case DType::kFloat16:
      view.ptr<std::uint16_t>()[offset] = ToFloat16(static_cast<float>(value));
      break;
    case DType::kBool:
      view.ptr<std::uint8_t>()[offset] = value != 0 ? 1 : 0;
      break;
  }
}

// Calls visit(offset) for every element in row-major order.
template <typename Visit>
void ForEachOffset(const TensorView& view, Visit visit) {
  const std::int64_t count = view.numel();
  std::array<std::int64_t, kMaxRank> index{};
  std::int64_t offset = 0;
  for (std::int64_t n = 0; n < count; ++n) {
    visit(offset);
    for (int d = view.rank - 1; d >= 0; --d) {
      const auto slot = static_cast<std::size_t>(d);
      offset += view.stride(d);
      if (++index[slot] < view.size(d)) break;
      offset -= view.stride(d) * view.size(d);
      index[slot] = 0;
    }
  }
}

}  // namespace

Dense Read(const TensorView& view) {
  Dense values;
  values.reserve(static_cast<std::size_t>(view.numel()));
  ForEachOffset(view, [&](std::int64_t offset) { values.push_back(ReadElement(view, offset)); });
  return values;
}

Dense ReadOr(const TensorView& view, std::int64_t size, double fallback) {
  return view.defined() ? Read(view) : Dense(static_cast<std::size_t>(size), fallback);
}

void Write(const TensorView& view, const Dense& values) {
  auto next = values.begin();
  ForEachOffset(view, [&](std::int64_t offset) { WriteElement(view, offset, *next++); });
}

}  // namespace megafold::cpu::ref
