#include "data/dataset.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <vector>

#include "data/cache/feature_cache.h"
#include "data/cache/hash.h"
#include "data/ccd/dictionary.h"
#include "data/features/build_entry.h"
#include "data/features/example.h"
#include "data/io/text_file.h"
#include "data/loader/entry_cache.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

namespace fs = std::filesystem;

struct EntryFile {
  std::string id;
  fs::path file;
};

// The name without .cif or .cif.gz; empty for other files.
std::string EntryId(const fs::path& file) {
  const std::string name = file.filename().string();
  for (const std::string ending : {".cif", ".cif.gz"}) {
    if (name.size() > ending.size() && name.ends_with(ending)) {
      return name.substr(0, name.size() - ending.size());
    }
  }
  return "";
}

std::vector<EntryFile> ListEntries(const DataConfig& config) {
  const fs::path folder = fs::path(config.root) / "mmcif";
  if (!fs::is_directory(folder)) {
    Fail(ErrorCode::kNotFound, folder.string(),
         ": no such folder, expected the entries' .cif files");
  }
  std::map<std::string, fs::path> present;
  for (const auto& file : fs::directory_iterator(folder)) {
    const std::string id = EntryId(file.path());
    if (id.empty()) continue;
    const auto [at, added] = present.emplace(id, file.path());
    if (!added) {
      Fail(ErrorCode::kInvalidArgument, folder.string(), ": entry '", id, "' is there twice, as ",
           at->second.filename().string(), " and ", file.path().filename().string());
    }
  }
  if (present.empty()) {
    Fail(ErrorCode::kNotFound, folder.string(), ": empty folder, expected .cif or .cif.gz files");
  }
  std::vector<EntryFile> entries;
  for (const std::string& id : config.entries) {
    const auto found = present.find(id);
    if (found == present.end()) {
      Fail(ErrorCode::kNotFound, folder.string(), ": no file for entry '", id, "', expected ", id,
           ".cif or ", id, ".cif.gz");
    }
    entries.push_back({found->first, found->second});
  }
  if (!entries.empty()) return entries;
  for (const auto& [id, file] : present) entries.push_back({id, file});
  return entries;
}

fs::path DictionaryPath(const DataConfig& config) {
  return config.ccd.empty() ? fs::path(config.root) / "ccd" : fs::path(config.ccd);
}

}  // namespace

struct Dataset::Impl {
  explicit Impl(const DataConfig& settings)
      : config(settings),
        entries(ListEntries(settings)),
        dictionary(DictionaryPath(settings)),
        alignments(fs::path(settings.root) / "msa"),
        cache(static_cast<std::size_t>(settings.cache_mib) << 20) {
    if (settings.feature_cache.empty()) return;
    disk.emplace(settings.feature_cache);
    dictionary_fingerprint = dictionary.Fingerprint();
  }

  std::shared_ptr<const Entry> Get(std::size_t index) {
    Require(index < entries.size(), "Dataset: entry ", index, " of ", entries.size());
    return cache.Get(index, [&] { return disk ? Cached(entries[index]) : Build(entries[index]); });
  }

  Entry Build(const EntryFile& entry) const {
    return BuildEntry(entry.id, entry.file, dictionary, alignments, config.max_msa_rows);
  }

  Entry Cached(const EntryFile& file) const {
    const std::uint64_t key = KeyOf(file);
    if (std::optional<Entry> entry = disk->Find(file.id, key)) {
      entry->summary.file = file.file.string();  // the same content may have moved
      return std::move(*entry);
    }
    Entry entry = Build(file);
    disk->Store(file.id, key, entry);
    return entry;
  }

  // Over everything that the entry follows from.
  std::uint64_t KeyOf(const EntryFile& entry) const {
    std::uint64_t key =
        Mix(dictionary_fingerprint, static_cast<std::uint64_t>(config.max_msa_rows));
    key = HashBytes(ReadBytes(entry.file), key);
    for (const fs::path& alignment : alignments.OfEntry(entry.id)) {
      key = HashBytes(ReadBytes(alignment), HashBytes(alignment.filename().string(), key));
    }
    return key;
  }

  DataConfig config;
  std::vector<EntryFile> entries;
  ComponentDictionary dictionary;
  AlignmentFolder alignments;
  EntryCache cache;
  std::optional<FeatureCache> disk;
  std::uint64_t dictionary_fingerprint = 0;
};

Dataset::Dataset(const DataConfig& config) {
  const CropWeights& crop = config.crop;
  Require(crop.contiguous + crop.spatial + crop.spatial_interface > 0,
          "data.crop: every weight is 0, expected a positive one");
  impl_ = std::make_unique<Impl>(config);
}

Dataset::~Dataset() = default;

const DataConfig& Dataset::config() const { return impl_->config; }

std::size_t Dataset::size() const { return impl_->entries.size(); }

const std::string& Dataset::id(std::size_t index) const {
  Require(index < size(), "Dataset: entry ", index, " of ", size());
  return impl_->entries[index].id;
}

Example Dataset::Load(std::size_t index, std::uint64_t seed) const {
  return MakeExample(*impl_->Get(index), impl_->config, seed);
}

EntrySummary Dataset::Inspect(std::size_t index) const { return impl_->Get(index)->summary; }

}  // namespace megafold::data
