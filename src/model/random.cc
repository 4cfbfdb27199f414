#include "model/random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

namespace megafold::model {

namespace {

// The finaliser of SplitMix64: every bit of the argument reaches every bit of the result.
std::uint64_t Mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

std::uint64_t DeriveSeed(std::uint64_t seed, std::uint64_t stream) {
  return Mix(Mix(seed) ^ stream);
}

std::uint64_t DeriveSeed(std::uint64_t seed, std::string_view stream) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : stream) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return DeriveSeed(seed, hash);
}

at::Generator MakeGenerator(const at::Device& device, std::uint64_t seed) {
  at::Generator generator = device.is_cpu() ? at::detail::createCPUGenerator()
                                            : at::globalContext()
                                                  .getAcceleratorHooksInterface(device.type())
                                                  .getNewGenerator(device.index());
  generator.set_current_seed(seed);
  return generator;
}

std::int64_t DrawInteger(std::uint64_t seed, std::int64_t low, std::int64_t high) {
  const auto count = static_cast<std::uint64_t>(high - low + 1);
  return low + static_cast<std::int64_t>(Mix(seed) % count);
}

}  // namespace megafold::model
