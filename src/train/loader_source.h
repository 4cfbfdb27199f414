// The data pipeline's batches as tensors.
#pragma once

#include "data/dataset.h"
#include "data/loader.h"
#include "train/batch_source.h"

namespace megafold::train {

// The arrays of docs/features.md as tensors of the same names, shapes and types.
TrainBatch ToTrainBatch(data::Batch batch);

// Batches of `dataset`, which must outlive every source made.
BatchSourceFactory LoaderSource(const data::Dataset& dataset, int batch_size, std::uint64_t seed);

}  // namespace megafold::train
