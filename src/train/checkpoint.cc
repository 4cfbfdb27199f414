#include "train/checkpoint.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "megafold/core/build_info.h"
#include "megafold/core/error.h"
#include "megafold/core/tensor_view.h"
#include "train/files.h"

namespace megafold::train {
namespace {

using Json = nlohmann::json;

constexpr int kFormat = 1;
constexpr const char* kStateFile = "state.json";
constexpr std::size_t kStateLimit = 1 << 20;
constexpr std::string_view kPrefix = "step-";

std::string FolderName(std::int64_t step) {
  std::array<char, 32> name{};
  std::snprintf(name.data(), name.size(), "step-%06lld", static_cast<long long>(step));
  return name.data();
}

std::optional<std::int64_t> StepOf(const std::filesystem::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || rest != end || step < 0) return std::nullopt;
  return step;
}

// Newest last.
std::vector<std::pair<std::int64_t, std::filesystem::path>> Finished(
    const std::filesystem::path& folder) {
  std::vector<std::pair<std::int64_t, std::filesystem::path>> found;
  if (!std::filesystem::is_directory(folder)) return found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (const auto step = StepOf(entry.path())) found.emplace_back(*step, entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string StateJson(const CheckpointState& state) {
  const Json json = {{"format", kFormat},
                     {"step", state.step},
                     {"batches", state.batches},
                     {"seed", state.seed},
                     {"megafold", std::string(Version())},
                     {"commit", std::string(GitCommit())}};
  return json.dump(2) + "\n";
}

void WriteText(const std::filesystem::path& file, const std::string& text) {
  FileWriter writer(file);
  writer.Write(text);
  writer.Finish();
}

// Read, checked, not yet copied.
class Pending {
 public:
  Pending(const std::filesystem::path& file, const NamedTensors& targets) : targets_(targets) {
    read_ = ReadSafetensors(file).tensors;
    for (const auto& [name, target] : targets) {
      const auto it = read_.find(name);
      if (it == read_.end()) {
        Fail(ErrorCode::kDataCorrupt, file.string(), ": has no tensor '", name,
             "', which this configuration's model wants");
      }
      const at::Tensor& tensor = it->second;
      if (tensor.sizes() != target.sizes() || tensor.scalar_type() != target.scalar_type()) {
        Fail(ErrorCode::kDataCorrupt, file.string(), ": '", name, "' is ",
             ShapeString(tensor.sizes()), " ", at::toString(tensor.scalar_type()),
             ", this configuration's model wants ", ShapeString(target.sizes()), " ",
             at::toString(target.scalar_type()));
      }
    }
    for (const auto& [name, tensor] : read_) {
      if (!targets.contains(name)) {
        Fail(ErrorCode::kDataCorrupt, file.string(), ": has the tensor '", name,
             "', which this configuration's model lacks");
      }
    }
  }

  void Copy() const {
    const at::NoGradGuard no_grad;
    for (const auto& [name, target] : targets_) target.copy_(read_.at(name));
  }

 private:
  const NamedTensors& targets_;
  NamedTensors read_;
};

}  // namespace

Checkpoints::Checkpoints(std::filesystem::path folder, int keep)
    : folder_(std::move(folder)), keep_(keep) {
  if (!std::filesystem::is_directory(folder_)) return;
  std::vector<std::filesystem::path> leftovers;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    if (entry.path().filename().string().starts_with(StrCat(".", kPrefix))) {
      leftovers.push_back(entry.path());
    }
  }
  for (const auto& leftover : leftovers) std::filesystem::remove_all(leftover);
}

std::filesystem::path Checkpoints::Save(const CheckpointState& state,
                                        const CheckpointTensors& tensors,
                                        const std::string& config_yaml) const {
  std::filesystem::create_directories(folder_);
  const std::filesystem::path target = folder_ / FolderName(state.step);
  if (std::filesystem::exists(target)) RemoveFolderAtomically(target);
  WriteFolderAtomically(target, [&](const std::filesystem::path& partial) {
    WriteSafetensors(partial / "model.safetensors", tensors.model);
    WriteSafetensors(partial / "ema.safetensors", tensors.ema);
    WriteSafetensors(partial / "optimizer.safetensors", tensors.optimizer);
    WriteText(partial / kStateFile, StateJson(state));
    WriteText(partial / "config.yaml", config_yaml);
  });
  const auto finished = Finished(folder_);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep_) < finished.size(); ++i) {
    RemoveFolderAtomically(finished[i].second);
  }
  return target;
}

std::optional<std::filesystem::path> Checkpoints::Latest() const {
  const auto finished = Finished(folder_);
  if (finished.empty()) return std::nullopt;
  return finished.back().second;
}

CheckpointState ReadCheckpointState(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / kStateFile;
  const Json json = Json::parse(ReadTextFile(file, kStateLimit), nullptr, false);
  const auto number = [&](const char* key) -> std::uint64_t {
    if (!json.is_object() || !json.contains(key) || !json[key].is_number_unsigned()) {
      Fail(ErrorCode::kDataCorrupt, file.string(), ": torn or foreign: no number '", key, "'");
    }
    return json[key].get<std::uint64_t>();
  };
  if (number("format") != kFormat) {
    Fail(ErrorCode::kDataCorrupt, file.string(), ": is of format ", number("format"),
         ", this version reads ", kFormat);
  }
  return {static_cast<std::int64_t>(number("step")), static_cast<std::int64_t>(number("batches")),
          number("seed")};
}

void LoadInto(const std::filesystem::path& file, const NamedTensors& tensors) {
  Pending(file, tensors).Copy();
}

CheckpointState LoadCheckpoint(const std::filesystem::path& folder,
                               const CheckpointTensors& tensors) {
  const CheckpointState state = ReadCheckpointState(folder);
  const Pending model(folder / "model.safetensors", tensors.model);
  const Pending ema(folder / "ema.safetensors", tensors.ema);
  const Pending optimizer(folder / "optimizer.safetensors", tensors.optimizer);
  model.Copy();
  ema.Copy();
  optimizer.Copy();
  return state;
}

}  // namespace megafold::train
