#include "apps/megafold/prediction.h"

#include <cmath>

#include "data/dataset.h"
#include "data/loader.h"
#include "model/rigid.h"
#include "train/files.h"
#include "train/loader_source.h"
#include "train/safetensors.h"
#include "train/structure_file.h"

namespace megafold::apps {
namespace {

train::TensorDict WholeEntry(const RunConfig& config) {
  data::DataConfig whole = config.data;
  whole.entries = {config.prediction.entry};
  whole.crop_tokens = 0;
  const data::Dataset dataset(whole);
  const data::Example example = dataset.Load(0, config.train.seed);
  return train::ToTrainBatch(data::Collate(std::span(&example, 1))).features;
}

}  // namespace

PredictionFiles PredictEntry(const RunConfig& config, train::Trainer& trainer,
                             const std::filesystem::path& folder) {
  const std::string& entry = config.prediction.entry;
  const train::TensorDict features = WholeEntry(config);
  const at::Tensor raw = trainer.Predict(features, config.train.seed);  // [1, A, 3]
  const at::Tensor truth = features.at("atom_positions").to(at::kFloat);
  const at::Tensor resolved = features.at("atom_resolved").to(at::kFloat);
  const at::Tensor predicted =
      model::WeightedRigidAlign(raw.unsqueeze(1), truth.unsqueeze(1), resolved).squeeze(1);
  const at::Tensor squared = ((predicted - truth).square().sum(-1) * resolved).sum();

  std::filesystem::create_directories(folder);
  const at::Tensor atoms = resolved[0];
  train::WriteFileAtomically(
      folder / (entry + "_predicted.cif"),
      train::StructureMmcif(entry + "_predicted", features, predicted[0], atoms));
  train::WriteFileAtomically(folder / (entry + "_true.cif"),
                             train::StructureMmcif(entry + "_true", features, truth[0], atoms));
  train::WriteSafetensors(folder / (entry + ".safetensors"),
                          {{"predicted", predicted[0]},
                           {"true", truth[0]},
                           {"resolved", features.at("atom_resolved")[0]},
                           {"center_atom", features.at("token_center_atom")[0]},
                           {"asym_id", features.at("asym_id")[0]},
                           {"is_polymer", 1 - features.at("is_ligand")[0]}},
                          {{"entry", entry}});
  return {folder, std::sqrt((squared / resolved.sum().clamp_min(1)).item<double>())};
}

}  // namespace megafold::apps
