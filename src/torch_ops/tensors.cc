#include "torch_ops/tensors.h"

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <sys/mman.h>

#include <cstdint>

#include "megafold/core/build_info.h"
#include "megafold/core/error.h"
#include "megafold/core/threads.h"
#include "tuning/load.h"

namespace megafold::torch_ops {
namespace {

constexpr std::uintptr_t kAlignment = 256;

bool Built(DeviceType type) {
  for (const BackendInfo& backend : Backends()) {
    if (backend.device == type) return backend.built;
  }
  return false;
}

// PyTorch calls a ROCm device 'cuda' as well: which of the two it is follows from this build's
// backends.
DeviceType GpuType() {
  static const DeviceType type =
      Built(DeviceType::kHip) && !Built(DeviceType::kCuda) ? DeviceType::kHip : DeviceType::kCuda;
  return type;
}

}  // namespace

Device ToDevice(const char* name, c10::Device device) {
  if (device.is_cpu()) return {DeviceType::kCpu, 0};
  if (device.is_cuda()) return {GpuType(), device.index()};
  if (device.is_hip()) return {DeviceType::kHip, device.index()};
  Fail(ErrorCode::kInvalidArgument, name, " is on device '", device.str(),
       "', expected cpu or cuda");
}

namespace {

DType ToDType(const char* name, at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBool:
      return DType::kBool;
    default:
      Fail(ErrorCode::kInvalidArgument, name, " is ", c10::toString(type),
           ", expected float32, bfloat16, float16, float64 or (for a mask) bool");
  }
}

// Of what PyTorch allocated and nobody wrote yet. A new page costs a fault, which is most of the
// time of an operator that writes 100 MiB in pages of 4 KiB. Advice only: where there are no huge
// pages to be had, nothing changes.
void AskForHugePages(void* data, std::size_t bytes) {
  constexpr std::uintptr_t kPage = 4096;
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  if (bytes < kHugePage) return;
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(data) / kPage * kPage;
  const std::uintptr_t end =
      (reinterpret_cast<std::uintptr_t>(data) + bytes + kPage - 1) / kPage * kPage;
  static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
}

// A view where the strides allow one, else a copy.
at::Tensor AsRows(const at::Tensor& tensor) {
  const std::int64_t features = tensor.size(-1);
  return tensor.reshape({features == 0 ? 0 : tensor.numel() / features, features});
}

}  // namespace

TensorView ToView(const char* name, const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  Require(tensor.layout() == at::kStrided, name, " is not a dense tensor");
  Require(tensor.dim() >= 1 && tensor.dim() <= kMaxRank, name, " has ", tensor.dim(),
          " dimensions, expected 1 to ", kMaxRank);
  TensorView view;
  view.data = tensor.data_ptr();
  view.dtype = ToDType(name, tensor.scalar_type());
  view.device = ToDevice(name, tensor.device());
  view.rank = static_cast<int>(tensor.dim());
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
    view.sizes[static_cast<std::size_t>(dim)] = tensor.size(dim);
    view.strides[static_cast<std::size_t>(dim)] = tensor.stride(dim);
  }
  return view;
}

TensorView ToView(const char* name, const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? ToView(name, *tensor) : TensorView{};
}

std::string ShapeText(const at::Tensor& tensor) {
  std::string text;
  for (const c10::SymInt& size : tensor.sym_sizes()) {
    if (!text.empty()) text += ", ";
    const std::optional<std::int64_t> number = size.maybe_as_int();
    text += number ? StrCat(*number) : size.toSymNode()->str();
  }
  return "[" + text + "]";
}

TensorView Inputs::Packed(const char* name, const std::optional<at::Tensor>& tensor) {
  if (!tensor || !tensor->defined() || tensor->dim() == 0) return ToView(name, tensor);
  if (tensor->size(-1) <= 1 || tensor->stride(-1) == 1) return ToView(name, *tensor);
  // Not contiguous(): it takes an empty tensor of any strides for contiguous.
  kept_.push_back(tensor->clone(at::MemoryFormat::Contiguous));
  return ToView(name, kept_.back());
}

TensorView Inputs::Rows(const char* name, const at::Tensor& tensor) {
  kept_.push_back(AsRows(tensor));
  return Packed(name, kept_.back());
}

TensorView OutputRows(const char* name, const at::Tensor& tensor) {
  return tensor.defined() ? ToView(name, AsRows(tensor)) : TensorView{};
}

TensorView Flat(const char* name, const at::Tensor& tensor) {
  Require(tensor.is_contiguous(), name, " must be contiguous");
  return ToView(name, tensor.view({-1}));
}

at::Tensor EmptyLike(const at::Tensor& like, c10::SymIntArrayRef sizes, at::ScalarType type) {
  at::Tensor tensor = like.new_empty_symint(sizes, like.options().dtype(type));
  if (tensor.is_cpu()) AskForHugePages(tensor.data_ptr(), tensor.nbytes());
  return tensor;
}

at::Tensor EmptyGradient(bool needed, const std::optional<at::Tensor>& of) {
  if (!needed) return {};
  Require(of && of->defined(), "the gradient of an operand that is absent is asked for");
  return EmptyLike(*of, of->sym_sizes(), of->scalar_type());
}

at::ScalarType StatisticsType(const at::Tensor& storage) {
  return storage.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor Unwrap(const std::optional<at::Tensor>& tensor) { return tensor.value_or(at::Tensor()); }

std::optional<at::Tensor> Wrap(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

namespace {

// PyTorch's own threads, which spin for a while after each of its operators, do the library's work.
// Its loop over a tensor of as many elements as workers calls them: at::parallel_for is compiled
// where it is used, and would bring a second OpenMP into the process.
void RunInPyTorchsThreads(int workers, void (*work)(void*), void* context) {
  at::Tensor token = at::empty({workers}, at::kByte);
  auto loop = at::TensorIterator::nullary_op(token);
  loop.for_each([&](char**, const std::int64_t*, std::int64_t) { work(context); },
                /*grain_size=*/1);
}

// When the library is loaded and at no later time: in a process that was forked since, PyTorch's
// threads do not exist.
[[maybe_unused]] const bool lent = [] {
  SetParallelRunner(&RunInPyTorchsThreads);
  return true;
}();

}  // namespace

CallScope::CallScope(const at::Tensor& lead) : guard_(lead.device()), device_(lead.device()) {
  stream_.device = ToDevice("the first operand", device_);
  tuning::LoadTablesOnce(stream_.device);
  if (device_.is_cpu()) {
    const int threads = at::get_num_threads();
    if (threads != GetNumThreads()) SetNumThreads(threads);
    return;
  }
  const c10::impl::VirtualGuardImpl runtime(device_.type());
  stream_.handle = runtime.getStream(device_).native_handle();
}

Workspace CallScope::Allocate(std::size_t bytes) {
  if (bytes == 0) return {};
  // The CPU allocator aligns to 64 bytes only.
  const auto size = static_cast<std::int64_t>(bytes + kAlignment);
  scratch_ = at::empty({size}, at::TensorOptions().dtype(at::kByte).device(device_));
  if (device_.is_cpu()) AskForHugePages(scratch_.data_ptr(), scratch_.nbytes());
  const auto address = reinterpret_cast<std::uintptr_t>(scratch_.data_ptr());
  const std::uintptr_t aligned = (address + kAlignment - 1) / kAlignment * kAlignment;
  return {reinterpret_cast<void*>(aligned), bytes};
}

}  // namespace megafold::torch_ops
