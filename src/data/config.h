// The `data:` section of a run's configuration.
#pragma once

#include <string>
#include <vector>

#include "config/fields.h"

namespace megafold::data {

// How often each kind of crop is drawn (AF3 supplement 2.7); the weights need not sum to 1, at
// least one must be positive.
struct CropWeights {
  double contiguous = 0.2;
  double spatial = 0.4;
  double spatial_interface = 0.4;

  template <class V>
  void Visit(V& v) {
    v("contiguous", contiguous, "weight of runs of tokens from shuffled chains",
      config::AtLeast(0));
    v("spatial", spatial, "weight of the tokens nearest to a random token", config::AtLeast(0));
    v("spatial_interface", spatial_interface,
      "weight of the tokens nearest to a random token at an interface", config::AtLeast(0));
  }
};

struct DataConfig {
  std::string root;                  // holds mmcif/ and msa/ (docs/data.md)
  std::string ccd;                   // empty: <root>/ccd
  std::vector<std::string> entries;  // empty: every file in <root>/mmcif
  int crop_tokens = 384;
  CropWeights crop;
  int msa_rows = 1024;
  int max_msa_rows = 16384;
  int loader_threads = 1;
  int prefetch = 2;
  int cache_mib = 1024;
  std::string feature_cache;  // empty: none

  template <class V>
  void Visit(V& v) {
    v("root", root, "folder with mmcif/ (entries) and msa/ (alignments)");
    v("ccd", ccd, "chemical components: a folder of .cif files or one file; empty: <root>/ccd");
    v("entries", entries, "entries to use, by file name without .cif; empty: all of <root>/mmcif");
    v("crop_tokens", crop_tokens, "tokens of a training example at most; 0 keeps entries whole",
      config::AtLeast(0));
    v("crop", crop, "how often each kind of crop is drawn");
    v("msa_rows", msa_rows, "alignment rows drawn per step, the query among them",
      config::AtLeast(1));
    v("max_msa_rows", max_msa_rows, "alignment rows kept of an entry, the query among them",
      config::AtLeast(1));
    v("loader_threads", loader_threads, "threads that prepare batches", config::Between(1, 256));
    v("prefetch", prefetch, "batches prepared ahead", config::Between(1, 1024));
    v("cache_mib", cache_mib, "memory for parsed entries, in MiB; 0 parses anew every time",
      config::AtLeast(0));
    v("feature_cache", feature_cache,
      "folder that keeps parsed entries from one run to the next; empty: none");
  }
};

}  // namespace megafold::data
