#include "apps/megafold/prediction.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "data/dataset.h"
#include "data/loader.h"
#include "model/rigid.h"
#include "train/files.h"
#include "train/loader_source.h"
#include "train/safetensors.h"
#include "train/structure_file.h"

namespace megafold::apps {
namespace {

struct Aligned {
  at::Tensor positions;  // [A, 3], in the frame of the true structure
  double rmsd = 0;
};

Aligned LayOnto(const at::Tensor& sample, const at::Tensor& truth, const at::Tensor& resolved) {
  const at::Tensor aligned =
      model::WeightedRigidAlign(sample.unsqueeze(1), truth.unsqueeze(1), resolved).squeeze(1);
  const at::Tensor squared = ((aligned - truth).square().sum(-1) * resolved).sum();
  return {aligned[0], std::sqrt((squared / resolved.sum().clamp_min(1)).item<double>())};
}

}  // namespace

train::TensorDict ReadWholeEntry(const RunConfig& config) {
  data::DataConfig whole = config.data;
  whole.entries = {config.prediction.entry};
  whole.crop_tokens = 0;
  const data::Dataset dataset(whole);
  const data::Example example = dataset.Load(0, config.train.seed);
  return train::ToTrainBatch(data::Collate(std::span(&example, 1))).features;
}

PredictionFiles PredictEntry(const RunConfig& config, const train::TensorDict& features,
                             train::Trainer& trainer, const std::filesystem::path& folder) {
  const std::string& entry = config.prediction.entry;
  const at::Tensor truth = features.at("atom_positions").to(at::kFloat);
  const at::Tensor resolved = features.at("atom_resolved").to(at::kFloat);
  PredictionFiles files;
  files.folder = folder;
  Aligned nearest;
  for (int k = 0; k < config.prediction.samples; ++k) {
    const at::Tensor sample =
        trainer.Predict(features, config.train.seed + static_cast<std::uint64_t>(k));  // [1, A, 3]
    Aligned aligned = LayOnto(sample, truth, resolved);
    files.rmsds.push_back(aligned.rmsd);
    if (aligned.rmsd < LayOnto(-sample, truth, resolved).rmsd) ++files.right_handed;
    if (k == 0 || aligned.rmsd < nearest.rmsd) nearest = std::move(aligned);
  }
  std::sort(files.rmsds.begin(), files.rmsds.end());

  std::filesystem::create_directories(folder);
  const at::Tensor atoms = resolved[0];
  train::WriteFileAtomically(
      folder / (entry + "_predicted.cif"),
      train::StructureMmcif(entry + "_predicted", features, nearest.positions, atoms));
  train::WriteFileAtomically(folder / (entry + "_true.cif"),
                             train::StructureMmcif(entry + "_true", features, truth[0], atoms));
  train::WriteSafetensors(folder / (entry + ".safetensors"),
                          {{"predicted", nearest.positions},
                           {"true", truth[0]},
                           {"resolved", features.at("atom_resolved")[0]},
                           {"center_atom", features.at("token_center_atom")[0]},
                           {"asym_id", features.at("asym_id")[0]},
                           {"is_polymer", 1 - features.at("is_ligand")[0]}},
                          {{"entry", entry}, {"samples", std::to_string(files.rmsds.size())}});
  return files;
}

}  // namespace megafold::apps
