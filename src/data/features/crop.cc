#include "data/features/crop.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "megafold/core/error.h"

namespace megafold::data {
namespace {

constexpr float kInterfaceDistance = 15.0F;

const Atom& CenterOf(const Entry& entry, std::int32_t token) {
  const Token& of = entry.tokens[static_cast<std::size_t>(token)];
  return entry.atoms[static_cast<std::size_t>(of.center_atom)];
}

// The resolved tokens nearest to `center`.
std::vector<std::int32_t> Nearest(const Entry& entry, std::int32_t center, std::int64_t count) {
  const Vec3 position = CenterOf(entry, center).position;
  std::vector<std::pair<float, std::int32_t>> by_distance;
  for (const std::int32_t i : entry.resolved_tokens) {
    by_distance.emplace_back(SquaredDistance(position, CenterOf(entry, i).position), i);
  }
  std::sort(by_distance.begin(), by_distance.end());
  const auto taken = std::min(static_cast<std::size_t>(count), by_distance.size());
  std::vector<std::int32_t> tokens;
  for (std::size_t i = 0; i < taken; ++i) tokens.push_back(by_distance[i].second);
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

std::int32_t Draw(const std::vector<std::int32_t>& values, Random& random) {
  return values[random.Below(values.size())];
}

}  // namespace

void FindCropCenters(Entry* entry) {
  const auto asym = [&](std::int32_t i) {
    return entry->tokens[static_cast<std::size_t>(i)].asym_id;
  };
  entry->resolved_tokens.clear();
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(entry->tokens.size()); ++i) {
    if (CenterOf(*entry, i).resolved) entry->resolved_tokens.push_back(i);
  }
  entry->interface_tokens.clear();
  for (const std::int32_t i : entry->resolved_tokens) {
    const Vec3& own = CenterOf(*entry, i).position;
    const auto& others = entry->resolved_tokens;
    const bool near = std::any_of(others.begin(), others.end(), [&](std::int32_t j) {
      return asym(j) != asym(i) && SquaredDistance(own, CenterOf(*entry, j).position) <=
                                       kInterfaceDistance * kInterfaceDistance;
    });
    if (near) entry->interface_tokens.push_back(i);
  }
}

std::vector<std::int32_t> ContiguousCrop(const Entry& entry, std::int64_t count, Random& random) {
  struct Run {
    std::int64_t first = 0;
    std::int64_t size = 0;
  };
  std::vector<Run> chains(entry.chains.size());
  for (std::size_t i = 0; i < entry.tokens.size(); ++i) {
    Run& chain = chains[static_cast<std::size_t>(entry.tokens[i].asym_id)];
    if (chain.size++ == 0) chain.first = static_cast<std::int64_t>(i);
  }
  random.Shuffle(chains);
  auto after = static_cast<std::int64_t>(entry.tokens.size());  // tokens of the chains to come
  std::int64_t wanted = count;
  std::vector<std::int32_t> tokens;
  for (const Run& chain : chains) {
    after -= chain.size;
    const std::int64_t most = std::min(wanted, chain.size);
    const std::int64_t least = std::min(chain.size, std::max<std::int64_t>(0, wanted - after));
    const auto size = least + static_cast<std::int64_t>(
                                  random.Below(static_cast<std::uint64_t>(most - least) + 1));
    const auto start =
        static_cast<std::int64_t>(random.Below(static_cast<std::uint64_t>(chain.size - size) + 1));
    for (std::int64_t i = 0; i < size; ++i) {
      tokens.push_back(static_cast<std::int32_t>(chain.first + start + i));
    }
    wanted -= size;
  }
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

std::vector<std::int32_t> SpatialCrop(const Entry& entry, std::int64_t count, Random& random) {
  if (entry.resolved_tokens.empty()) return ContiguousCrop(entry, count, random);
  return Nearest(entry, Draw(entry.resolved_tokens, random), count);
}

std::vector<std::int32_t> SpatialInterfaceCrop(const Entry& entry, std::int64_t count,
                                               Random& random) {
  if (entry.interface_tokens.empty()) return SpatialCrop(entry, count, random);
  return Nearest(entry, Draw(entry.interface_tokens, random), count);
}

std::vector<std::int32_t> DrawCrop(const Entry& entry, std::int64_t count,
                                   const CropWeights& weights, Random& random) {
  if (count == 0 || static_cast<std::int64_t>(entry.tokens.size()) <= count) {
    std::vector<std::int32_t> all(entry.tokens.size());
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  const double total = weights.contiguous + weights.spatial + weights.spatial_interface;
  const double draw = random.Uniform() * total;
  if (draw < weights.contiguous) {
    auto tokens = ContiguousCrop(entry, count, random);
    const bool resolved = std::any_of(tokens.begin(), tokens.end(),
                                      [&](std::int32_t i) { return CenterOf(entry, i).resolved; });
    return resolved ? tokens : SpatialCrop(entry, count, random);
  }
  if (draw < weights.contiguous + weights.spatial) return SpatialCrop(entry, count, random);
  return SpatialInterfaceCrop(entry, count, random);
}

}  // namespace megafold::data
