#include "train/device.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <limits>

#include "megafold/core/error.h"
#include "megafold/core/threads.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace megafold::train {
namespace {

at::DeviceIndex CountOf(at::DeviceType type) {
  return at::accelerator::getAccelerator() == type ? at::accelerator::deviceCount()
                                                   : at::DeviceIndex{0};
}

}  // namespace

at::Device PickDevice(const std::string& name) {
  const auto accelerator = at::accelerator::getAccelerator();
  const bool present = accelerator && at::accelerator::deviceCount() > 0;
  if (name == "auto") return present ? at::Device(*accelerator, 0) : at::Device(at::kCPU);
  at::Device device(at::kCPU);
  try {
    device = at::Device(name);
  } catch (const c10::Error&) {
    Fail(ErrorCode::kInvalidArgument, "train.device is '", name,
         "', expected auto, cpu, cuda or cuda:N");
  }
  if (device.is_cpu()) return at::Device(at::kCPU);
  const at::DeviceIndex index = device.has_index() ? device.index() : at::DeviceIndex{0};
  Require(index < CountOf(device.type()), "train.device is '", name,
          "', but PyTorch here has only: ", AvailableDevices());
  return at::Device(device.type(), index);
}

std::string AvailableDevices() {
  const auto accelerator = at::accelerator::getAccelerator();
  const int count = accelerator ? at::accelerator::deviceCount() : 0;
  if (count == 0) return "cpu";
  return StrCat("cpu, ", count, " x ", c10::DeviceTypeName(*accelerator, /*lower_case=*/true));
}

void SetThreads(int threads) {
  if (threads > 0) at::set_num_threads(threads);
  SetNumThreads(at::get_num_threads());
}

void KeepFreedMemory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
#endif
}

std::int64_t PeakHostMemory() {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  constexpr std::int64_t kKiB = 1024;  // Linux counts in KiB
  return usage.ru_maxrss * kKiB;
}

std::int64_t PeakDeviceMemory(const at::Device& device) {
  const auto stats = at::accelerator::getDeviceStats(device.index());
  return stats.reserved_bytes[static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE)]
      .peak;
}

}  // namespace megafold::train
