// Milliseconds per Dataset::Load: the first (files are read) and the later ones (from the cache),
// for every entry of a data root, with the default crop of 384 tokens and 1,024 alignment rows.
//
//   build/cpu/bin/data_load_benchmark <root> [components] [later loads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "data/dataset.h"

namespace megafold::data {
namespace {

template <typename Call>
double Milliseconds(Call call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

int Main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: data_load_benchmark <root> [components] [later loads]\n");
    return 2;
  }
  DataConfig config;
  config.root = arguments[1];
  if (count > 2) config.ccd = arguments[2];
  const int loads = count > 3 ? std::max(1, std::atoi(arguments[3])) : 50;
  const Dataset dataset(config);
  std::printf("%-20s %8s %8s %10s %14s\n", "entry", "tokens", "rows", "first ms", "later ms, med.");
  for (std::size_t i = 0; i < dataset.size(); ++i) {
    const double first = Milliseconds([&] { dataset.Load(i, 0); });
    std::vector<double> later;
    for (int load = 1; load <= loads; ++load) {
      later.push_back(Milliseconds([&] { dataset.Load(i, static_cast<std::uint64_t>(load)); }));
    }
    std::nth_element(later.begin(), later.begin() + loads / 2, later.end());
    const EntrySummary summary = dataset.Inspect(i);
    std::printf("%-20s %8lld %8lld %10.1f %14.3f\n", dataset.id(i).c_str(),
                static_cast<long long>(summary.tokens), static_cast<long long>(summary.msa_rows),
                first, later[static_cast<std::size_t>(loads / 2)]);
  }
  return 0;
}

}  // namespace
}  // namespace megafold::data

int main(int count, char** arguments) {
  try {
    return megafold::data::Main(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
