// Where memory lives and where work is queued. No vendor header is needed to name either.
#pragma once

#include <cstdint>

namespace megafold {

enum class DeviceType : std::uint8_t { kCpu, kCuda, kHip };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

constexpr const char* Name(DeviceType type) {
  switch (type) {
    case DeviceType::kCpu: return "cpu";
    case DeviceType::kCuda: return "cuda";
    case DeviceType::kHip: return "hip";
  }
  return "unknown";
}

// A queue of work on `device`. `handle` is a cudaStream_t or hipStream_t for a GPU (null is its default stream) and is
// not used on the CPU, where every operator has finished when it returns.
struct Stream {
  Device device;
  void* handle = nullptr;
};

}  // namespace megafold
