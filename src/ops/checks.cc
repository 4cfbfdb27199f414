#include "ops/checks.h"

#include <algorithm>

namespace megafold::ops {
namespace {

bool IsFloating(DType dtype) { return dtype != DType::kBool; }

}  // namespace

Checks::Checks(const char* op, const char* name, const TensorView& lead, int rank)
    : op_(op), device_(lead.device), storage_(lead.dtype) {
  That(lead.defined(), name, " is missing; it must have ", rank, " dimensions");
  That(lead.rank == rank, name, " has shape ", lead, ", expected ", rank, " dimensions");
  That(IsFloating(lead.dtype), name, " is ", Name(lead.dtype), ", expected a floating type");
}

void Checks::Placed(const char* name, const TensorView& view,
                    std::span<const std::int64_t> sizes) const {
  That(view.defined(), name, " is missing; expected shape ", sizes);
  That(std::ranges::equal(view.shape(), sizes), name, " has shape ", view, ", expected ", sizes);
  That(view.device == device_, name, " is on device '", megafold::Name(view.device.type), ":",
       view.device.index, "', expected '", megafold::Name(device_.type), ":", device_.index, "'");
  That(view.data != nullptr || view.numel() == 0, name, " has no data");
}

void Checks::LastStrideOne(const char* name, const TensorView& view) const {
  const int last = view.rank - 1;
  That(view.size(last) <= 1 || view.stride(last) == 1, name, " has stride ", view.stride(last),
       " on its last dimension, expected 1");
}

void Checks::Type(const char* name, const TensorView& view, DType dtype) const {
  That(view.dtype == dtype, name, " is ", megafold::Name(view.dtype), ", expected ",
       megafold::Name(dtype));
}

void Checks::Operand(const char* name, const TensorView& view, Sizes sizes) const {
  Placed(name, view, sizes);
  Type(name, view, storage_);
  LastStrideOne(name, view);
}

void Checks::OptionalParameter(const char* name, const TensorView& view, Sizes sizes) const {
  if (!view.defined()) return;
  Placed(name, view, sizes);
  if (view.dtype != statistics()) Type(name, view, storage_);
  LastStrideOne(name, view);
}

void Checks::OptionalBias(const char* name, const TensorView& view, Sizes sizes) const {
  if (!view.defined()) return;
  Placed(name, view, sizes);
  if (view.dtype != statistics()) Type(name, view, storage_);
}

void Checks::OptionalMask(const char* name, const TensorView& view, Sizes sizes) const {
  if (!view.defined()) return;
  Placed(name, view, sizes);
  That(view.dtype == DType::kBool || view.dtype == storage_ || view.dtype == statistics(), name,
       " is ", megafold::Name(view.dtype), ", expected bool, ", megafold::Name(storage_), " or ",
       megafold::Name(statistics()));
}

void Checks::Statistic(const char* name, const TensorView& view, Sizes sizes) const {
  Placed(name, view, sizes);
  Type(name, view, statistics());
  That(view.contiguous(), name, " must be contiguous");
}

void Checks::OptionalGradient(const char* name, const TensorView& view, const char* of_name,
                              const TensorView& of) const {
  if (!view.defined()) return;
  That(of.defined(), name, " is asked for, but ", of_name, " is absent");
  Placed(name, view, of.shape());
  Type(name, view, of.dtype);
  LastStrideOne(name, view);
}

}  // namespace megafold::ops
