#include "data/mmcif/structure.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <tuple>

#include "data/mmcif/chains.h"
#include "data/mmcif/cif_file.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

using gemmi::cif::as_string;
using gemmi::cif::is_null;

// Bonds longer than this (Angstrom) are not covalent, whatever the file says (AF3 supplement 2.5).
constexpr float kMaxBondLength = 2.4F;

std::string ValueOf(gemmi::cif::Block& block, std::initializer_list<const char*> tags) {
  for (const char* tag : tags) {
    for (const std::string& value : block.find_values(tag)) {
      if (!is_null(value)) return as_string(value);
    }
  }
  return "";
}

std::string FirstRevision(gemmi::cif::Block& block) {
  std::string first;
  for (const char* tag :
       {"_pdbx_audit_revision_history.revision_date", "_database_PDB_rev.date_original"}) {
    for (const std::string& value : block.find_values(tag)) {
      if (is_null(value)) continue;
      if (first.empty() || as_string(value) < first) first = as_string(value);
    }
  }
  return first;
}

const AtomSite* FindAtom(const Residue& residue, const std::string& name) {
  for (const AtomSite& atom : residue.atoms) {
    if (atom.name == name) return &atom;
  }
  return nullptr;
}

// The columns of struct_conn: the type, the symmetry of both ends, then each end's.
const std::vector<std::string> kTags = {"conn_type_id",
                                        "?ptnr1_symmetry",
                                        "?ptnr2_symmetry",
                                        "?ptnr1_label_atom_id",
                                        "?ptnr1_auth_asym_id",
                                        "?ptnr1_label_asym_id",
                                        "?ptnr1_auth_seq_id",
                                        "?ptnr1_label_seq_id",
                                        "?ptnr1_auth_comp_id",
                                        "?ptnr1_label_comp_id",
                                        "?pdbx_ptnr1_PDB_ins_code",
                                        "?ptnr2_label_atom_id",
                                        "?ptnr2_auth_asym_id",
                                        "?ptnr2_label_asym_id",
                                        "?ptnr2_auth_seq_id",
                                        "?ptnr2_label_seq_id",
                                        "?ptnr2_auth_comp_id",
                                        "?ptnr2_label_comp_id",
                                        "?pdbx_ptnr2_PDB_ins_code"};
constexpr int kFirstSymmetry = 1;
constexpr int kSecondSymmetry = 2;
constexpr int kFirstEnd = 3;
constexpr int kSecondEnd = 11;
enum EndColumn {
  kAtom,
  kAuthAsym,
  kLabelAsym,
  kAuthSeq,
  kLabelSeq,
  kAuthComp,
  kLabelComp,
  kInsertion
};

// Author's chain, number, insertion code: what struct_conn can name in every file.
using Author = std::tuple<std::string, std::string, std::string>;

class BondReader {
 public:
  BondReader(const std::vector<Residue>& residues, LeftOutCounts* left_out)
      : residues_(residues), left_out_(left_out) {
    for (std::size_t i = 0; i < residues.size(); ++i) {
      const Residue& residue = residues[i];
      by_author_[{residue.auth_asym, residue.auth_seq, residue.insertion}].push_back(i);
    }
  }

  std::vector<ResidueBond> Read(gemmi::cif::Block& block) const {
    std::vector<ResidueBond> bonds;
    for (const auto& row : block.find("_struct_conn.", kTags)) {
      const std::string type = row.str(0);
      if (type.rfind("covale", 0) != 0 && type != "disulf") continue;
      if (row.has2(kFirstSymmetry) && row.has2(kSecondSymmetry) &&
          row.str(kFirstSymmetry) != row.str(kSecondSymmetry)) {
        left_out_->Add("bond", "to a symmetry copy");
        continue;
      }
      ResidueBond bond;
      bond.first = Find(row, kFirstEnd, &bond.first_atom);
      bond.second = Find(row, kSecondEnd, &bond.second_atom);
      if (bond.first == kNone || bond.second == kNone) {
        left_out_->Add("bond", "an end has no coordinates");
      } else if (Length(bond) > kMaxBondLength) {
        left_out_->Add("bond", "longer than 2.4 Angstrom");
      } else if (bond.first != bond.second) {
        bonds.push_back(std::move(bond));
      }
    }
    return bonds;
  }

 private:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  // The residue at one end of the bond, and the name of its atom there.
  std::size_t Find(const gemmi::cif::Table::Row& row, int end, std::string* atom) const {
    const auto text = [&](int column) {
      return row.has2(static_cast<std::size_t>(end + column)) ? row.str(end + column)
                                                              : std::string();
    };
    const auto either = [&](EndColumn first, EndColumn second) {
      return text(first).empty() ? text(second) : text(first);
    };
    *atom = text(kAtom);
    if (*atom == "SE" && either(kAuthComp, kLabelComp) == "MSE") *atom = "SD";
    const auto found = by_author_.find(
        {either(kAuthAsym, kLabelAsym), either(kAuthSeq, kLabelSeq), text(kInsertion)});
    if (found == by_author_.end()) return kNone;
    for (const std::size_t i : found->second) {
      if (FindAtom(residues_[i], *atom) != nullptr) return i;
    }
    return kNone;
  }

  float Length(const ResidueBond& bond) const {
    return Distance(FindAtom(residues_[bond.first], bond.first_atom)->position,
                    FindAtom(residues_[bond.second], bond.second_atom)->position);
  }

  const std::vector<Residue>& residues_;
  LeftOutCounts* left_out_;
  std::map<Author, std::vector<std::size_t>> by_author_;
};

}  // namespace

Structure ReadStructure(const std::filesystem::path& file, const ComponentDictionary& dictionary) {
  auto document = ReadCifFile(file);
  gemmi::cif::Block& block = document.blocks.front();
  Structure structure;
  structure.file = file.string();
  structure.method = ValueOf(block, {"_exptl.method"});
  structure.release_date = FirstRevision(block);
  const std::string resolution = ValueOf(
      block,
      {"_refine.ls_d_res_high", "_em_3d_reconstruction.resolution", "_reflns.d_resolution_high"});
  structure.resolution = std::strtod(resolution.c_str(), nullptr);
  auto residues = ReadAtomSite(block, structure.file, &structure.left_out);
  const auto sequences = ReadSequences(block, structure.file);
  const auto bonds = BondReader(residues, &structure.left_out).Read(block);
  BuildChains(std::move(residues), bonds, sequences, dictionary, &structure);
  if (structure.chains.empty()) {
    Fail(ErrorCode::kDataCorrupt, structure.file, ": no polymer or ligand is left (",
         "only water, hydrogens or unknown ligands)");
  }
  return structure;
}

}  // namespace megafold::data
