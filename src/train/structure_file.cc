#include "train/structure_file.h"

#include <array>
#include <cstdio>

#include "megafold/core/error.h"

namespace megafold::train {
namespace {

// By atomic number.
constexpr std::array<const char*, 119> kElements = {
    "X",  "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si",
    "P",  "S",  "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu",
    "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru",
    "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr",
    "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",
    "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac",
    "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf",
    "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};

// By residue class (docs/features.md).
constexpr std::array<const char*, 32> kResidues = {
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE", "LEU",
    "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL", "UNK", "A",
    "G",   "C",   "U",   "N",   "DA",  "DG",  "DC",  "DT",  "DN",  "UNL"};

// One entry's features on the CPU, as plain numbers.
class Entry {
 public:
  explicit Entry(const TensorDict& features) : features_(features) {}

  std::int64_t Int(const char* name, std::int64_t index) {
    return Values(name)[index].item<std::int64_t>();
  }

  std::string AtomName(std::int64_t atom) {
    const at::Tensor chars = Values("ref_atom_name_chars")[atom];
    std::string name;
    for (std::int64_t i = 0; i < chars.numel(); ++i) {
      const auto code = chars[i].item<std::int64_t>();
      if (code != 0) name.push_back(static_cast<char>(code + 32));
    }
    return name;
  }

 private:
  const at::Tensor& Values(const std::string& name) {
    const auto found = cache_.find(name);
    if (found != cache_.end()) return found->second;
    const auto feature = features_.find(name);
    Require(feature != features_.end(), "the batch has no feature '", name, "'");
    return cache_[name] = feature->second[0].to(at::kCPU).to(at::kLong).contiguous();
  }

  const TensorDict& features_;
  TensorDict cache_;
};

// A, B, ..., Z, AA, AB, ...
std::string ChainName(std::int64_t index) {
  std::string name;
  for (std::int64_t left = index + 1; left > 0; left = (left - 1) / 26) {
    name.insert(name.begin(), static_cast<char>('A' + (left - 1) % 26));
  }
  return name;
}

std::string Quoted(const std::string& text) {
  return text.find('\'') != std::string::npos ? StrCat("\"", text, "\"") : text;
}

std::string AtomLine(Entry& entry, std::int64_t atom, std::int64_t serial, const at::Tensor& xyz) {
  const std::int64_t token = entry.Int("atom_to_token", atom);
  const bool polymer =
      entry.Int("is_protein", token) + entry.Int("is_rna", token) + entry.Int("is_dna", token) > 0;
  const std::int64_t restype = entry.Int("restype", token);
  const std::int64_t number = entry.Int("ref_element", atom);
  const std::string chain = ChainName(entry.Int("asym_id", token));
  const std::int64_t residue = entry.Int("residue_index", token);
  std::array<char, 64> position{};
  std::snprintf(position.data(), position.size(), "%.3f %.3f %.3f", xyz[0].item<double>(),
                xyz[1].item<double>(), xyz[2].item<double>());
  const char* element = number < std::ssize(kElements) ? kElements[number] : "X";
  return StrCat(polymer ? "ATOM " : "HETATM ", serial, " ", element, " ",
                Quoted(entry.AtomName(atom)), " . ", polymer ? kResidues.at(restype) : "UNL", " ",
                chain, " ", entry.Int("entity_id", token) + 1, " ",
                polymer ? std::to_string(residue) : ".", " ", position.data(), " 1.00 0.00 ",
                residue, " ", chain, " 1\n");
}

}  // namespace

std::string StructureMmcif(const std::string& name, const TensorDict& features,
                           const at::Tensor& positions, const at::Tensor& written) {
  Entry entry(features);
  const at::Tensor chosen = written.to(at::kCPU).to(at::kBool).nonzero().reshape({-1});
  const at::Tensor xyz = positions.to(at::kCPU).to(at::kFloat).contiguous();
  std::string text = StrCat("data_", name, "\n#\nloop_\n");
  for (const char* column :
       {"group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id",
        "label_asym_id", "label_entity_id", "label_seq_id", "Cartn_x", "Cartn_y", "Cartn_z",
        "occupancy", "B_iso_or_equiv", "auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num"}) {
    text += StrCat("_atom_site.", column, "\n");
  }
  for (std::int64_t i = 0; i < chosen.numel(); ++i) {
    const auto atom = chosen[i].item<std::int64_t>();
    text += AtomLine(entry, atom, i + 1, xyz[atom]);
  }
  return text + "#\n";
}

}  // namespace megafold::train
