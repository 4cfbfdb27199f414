#include <algorithm>
#include <array>
#include <cctype>
#include <map>

#include "data/features/entry.h"
#include "data/features/frames.h"
#include "data/features/links.h"

namespace megafold::data {
namespace {

constexpr float kMaxBondLength = 2.4F;

// Where a residue's atoms and tokens went.
struct Place {
  std::int32_t first_atom = 0;
  std::int32_t atom_count = 0;
  bool is_one_token = false;
  std::map<std::string, std::int32_t> atoms;  // by name

  std::int32_t Find(const std::string& name) const {
    const auto found = atoms.find(name);
    return found == atoms.end() ? kNoAtom : found->second;
  }
};

void SetNameChars(const std::string& name, std::uint8_t (&chars)[4]) {
  for (std::size_t i = 0; i < 4 && i < name.size(); ++i) {
    const int code = std::toupper(static_cast<unsigned char>(name[i])) - 32;
    chars[i] = code >= 0 && code < 64 ? static_cast<std::uint8_t>(code) : 0;
  }
}

// The class of a residue that is not one token: its parent's where the dictionary names one.
std::uint8_t ModifiedClass(const Component& component, MoleculeType type) {
  if (type == MoleculeType::kLigand || component.link == LinkType::kNone) {
    return UnknownClass(type);
  }
  return ClassOfLetter(component.one_letter, type).value_or(UnknownClass(type));
}

class Tokenizer {
 public:
  Tokenizer(const Structure& structure, const ComponentDictionary& dictionary)
      : structure_(structure),
        dictionary_(dictionary),
        linked_(structure, dictionary),
        left_out_(structure.left_out) {}

  Entry Tokenize() {
    for (std::size_t c = 0; c < structure_.chains.size(); ++c) AddChain(c);
    AddPolymerLinks();
    AddStructureBonds();
    for (Token& token : entry_.tokens) CheckFrame(entry_.atoms, &token);
    for (auto* bonds : {&entry_.token_bonds, &entry_.atom_bonds}) {
      std::sort(bonds->begin(), bonds->end());
      bonds->erase(std::unique(bonds->begin(), bonds->end()), bonds->end());
    }
    Summarise();
    return std::move(entry_);
  }

 private:
  void AddChain(std::size_t c) {
    const Chain& chain = structure_.chains[c];
    entry_.chains.push_back(Identity(chain));
    places_.emplace_back();
    ChainSummary summary;
    summary.id = chain.id;
    summary.type = NameOf(chain.type);
    summary.entity = entry_.chains.back().entity_id;
    summary.residues = static_cast<std::int64_t>(chain.residues.size());
    const std::size_t first_token = entry_.tokens.size();
    const std::size_t first_atom = entry_.atoms.size();
    for (std::size_t r = 0; r < chain.residues.size(); ++r) {
      const std::size_t residue_token = entry_.tokens.size();
      AddResidue(c, r);
      Describe(chain, r, residue_token, &summary.description);
      if (chain.residues[r].atoms.empty()) ++summary.unresolved_residues;
    }
    summary.tokens = static_cast<std::int64_t>(entry_.tokens.size() - first_token);
    summary.atoms = static_cast<std::int64_t>(entry_.atoms.size() - first_atom);
    summary.resolved_atoms =
        std::count_if(entry_.atoms.begin() + static_cast<std::ptrdiff_t>(first_atom),
                      entry_.atoms.end(), [](const Atom& atom) { return atom.resolved; });
    entry_.summary.chains.push_back(std::move(summary));
  }

  // Chains of one type and the same components in the same order are copies of one entity.
  ChainFeatures Identity(const Chain& chain) {
    std::string key = NameOf(chain.type);
    for (const Residue& residue : chain.residues) key += " " + residue.component;
    const auto next = static_cast<std::int32_t>(entities_.size());
    auto& [entity, copies] = entities_.try_emplace(key, next, 0).first->second;
    return {entity, copies++, -1};
  }

  void Describe(const Chain& chain, std::size_t r, std::size_t token, std::string* text) const {
    if (chain.type == MoleculeType::kLigand) {
      *text += (r > 0 ? " " : "") + chain.residues[r].component;
    } else if (token < entry_.tokens.size()) {
      *text += entry_.tokens[token].modified ? 'X' : LetterOfClass(entry_.tokens[token].restype);
    }
  }

  void AddResidue(std::size_t c, std::size_t r) {
    const Chain& chain = structure_.chains[c];
    const Residue& residue = chain.residues[r];
    const auto component = dictionary_.Find(residue.component);
    const auto standard =
        chain.type == MoleculeType::kLigand ? std::nullopt : FindStandard(residue.component);
    Place place;
    place.is_one_token = standard.has_value();
    AddAtoms(c, r, *component, &place);
    Token token;
    token.asym_id = static_cast<std::int32_t>(c);
    token.residue_index = residue.seq;
    if (standard) {
      token.type = standard->type;
      token.restype = standard->restype;
      AddStandardToken(token, place, *standard);
    } else {
      token.type = chain.type;
      token.modified = chain.type != MoleculeType::kLigand;
      token.restype = ModifiedClass(*component, chain.type);
      AddAtomTokens(token, place);
      AddBondsWithin(*component, place, chain.type == MoleculeType::kLigand);
    }
    places_.back().push_back(std::move(place));
    ++ref_space_uid_;
  }

  void AddAtoms(std::size_t c, std::size_t r, const Component& component, Place* place) {
    const Residue& residue = structure_.chains[c].residues[r];
    std::map<std::string, const AtomSite*> resolved;
    for (const AtomSite& atom : residue.atoms) resolved[atom.name] = &atom;
    place->first_atom = static_cast<std::int32_t>(entry_.atoms.size());
    for (const int index : linked_.ExpectedAtoms(c, r, component)) {
      const ComponentAtom& reference = component.atoms[static_cast<std::size_t>(index)];
      Atom atom;
      atom.ref_space_uid = ref_space_uid_;
      atom.element = reference.element;
      atom.charge = reference.charge;
      atom.ref_present = reference.has_position;
      atom.ref_position = reference.position;
      SetNameChars(reference.name, atom.name_chars);
      const auto found = resolved.find(reference.name);
      if (found != resolved.end()) {
        atom.resolved = true;
        atom.position = found->second->position;
        resolved.erase(found);
      }
      place->atoms[reference.name] = static_cast<std::int32_t>(entry_.atoms.size());
      entry_.atoms.push_back(atom);
    }
    place->atom_count = static_cast<std::int32_t>(entry_.atoms.size()) - place->first_atom;
    left_out_.Add("atom", "not in component " + component.id,
                  static_cast<std::int64_t>(resolved.size()));
  }

  void AddStandardToken(Token token, const Place& place, const StandardResidue& standard) {
    static constexpr std::array<const char*, 3> kProteinFrame = {"N", "CA", "C"};
    static constexpr std::array<const char*, 3> kNucleicFrame = {"C1'", "C3'", "C4'"};
    const bool protein = standard.type == MoleculeType::kProtein;
    token.atom_start = place.first_atom;
    token.atom_count = place.atom_count;
    const auto find = [&](const std::string& name, std::int32_t otherwise) {
      const std::int32_t atom = place.Find(name);
      return atom == kNoAtom ? otherwise : atom;
    };
    token.center_atom = find(protein ? "CA" : "C1'", place.first_atom);
    token.rep_atom = find(std::string(standard.representative), token.center_atom);
    for (std::size_t i = 0; i < 3; ++i) {
      token.frame_atoms[i] = place.Find((protein ? kProteinFrame : kNucleicFrame)[i]);
    }
    Append(token);
  }

  void AddAtomTokens(Token token, const Place& place) {
    for (std::int32_t i = 0; i < place.atom_count; ++i) {
      token.atom_start = token.center_atom = token.rep_atom = place.first_atom + i;
      token.atom_count = 1;
      SetAtomFrame(entry_.atoms, place.first_atom, place.atom_count, &token);
      Append(token);
    }
  }

  void Append(const Token& token) {
    const auto index = static_cast<std::int32_t>(entry_.tokens.size());
    for (std::int32_t i = 0; i < token.atom_count; ++i) {
      entry_.atoms[static_cast<std::size_t>(token.atom_start + i)].token = index;
    }
    entry_.tokens.push_back(token);
  }

  void AddBondsWithin(const Component& component, const Place& place, bool ligand) {
    for (const auto& [first, second] : component.bonds) {
      AddBond(place.Find(component.atoms[static_cast<std::size_t>(first)].name),
              place.Find(component.atoms[static_cast<std::size_t>(second)].name), ligand);
    }
  }

  // `for_loss`: also an entry of bond_atoms. Nothing when an atom is absent or both are resolved
  // and too far apart (neighbours in a sequence that lacks the residues between them).
  void AddBond(std::int32_t first, std::int32_t second, bool for_loss) {
    if (first == kNoAtom || second == kNoAtom) return;
    const Atom& a = entry_.atoms[static_cast<std::size_t>(first)];
    const Atom& b = entry_.atoms[static_cast<std::size_t>(second)];
    if (a.resolved && b.resolved && Distance(a.position, b.position) > kMaxBondLength) return;
    entry_.token_bonds.push_back(std::minmax(a.token, b.token));
    if (for_loss) entry_.atom_bonds.push_back(std::minmax(first, second));
  }

  void AddPolymerLinks() {
    for (std::size_t c = 0; c < structure_.chains.size(); ++c) {
      const Chain& chain = structure_.chains[c];
      if (chain.type == MoleculeType::kLigand) continue;
      for (std::size_t r = 0; r + 1 < chain.residues.size(); ++r) {
        const Place& first = places_[c][r];
        const Place& second = places_[c][r + 1];
        if (first.is_one_token && second.is_one_token) continue;
        const PolymerLink link =
            LinkBetween(chain.residues[r], *dictionary_.Find(chain.residues[r].component),
                        chain.residues[r + 1], *dictionary_.Find(chain.residues[r + 1].component));
        if (link.first_atom == nullptr) continue;
        AddBond(first.Find(link.first_atom), second.Find(link.second_atom), false);
      }
    }
  }

  void AddStructureBonds() {
    const auto place = [&](const AtomAddress& at) -> const Place& {
      return places_[at.chain][at.residue];
    };
    const auto is_ligand = [&](const AtomAddress& at) {
      return structure_.chains[at.chain].type == MoleculeType::kLigand;
    };
    for (const auto& [first, second] : structure_.bonds) {
      if (place(first).is_one_token && place(second).is_one_token) continue;
      AddBond(place(first).Find(first.atom), place(second).Find(second.atom),
              is_ligand(first) || is_ligand(second));
    }
  }

  void Summarise() {
    EntrySummary& summary = entry_.summary;
    summary.file = structure_.file;
    summary.method = structure_.method;
    summary.release_date = structure_.release_date;
    summary.resolution = structure_.resolution;
    summary.tokens = static_cast<std::int64_t>(entry_.tokens.size());
    summary.atoms = static_cast<std::int64_t>(entry_.atoms.size());
    summary.bonds = static_cast<std::int64_t>(entry_.atom_bonds.size());
    std::int64_t* by_type[] = {&summary.protein_tokens, &summary.rna_tokens, &summary.dna_tokens,
                               &summary.ligand_tokens};
    for (const Token& token : entry_.tokens) {
      ++*by_type[static_cast<std::size_t>(token.type)];
      summary.modified_tokens += token.modified ? 1 : 0;
      const auto first = entry_.atoms.begin() + token.atom_start;
      summary.resolved_tokens += std::any_of(first, first + token.atom_count,
                                             [](const Atom& atom) { return atom.resolved; });
    }
    for (const ChainSummary& chain : summary.chains) summary.resolved_atoms += chain.resolved_atoms;
    summary.left_out = left_out_.List();
  }

  const Structure& structure_;
  const ComponentDictionary& dictionary_;
  LinkedAtoms linked_;
  LeftOutCounts left_out_;
  Entry entry_;
  std::vector<std::vector<Place>> places_;                                 // [chain][residue]
  std::map<std::string, std::pair<std::int32_t, std::int32_t>> entities_;  // number, copies so far
  std::int32_t ref_space_uid_ = 0;
};

}  // namespace

Entry Tokenize(const Structure& structure, const ComponentDictionary& dictionary) {
  return Tokenizer(structure, dictionary).Tokenize();
}

std::size_t Entry::Bytes() const {
  std::size_t bytes =
      sizeof(Entry) + tokens.size() * sizeof(Token) + atoms.size() * sizeof(Atom) +
      (token_bonds.size() + atom_bonds.size()) * sizeof(IndexPair) +
      (rows.rows.size() + resolved_tokens.size() + interface_tokens.size()) * sizeof(std::int32_t);
  for (const Alignment& alignment : alignments) {
    bytes += alignment.classes.size() + alignment.deletions.size() +
             alignment.profile.size() * sizeof(float);
    bytes += alignment.species.size() * sizeof(std::string);
  }
  return bytes;
}

}  // namespace megafold::data
