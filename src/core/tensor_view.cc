#include "megafold/core/tensor_view.h"

#include "megafold/core/error.h"

namespace megafold {

std::int64_t TensorView::numel() const {
  if (!defined()) return 0;
  std::int64_t n = 1;
  for (std::int64_t s : shape()) n *= s;
  return n;
}

bool TensorView::contiguous() const {
  std::int64_t expected = 1;
  for (int d = rank - 1; d >= 0; --d) {
    if (size(d) != 1 && stride(d) != expected) return false;
    expected *= size(d);
  }
  return true;
}

TensorView MakeView(void* data, DType dtype, std::initializer_list<std::int64_t> sizes,
                    Device device) {
  Require(sizes.size() <= kMaxRank, "a tensor view has at most ", kMaxRank, " dimensions, got ",
          sizes.size());
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.device = device;
  for (std::int64_t s : sizes) view.sizes[static_cast<std::size_t>(view.rank++)] = s;
  std::int64_t stride = 1;
  for (int d = view.rank - 1; d >= 0; --d) {
    view.strides[static_cast<std::size_t>(d)] = stride;
    stride *= view.size(d);
  }
  return view;
}

std::string ShapeString(std::span<const std::int64_t> sizes) {
  std::string text = "[";
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(sizes[d]);
  }
  return text + "]";
}

}  // namespace megafold
