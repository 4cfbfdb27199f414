// The prediction of one entry at a run's end.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "apps/megafold/run_config.h"
#include "train/trainer.h"

namespace megafold::apps {

struct PredictionFiles {
  std::filesystem::path folder;
  // Of each sample, nearest first, in Angstrom: over resolved atoms, after the sample was laid onto
  // the true structure.
  std::vector<double> rmsds;
  int right_handed = 0;  // samples that lie nearer to the true structure than to its mirror image
};

// config.prediction.entry whole, as the model receives it. Errors as the data set's: read it before
// training, not after hours of it.
train::TensorDict ReadWholeEntry(const RunConfig& config);

// Samples that entry config.prediction.samples times and writes the sample nearest to the true
// structure to `folder`:
//   <entry>_predicted.cif, <entry>_true.cif   same atoms, same frame
//   <entry>.safetensors                       predicted, true [A, 3]; resolved [A];
//                                             center_atom, asym_id, is_polymer [N]
PredictionFiles PredictEntry(const RunConfig& config, const train::TensorDict& features,
                             train::Trainer& trainer, const std::filesystem::path& folder);

}  // namespace megafold::apps
