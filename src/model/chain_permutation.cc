#include "model/chain_permutation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

#include "model/rigid.h"

namespace megafold::model {

namespace {

constexpr std::int64_t kAnchorAtoms = 3;  // what a rigid motion needs

struct Chain {
  std::int64_t entity = 0;
  std::int64_t copies = 0;
  bool polymer = false;
  std::vector<std::int64_t> tokens;
};

using Assignment = std::vector<std::int64_t>;  // by chain, the number of the copy it takes

// One entry of a batch, on the CPU, by the centre atoms of its tokens.
class EntryPermutation {
 public:
  // predicted [N, 3], truth [K, N, 3], resolved [K, N] of 0 and 1, all float32.
  EntryPermutation(std::vector<Chain> chains, at::Tensor predicted, at::Tensor truth,
                   at::Tensor resolved)
      : chains_(std::move(chains)),
        predicted_(std::move(predicted)),
        truth_(std::move(truth)),
        resolved_(std::move(resolved)) {
    for (const Chain& chain : chains_) index_.push_back(at::tensor(chain.tokens, at::kLong));
  }

  std::optional<Assignment> Best() const {
    const std::optional<std::size_t> anchor = Anchor();
    if (!anchor) return std::nullopt;
    std::optional<Assignment> best;
    double least = std::numeric_limits<double>::infinity();
    for (std::int64_t copy = 0; copy < chains_[*anchor].copies; ++copy) {
      if (ResolvedAtoms(*anchor, copy) < kAnchorAtoms) continue;
      Assignment assignment = AroundAnchor(*anchor, copy);
      const double deviation = Deviation(assignment);
      if (deviation < least) {
        least = deviation;
        best = std::move(assignment);
      }
    }
    return best;
  }

 private:
  double ResolvedAtoms(std::size_t chain, std::int64_t copy) const {
    return resolved_[copy].index_select(0, index_[chain]).sum().item<double>();
  }

  std::optional<std::size_t> Anchor() const {
    std::optional<std::size_t> anchor;
    const auto order = [&](std::size_t c) {
      return std::tuple(chains_[c].copies, -static_cast<std::int64_t>(chains_[c].tokens.size()));
    };
    for (std::size_t c = 0; c < chains_.size(); ++c) {
      if (!chains_[c].polymer || (anchor && order(c) >= order(*anchor))) continue;
      for (std::int64_t copy = 0; copy < chains_[c].copies; ++copy) {
        if (ResolvedAtoms(c, copy) >= kAnchorAtoms) anchor = c;
      }
    }
    return anchor;
  }

  // All truth [K, N, 3] in the frame in which `copy` of the anchor lies best on its prediction.
  at::Tensor LaidOnto(std::size_t anchor, std::int64_t copy) const {
    const std::int64_t rows = truth_.size(0), tokens = truth_.size(1);
    // The motion follows from the anchor's tokens alone: all others have no weight. The copies are
    // moved together by standing behind the anchor's as more points.
    at::Tensor weights = at::zeros({1, rows, tokens});
    weights[0][copy].index_copy_(0, index_[anchor],
                                 resolved_[copy].index_select(0, index_[anchor]));
    const at::Tensor target = predicted_.unsqueeze(0).expand({rows, tokens, 3});
    return WeightedRigidAlign(truth_.reshape({1, 1, rows * tokens, 3}),
                              target.reshape({1, 1, rows * tokens, 3}),
                              weights.view({1, rows * tokens}))
        .view({rows, tokens, 3});
  }

  Assignment AroundAnchor(std::size_t anchor, std::int64_t anchor_copy) const {
    // Mean squared deviation of every copy [K] for a chain; nothing resolved comes last.
    const at::Tensor squared = (LaidOnto(anchor, anchor_copy) - predicted_).square().sum(-1);
    std::map<std::int64_t, std::set<std::int64_t>> taken;  // by entity
    Assignment assignment(chains_.size(), 0);
    for (const std::size_t c : LongestFirst(anchor)) {
      const at::Tensor here = resolved_.index_select(1, index_[c]);
      const at::Tensor cost = ((squared.index_select(1, index_[c]) * here).sum(1) / here.sum(1))
                                  .nan_to_num(std::numeric_limits<float>::max())
                                  .contiguous();
      std::int64_t nearest = c == anchor ? anchor_copy : -1;
      for (std::int64_t copy = 0; c != anchor && copy < chains_[c].copies; ++copy) {
        if (taken[chains_[c].entity].contains(copy)) continue;
        const float* costs = cost.const_data_ptr<float>();
        if (nearest < 0 || costs[copy] < costs[nearest]) nearest = copy;
      }
      taken[chains_[c].entity].insert(nearest);
      assignment[c] = nearest;
    }
    return assignment;
  }

  // The anchor, then the others by their number of tokens.
  std::vector<std::size_t> LongestFirst(std::size_t anchor) const {
    std::vector<std::size_t> order{anchor};
    for (std::size_t c = 0; c < chains_.size(); ++c) {
      if (c != anchor) order.push_back(c);
    }
    std::stable_sort(order.begin() + 1, order.end(), [&](std::size_t a, std::size_t b) {
      return chains_[a].tokens.size() > chains_[b].tokens.size();
    });
    return order;
  }

  double Deviation(const Assignment& assignment) const {
    at::Tensor truth = at::zeros_like(predicted_);
    at::Tensor weights = at::zeros({predicted_.size(0)});
    for (std::size_t c = 0; c < chains_.size(); ++c) {
      truth.index_copy_(0, index_[c], truth_[assignment[c]].index_select(0, index_[c]));
      weights.index_copy_(0, index_[c], resolved_[assignment[c]].index_select(0, index_[c]));
    }
    const at::Tensor aligned = WeightedRigidAlign(
        truth.view({1, 1, -1, 3}), predicted_.view({1, 1, -1, 3}), weights.unsqueeze(0));
    const at::Tensor squared = (aligned[0][0] - predicted_).square().sum(-1) * weights;
    return (squared.sum() / weights.sum()).item<double>();
  }

  std::vector<Chain> chains_;
  std::vector<at::Tensor> index_;  // by chain, its tokens
  at::Tensor predicted_, truth_, resolved_;
};

// The real tokens of entry `b` by chain; `features` on the CPU.
std::vector<Chain> ChainsOf(const Features& features, std::int64_t b) {
  const auto column = [&](const char* name) {
    return Get(features, name)[b].to(at::kLong).contiguous();
  };
  const at::Tensor exists = column("token_mask"), asym = column("asym_id"),
                   entity = column("entity_id"), copies = column("entity_copies"),
                   ligand = column("is_ligand");
  std::map<std::int64_t, Chain> by_asym;
  for (std::int64_t i = 0; i < asym.size(0); ++i) {
    const auto at = [i](const at::Tensor& x) { return x.const_data_ptr<std::int64_t>()[i]; };
    if (at(exists) == 0) continue;
    Chain& chain = by_asym[at(asym)];
    chain.entity = at(entity);
    chain.copies = at(copies);
    chain.polymer = at(ligand) == 0;
    chain.tokens.push_back(i);
  }
  std::vector<Chain> chains;
  for (auto& [id, chain] : by_asym) chains.push_back(std::move(chain));
  return chains;
}

}  // namespace

bool HasChainCopies(const Features& features) {
  return Get(features, "atom_copy_positions").size(1) > 0;
}

Features PermuteChains(const Features& features, const at::Tensor& predicted) {
  const at::NoGradGuard no_grad;
  const at::Device device = predicted.device();
  Features host;
  for (const char* name : {"token_mask", "asym_id", "entity_id", "entity_copies", "is_ligand",
                           "token_center_atom", "atom_to_token", "atom_copy_positions",
                           "atom_copy_resolved", "atom_positions", "atom_resolved"}) {
    host[name] = Get(features, name).to(at::kCPU);
  }
  const at::Tensor where = predicted.to(at::kCPU, at::kFloat);
  at::Tensor positions = host["atom_positions"].clone(), resolved = host["atom_resolved"].clone();
  for (std::int64_t b = 0; b < where.size(0); ++b) {
    const at::Tensor center = host["token_center_atom"][b].to(at::kLong);
    const at::Tensor copies = host["atom_copy_positions"][b];
    const at::Tensor copies_resolved = host["atom_copy_resolved"][b];
    const std::vector<Chain> chains = ChainsOf(host, b);
    if (std::ranges::none_of(chains, [](const Chain& chain) { return chain.copies > 1; })) continue;
    const std::optional<Assignment> best =
        EntryPermutation(chains, where[b].index_select(0, center), copies.index_select(1, center),
                         copies_resolved.index_select(1, center).to(at::kFloat))
            .Best();
    if (!best) continue;
    at::Tensor copy_of_token = at::zeros({center.size(0)}, at::kLong);
    at::Tensor real = at::zeros({center.size(0)}, at::kBool);
    for (std::size_t c = 0; c < chains.size(); ++c) {
      const at::Tensor tokens = at::tensor(chains[c].tokens, at::kLong);
      copy_of_token.index_fill_(0, tokens, (*best)[c]);
      real.index_fill_(0, tokens, true);
    }
    const at::Tensor token = host["atom_to_token"][b].to(at::kLong);
    const at::Tensor copy = copy_of_token.index_select(0, token).unsqueeze(0);
    const at::Tensor keep = real.index_select(0, token);
    positions[b] = at::where(
        keep.unsqueeze(-1),
        copies.gather(0, copy.unsqueeze(-1).expand({1, copy.size(1), 3})).squeeze(0), positions[b]);
    resolved[b] = at::where(keep, copies_resolved.gather(0, copy).squeeze(0), resolved[b]);
  }
  Features permuted = features;
  permuted["atom_positions"] = positions.to(device);
  permuted["atom_resolved"] = resolved.to(device);
  return permuted;
}

}  // namespace megafold::model
