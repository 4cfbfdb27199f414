#include <algorithm>
#include <cstring>

#include "data/features/residue_classes.h"
#include "data/loader.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

// Copies `from` into the low corner of one batch slot of `to`; both row-major, sizes in elements of
// `width` bytes from dimension `dimension` on.
void CopyCorner(const Array& from, std::size_t dimension, std::size_t width,
                const std::byte* source, std::span<const std::int64_t> padded, std::byte* target) {
  if (dimension == from.shape().size()) {
    std::memcpy(target, source, width);
    return;
  }
  std::size_t source_stride = width;
  std::size_t target_stride = width;
  for (std::size_t d = dimension + 1; d < from.shape().size(); ++d) {
    source_stride *= static_cast<std::size_t>(from.shape()[d]);
    target_stride *= static_cast<std::size_t>(padded[d]);
  }
  const auto count = static_cast<std::size_t>(from.shape()[dimension]);
  if (source_stride == target_stride && count > 0) {
    // Everything below is full: one block. Not so when an inner dimension is padded.
    bool full = true;
    for (std::size_t d = dimension + 1; d < from.shape().size(); ++d) {
      full = full && from.shape()[d] == padded[d];
    }
    if (full) {
      std::memcpy(target, source, count * source_stride);
      return;
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    CopyCorner(from, dimension + 1, width, source + i * source_stride, padded,
               target + i * target_stride);
  }
}

Array Stack(const std::string& name, std::span<const Example> examples) {
  const Array& first = examples.front().features.at(name);
  std::vector<std::int64_t> padded(first.shape().size());
  for (const Example& example : examples) {
    const auto found = example.features.find(name);
    Require(found != example.features.end() && found->second.type() == first.type() &&
                found->second.shape().size() == padded.size(),
            "Collate: feature '", name, "' of ", example.entry_id, " differs from that of ",
            examples.front().entry_id, " in type or dimensions");
    for (std::size_t d = 0; d < padded.size(); ++d) {
      padded[d] = std::max(padded[d], found->second.shape()[d]);
    }
  }
  std::vector<std::int64_t> shape = {static_cast<std::int64_t>(examples.size())};
  shape.insert(shape.end(), padded.begin(), padded.end());
  Array batch(first.type(), shape);
  if (name == "msa" || name == "template_restype") {
    std::ranges::fill(batch.values<std::uint8_t>(), kGap);
  }
  const std::size_t width = first.type() == ArrayType::kUInt8 ? 1 : 4;
  const std::size_t slot = batch.bytes().size() / examples.size();
  for (std::size_t i = 0; i < examples.size(); ++i) {
    const Array& array = examples[i].features.at(name);
    if (array.numel() == 0) continue;
    CopyCorner(array, 0, width, array.bytes().data(), padded, batch.bytes().data() + i * slot);
  }
  return batch;
}

}  // namespace

Batch Collate(std::span<const Example> examples) {
  Require(!examples.empty(), "Collate: no example");
  Batch batch;
  for (const Example& example : examples) {
    batch.entry_ids.push_back(example.entry_id);
    Require(example.features.size() == examples.front().features.size(),
            "Collate: ", example.entry_id, " has ", example.features.size(), " features, expected ",
            examples.front().features.size(), " as ", examples.front().entry_id);
  }
  for (const auto& [name, array] : examples.front().features) {
    batch.features.emplace(name, Stack(name, examples));
  }
  return batch;
}

}  // namespace megafold::data
