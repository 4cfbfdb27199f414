#include "train/loader_source.h"

#include <cstring>

namespace megafold::train {
namespace {

at::ScalarType TypeOf(data::ArrayType type) {
  switch (type) {
    case data::ArrayType::kUInt8:
      return at::kByte;
    case data::ArrayType::kInt32:
      return at::kInt;
    case data::ArrayType::kFloat32:
      return at::kFloat;
  }
  return at::kByte;
}

at::Tensor ToTensor(const data::Array& array) {
  const at::Tensor tensor = at::empty(array.shape(), at::dtype(TypeOf(array.type())));
  const auto bytes = array.bytes();
  if (!bytes.empty()) std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

class Source : public BatchSource {
 public:
  Source(const data::Dataset& dataset, int batch_size, std::uint64_t seed, std::int64_t first)
      : loader_(dataset, batch_size, seed, static_cast<std::uint64_t>(first)) {}

  TrainBatch Next() override { return ToTrainBatch(loader_.Next()); }

  std::vector<SkippedEntry> Skipped() const override {
    std::vector<SkippedEntry> skipped;
    for (data::SkippedEntry& entry : loader_.skipped()) {
      skipped.push_back({std::move(entry.entry_id), std::move(entry.reason), entry.times});
    }
    return skipped;
  }

 private:
  data::Loader loader_;
};

}  // namespace

TrainBatch ToTrainBatch(data::Batch batch) {
  TrainBatch result;
  result.entry_ids = std::move(batch.entry_ids);
  for (const auto& [name, array] : batch.features) result.features.emplace(name, ToTensor(array));
  return result;
}

BatchSourceFactory LoaderSource(const data::Dataset& dataset, int batch_size, std::uint64_t seed) {
  return [&dataset, batch_size, seed](std::int64_t first) {
    return std::make_unique<Source>(dataset, batch_size, seed, first);
  };
}

}  // namespace megafold::train
