#include "model/attention_shapes.h"

#include <tuple>

#include "megafold/core/error.h"

namespace megafold::model {
namespace {

std::int64_t HeadWidth(const char* use, std::int64_t width, std::int64_t heads) {
  Require(heads > 0 && width % heads == 0, use, ": ", heads, " heads do not divide the width ",
          width);
  return width / heads;
}

auto SizesOf(const AttentionShape& shape) {
  return std::tie(shape.batch, shape.rows, shape.queries, shape.keys, shape.heads, shape.dim);
}

void Add(const AttentionShape& shape, std::vector<AttentionShape>* shapes) {
  if (shape.batch == 0) return;
  for (AttentionShape& known : *shapes) {
    if (SizesOf(known) == SizesOf(shape)) {
      known.use += ", " + shape.use;
      return;
    }
  }
  shapes->push_back(shape);
}

}  // namespace

std::vector<AttentionShape> AttentionShapes(const ModelConfig& config, const BatchSizes& sizes) {
  std::vector<AttentionShape> shapes;
  const std::int64_t n = sizes.tokens;
  const auto triangle = [&](const char* use, std::int64_t batch, std::int64_t heads,
                            std::int64_t width) {
    Add({use, batch, n, n, n, heads, HeadWidth(use, width, heads)}, &shapes);
  };
  const auto tokens = [&](const char* use, std::int64_t rows, std::int64_t heads,
                          std::int64_t width) {
    Add({use, sizes.batch, rows, n, n, heads, HeadWidth(use, width, heads)}, &shapes);
  };
  const AtomConfig& atom = config.atom;
  const std::int64_t windows = (sizes.atoms + atom.window_queries - 1) / atom.window_queries;
  const auto atoms = [&](const char* use, std::int64_t rows) {
    Add({use, sizes.batch * windows, rows, atom.window_queries, atom.window_keys, atom.heads,
         HeadWidth(use, atom.c_atom, atom.heads)},
        &shapes);
  };
  triangle("triangle attention", sizes.batch, config.pairformer.pair_heads, config.c_z);
  triangle("templates' triangle attention", sizes.batch * sizes.templates, config.templates.heads,
           config.templates.channels);
  tokens("single attention", 1, config.pairformer.single_heads, config.c_s);
  tokens("diffusion transformer", config.diffusion.samples, config.diffusion.heads,
         config.diffusion.c_token);
  atoms("input embedder's atom windows", 1);
  atoms("diffusion module's atom windows", config.diffusion.samples);
  return shapes;
}

}  // namespace megafold::model
