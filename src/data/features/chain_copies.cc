#include "data/features/chain_copies.h"

#include <algorithm>
#include <span>

namespace megafold::data {
namespace {

using ResidueAtoms = std::span<const Atom>;

// The residues that have atoms; copies of an entity have the same ones in the same order.
struct ChainResidues {
  std::vector<std::vector<ResidueAtoms>> residues;  // of each chain
  std::vector<std::size_t> place_of_uid;            // ref_space_uid -> place in its chain
};

std::size_t ChainOf(const Entry& entry, const Atom& atom) {
  return static_cast<std::size_t>(entry.tokens[static_cast<std::size_t>(atom.token)].asym_id);
}

ChainResidues ResiduesOf(const Entry& entry) {
  ChainResidues chains{std::vector<std::vector<ResidueAtoms>>(entry.chains.size()), {}};
  const std::span<const Atom> all(entry.atoms);
  chains.place_of_uid.resize(static_cast<std::size_t>(all.back().ref_space_uid) + 1);
  for (std::size_t first = 0; first < all.size();) {
    std::size_t end = first;
    while (end < all.size() && all[end].ref_space_uid == all[first].ref_space_uid) ++end;
    auto& residues = chains.residues[ChainOf(entry, all[first])];
    chains.place_of_uid[static_cast<std::size_t>(all[first].ref_space_uid)] = residues.size();
    residues.push_back(all.subspan(first, end - first));
    first = end;
  }
  return chains;
}

// Chains of each entity, in the order of their sym_id.
std::map<std::int32_t, std::vector<std::size_t>> CopiesOf(const Entry& entry) {
  std::map<std::int32_t, std::vector<std::size_t>> copies;
  for (std::size_t c = 0; c < entry.chains.size(); ++c) {
    copies[entry.chains[c].entity_id].push_back(c);
  }
  for (auto& [entity, chains] : copies) {
    std::ranges::sort(chains, {}, [&](std::size_t c) { return entry.chains[c].sym_id; });
  }
  return copies;
}

// The atom of that name; null when the residue has none: copies may differ in leaving atoms.
const Atom* Find(ResidueAtoms residue, const Atom& like) {
  const auto found = std::ranges::find_if(residue, [&](const Atom& atom) {
    return std::ranges::equal(atom.name_chars, like.name_chars);
  });
  return found == residue.end() ? nullptr : &*found;
}

}  // namespace

void AddChainCopies(const Entry& entry, const std::vector<std::int32_t>& tokens,
                    const std::vector<std::int32_t>& atoms,
                    std::map<std::string, Array>* features) {
  const auto copies = CopiesOf(entry);
  const auto copies_of = [&](std::size_t chain) -> const std::vector<std::size_t>& {
    return copies.at(entry.chains[chain].entity_id);
  };
  Array counts(ArrayType::kInt32, {static_cast<std::int64_t>(tokens.size())});
  std::size_t most = 1;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const Token& token = entry.tokens[static_cast<std::size_t>(tokens[i])];
    const std::size_t count = copies_of(static_cast<std::size_t>(token.asym_id)).size();
    counts.values<std::int32_t>()[i] = static_cast<std::int32_t>(count);
    most = std::max(most, count);
  }
  const auto rows = static_cast<std::int64_t>(most > 1 ? most : 0);
  const auto width = static_cast<std::int64_t>(atoms.size());
  Array positions(ArrayType::kFloat32, {rows, width, 3});
  Array resolved(ArrayType::kUInt8, {rows, width});
  if (rows > 0) {
    const ChainResidues by_chain = ResiduesOf(entry);
    for (std::size_t i = 0; i < atoms.size(); ++i) {
      const Atom& atom = entry.atoms[static_cast<std::size_t>(atoms[i])];
      const std::size_t place = by_chain.place_of_uid[static_cast<std::size_t>(atom.ref_space_uid)];
      const auto& chains = copies_of(ChainOf(entry, atom));
      for (std::size_t k = 0; k < chains.size(); ++k) {
        const Atom* copy = Find(by_chain.residues[chains[k]].at(place), atom);
        if (copy == nullptr || !copy->resolved) continue;
        const std::size_t at = k * atoms.size() + i;
        resolved.values<std::uint8_t>()[at] = 1;
        std::ranges::copy(copy->position,
                          positions.values<float>().begin() + static_cast<std::ptrdiff_t>(3 * at));
      }
    }
  }
  features->emplace("entity_copies", std::move(counts));
  features->emplace("atom_copy_positions", std::move(positions));
  features->emplace("atom_copy_resolved", std::move(resolved));
}

}  // namespace megafold::data
