#include "data/mmcif/chains.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <numeric>
#include <optional>

#include "megafold/core/error.h"

namespace megafold::data {
namespace {

MoleculeType TypeOf(LinkType link) {
  switch (link) {
    case LinkType::kPeptide:
      return MoleculeType::kProtein;
    case LinkType::kRna:
      return MoleculeType::kRna;
    case LinkType::kDna:
      return MoleculeType::kDna;
    case LinkType::kNone:
      break;
  }
  return MoleculeType::kLigand;
}

class Builder {
 public:
  Builder(std::vector<Residue> residues, const std::vector<ResidueBond>& bonds,
          const Sequences& sequences, const ComponentDictionary& dictionary, Structure* structure)
      : residues_(std::move(residues)),
        bonds_(bonds),
        sequences_(sequences),
        dictionary_(dictionary),
        structure_(*structure),
        place_(residues_.size()) {}

  void Build() {
    CheckObserved();
    FindPolymers();
    FindLigands();
    // Chains in the order in which the file first mentions them.
    for (std::size_t i = 0; i < residues_.size(); ++i) {
      if (place_[i].has_value() || is_left_out_[i]) continue;
      if (in_polymer_[i]) {
        AddPolymer(residues_[i].asym);
      } else {
        AddLigand(i);
      }
    }
    for (const ResidueBond& bond : bonds_) {
      const auto& first = place_[bond.first];
      const auto& second = place_[bond.second];
      if (!first || !second) continue;
      structure_.bonds.push_back({{first->first, first->second, bond.first_atom},
                                  {second->first, second->second, bond.second_atom}});
    }
  }

 private:
  using Place = std::pair<std::size_t, std::size_t>;  // chain, residue in it

  std::shared_ptr<const Component> ComponentOf(const Residue& residue) const {
    auto component = dictionary_.Find(residue.component);
    if (component == nullptr) {
      Fail(ErrorCode::kNotFound, structure_.file, ": ", NameOf(residue), ": component '",
           residue.component, "' is not in ", dictionary_.path().string());
    }
    return component;
  }

  // A file that breaks off after a whole row still parses; the sequence tells.
  void CheckObserved() const {
    std::map<std::string, std::map<int, bool>> seen;
    for (const Residue& residue : residues_) seen[residue.asym][residue.seq] = true;
    for (const auto& [asym, positions] : sequences_) {
      for (const auto& [seq, position] : positions) {
        if (!position.observed || seen[asym].contains(seq)) continue;
        Fail(ErrorCode::kDataCorrupt, structure_.file, ": chain ", asym, ", residue ", seq, " (",
             position.component, ") is listed as observed but has no atoms; is the file torn?");
      }
      if (!seen.contains(asym)) {
        Fail(ErrorCode::kDataCorrupt, structure_.file, ": chain ", asym, " has a sequence of ",
             positions.size(), " residues but no atoms; is the file torn?");
      }
    }
  }

  bool IsListed(const Residue& residue) const {
    const auto chain = sequences_.find(residue.asym);
    return chain != sequences_.end() && chain->second.contains(residue.seq);
  }

  void FindPolymers() {
    in_polymer_.resize(residues_.size());
    is_left_out_.resize(residues_.size());
    for (std::size_t i = 0; i < residues_.size(); ++i) {
      const auto component = ComponentOf(residues_[i]);
      if (component->atoms.empty()) {
        is_left_out_[i] = true;
        structure_.left_out.Add("component " + component->id, "the dictionary has no atoms for it");
        continue;
      }
      in_polymer_[i] =
          residues_[i].seq > 0 && (component->link != LinkType::kNone || IsListed(residues_[i]));
    }
    for (const ResidueBond& bond : bonds_) {
      const Residue& first = residues_[bond.first];
      const Residue& second = residues_[bond.second];
      const bool neighbours = first.asym == second.asym && first.seq > 0 && second.seq > 0 &&
                              std::abs(first.seq - second.seq) == 1;
      if (!neighbours || is_left_out_[bond.first] || is_left_out_[bond.second]) continue;
      if (in_polymer_[bond.first]) in_polymer_[bond.second] = true;
      if (in_polymer_[bond.second]) in_polymer_[bond.first] = true;
    }
  }

  // Groups of ligand residues: group_[i] is the lowest index of i's group.
  void FindLigands() {
    group_.resize(residues_.size());
    std::iota(group_.begin(), group_.end(), std::size_t{0});
    for (const ResidueBond& bond : bonds_) {
      if (in_polymer_[bond.first] || in_polymer_[bond.second]) continue;
      if (residues_[bond.first].asym != residues_[bond.second].asym) continue;
      const auto [low, high] = std::minmax(group_[bond.first], group_[bond.second]);
      std::replace(group_.begin(), group_.end(), std::size_t{high}, std::size_t{low});
    }
  }

  // Of the type that most of its components link into.
  MoleculeType PolymerType(const std::vector<Residue>& residues) const {
    std::array<int, 4> votes{};
    for (const Residue& residue : residues) {
      ++votes[static_cast<std::size_t>(TypeOf(ComponentOf(residue)->link))];
    }
    const auto best = std::max_element(votes.begin(), votes.begin() + 3);
    return *best > 0 ? static_cast<MoleculeType>(best - votes.begin()) : MoleculeType::kLigand;
  }

  void AddPolymer(const std::string& asym) {
    std::map<int, Residue> by_position;
    std::map<int, std::size_t> source;
    for (std::size_t i = 0; i < residues_.size(); ++i) {
      if (!in_polymer_[i] || residues_[i].asym != asym) continue;
      if (!by_position.emplace(residues_[i].seq, residues_[i]).second) {
        Fail(ErrorCode::kDataCorrupt, structure_.file, ": ", NameOf(residues_[i]),
             ": two residues have this label_seq_id");
      }
      source[residues_[i].seq] = i;
    }
    AddMissing(asym, &by_position);
    Chain chain{asym, MoleculeType::kLigand, {}};
    for (auto& [seq, residue] : by_position) {
      const auto from = source.find(seq);
      if (from != source.end())
        place_[from->second] = {structure_.chains.size(), chain.residues.size()};
      chain.residues.push_back(std::move(residue));
    }
    chain.type = PolymerType(chain.residues);
    structure_.chains.push_back(std::move(chain));
  }

  void AddMissing(const std::string& asym, std::map<int, Residue>* by_position) const {
    const auto sequence = sequences_.find(asym);
    if (sequence == sequences_.end()) return;
    for (const auto& [seq, position] : sequence->second) {
      const auto known = by_position->find(seq);
      if (known != by_position->end()) continue;
      Residue missing;
      missing.asym = asym;
      missing.seq = seq;
      missing.component = position.component;
      if (ComponentOf(missing)->atoms.empty()) continue;
      by_position->emplace(seq, std::move(missing));
    }
    CheckSequence(sequence->second, *by_position);
  }

  // Where the sequence and the atoms name different components, the sequence must have said UNK
  // (the position is unknown to it) or the position is one of several components.
  void CheckSequence(const std::map<int, SequencePosition>& sequence,
                     const std::map<int, Residue>& by_position) const {
    for (const auto& [seq, residue] : by_position) {
      const auto listed = sequence.find(seq);
      if (listed == sequence.end() || listed->second.component == residue.component) continue;
      if (listed->second.component == "UNK" || listed->second.heterogeneous) continue;
      Fail(ErrorCode::kDataCorrupt, structure_.file, ": ", NameOf(residue),
           ": the file's sequence has ", listed->second.component, " there");
    }
  }

  void AddLigand(std::size_t first) {
    const std::string& asym = residues_[first].asym;
    std::vector<std::size_t> members;
    bool alone = true;  // nothing else has this label_asym_id
    for (std::size_t i = 0; i < residues_.size(); ++i) {
      if (residues_[i].asym != asym || is_left_out_[i]) continue;
      if (!in_polymer_[i] && group_[i] == group_[first]) {
        members.push_back(i);
      } else {
        alone = false;
      }
    }
    Chain chain{asym, MoleculeType::kLigand, {}};
    if (!alone) chain.id += "." + residues_[first].component + "." + residues_[first].auth_seq;
    for (const std::size_t i : members) {
      place_[i] = {structure_.chains.size(), chain.residues.size()};
      chain.residues.push_back(residues_[i]);
      chain.residues.back().seq = static_cast<int>(chain.residues.size());
    }
    structure_.chains.push_back(std::move(chain));
  }

  std::vector<Residue> residues_;
  const std::vector<ResidueBond>& bonds_;
  const Sequences& sequences_;
  const ComponentDictionary& dictionary_;
  Structure& structure_;
  std::vector<std::optional<Place>> place_;
  std::vector<char> in_polymer_;
  std::vector<char> is_left_out_;
  std::vector<std::size_t> group_;
};

}  // namespace

void BuildChains(std::vector<Residue> residues, const std::vector<ResidueBond>& bonds,
                 const Sequences& sequences, const ComponentDictionary& dictionary,
                 Structure* structure) {
  Builder(std::move(residues), bonds, sequences, dictionary, structure).Build();
}

}  // namespace megafold::data
