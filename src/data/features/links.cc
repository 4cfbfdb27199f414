#include "data/features/links.h"

#include <algorithm>

namespace megafold::data {

PolymerLink LinkBetween(const Residue& first, const Component& first_component,
                        const Residue& second, const Component& second_component) {
  if (second.seq != first.seq + 1) return {};
  const auto nucleic = [](const Component& c) {
    return c.link == LinkType::kRna || c.link == LinkType::kDna;
  };
  PolymerLink link;
  if (first_component.link == LinkType::kPeptide && second_component.link == LinkType::kPeptide) {
    link = {"C", "N"};
  } else if (nucleic(first_component) && nucleic(second_component)) {
    link = {"O3'", "P"};
  } else {
    return {};
  }
  const bool present =
      first_component.Find(link.first_atom) >= 0 && second_component.Find(link.second_atom) >= 0;
  return present ? link : PolymerLink{};
}

LinkedAtoms::LinkedAtoms(const Structure& structure, const ComponentDictionary& dictionary)
    : structure_(structure) {
  for (const CovalentBond& bond : structure.bonds) {
    linked_.emplace(bond.first.chain, bond.first.residue, bond.first.atom);
    linked_.emplace(bond.second.chain, bond.second.residue, bond.second.atom);
  }
  for (std::size_t c = 0; c < structure.chains.size(); ++c) {
    if (structure.chains[c].type == MoleculeType::kLigand) continue;
    const auto& residues = structure.chains[c].residues;
    for (std::size_t r = 0; r + 1 < residues.size(); ++r) {
      const auto first = dictionary.Find(residues[r].component);
      const auto second = dictionary.Find(residues[r + 1].component);
      const PolymerLink link = LinkBetween(residues[r], *first, residues[r + 1], *second);
      if (link.first_atom == nullptr) continue;
      linked_.emplace(c, r, link.first_atom);
      linked_.emplace(c, r + 1, link.second_atom);
    }
  }
}

std::vector<int> LinkedAtoms::ExpectedAtoms(std::size_t chain, std::size_t residue,
                                            const Component& component) const {
  const std::size_t count = component.atoms.size();
  std::vector<char> open(count);     // bonded to another residue, or dropped
  std::vector<char> dropped(count);  // a subset of open
  std::vector<char> may_leave(count);
  const auto& resolved = structure_.chains[chain].residues[residue].atoms;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string& name = component.atoms[i].name;
    open[i] = linked_.contains({chain, residue, name}) ? 1 : 0;
    may_leave[i] = component.atoms[i].leaving && open[i] == 0 &&
                   std::none_of(resolved.begin(), resolved.end(),
                                [&](const AtomSite& atom) { return atom.name == name; });
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (const auto& [first, second] : component.bonds) {
      for (const auto& [from, to] : {std::pair(first, second), std::pair(second, first)}) {
        const auto leaver = static_cast<std::size_t>(to);
        if (open[static_cast<std::size_t>(from)] == 0 || may_leave[leaver] == 0) continue;
        may_leave[leaver] = 0;
        open[leaver] = dropped[leaver] = 1;
        changed = true;
      }
    }
  }
  std::vector<int> expected;
  for (std::size_t i = 0; i < count; ++i) {
    if (dropped[i] == 0) expected.push_back(static_cast<int>(i));
  }
  return expected;
}

}  // namespace megafold::data
