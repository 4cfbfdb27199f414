// Randomness that follows from a seed alone: no global generator is read or moved.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string_view>

namespace megafold::model {

// A seed for the part `stream` of whatever `seed` seeds; distinct streams are independent.
std::uint64_t DeriveSeed(std::uint64_t seed, std::uint64_t stream);
std::uint64_t DeriveSeed(std::uint64_t seed, std::string_view stream);

// A generator of `device` (any device that PyTorch can draw on), seeded.
at::Generator MakeGenerator(const at::Device& device, std::uint64_t seed);

// An integer in [low, high], the same on every device.
std::int64_t DrawInteger(std::uint64_t seed, std::int64_t low, std::int64_t high);

}  // namespace megafold::model
