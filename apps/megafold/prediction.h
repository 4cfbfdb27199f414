// The prediction of one entry at a run's end.
#pragma once

#include <filesystem>
#include <string>

#include "apps/megafold/run_config.h"
#include "train/trainer.h"

namespace megafold::apps {

struct PredictionFiles {
  std::filesystem::path folder;
  double rmsd = 0;  // over resolved atoms, after the prediction was laid onto the true structure
};

// Predicts config.prediction.entry whole and writes to `folder`:
//   <entry>_predicted.cif, <entry>_true.cif   same atoms, same frame
//   <entry>.safetensors                       predicted, true [A, 3]; resolved [A];
//                                             center_atom, asym_id, is_polymer [N]
PredictionFiles PredictEntry(const RunConfig& config, train::Trainer& trainer,
                             const std::filesystem::path& folder);

}  // namespace megafold::apps
