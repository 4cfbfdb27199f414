#include "data/features/residue_classes.h"

#include <array>
#include <string_view>

namespace megafold::data {
namespace {

constexpr std::string_view kAminoLetters = "ARNDCQEGHILKMFPSTWYV";
constexpr std::string_view kRnaLetters = "AGCU";
constexpr std::string_view kDnaLetters = "AGCT";
constexpr std::array<std::string_view, 20> kAminoNames = {
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE",
    "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"};
// Four bases and the unknown one, in the order of the classes.
constexpr std::array<std::string_view, 5> kRnaNames = {"A", "G", "C", "U", "N"};
constexpr std::array<std::string_view, 5> kDnaNames = {"DA", "DG", "DC", "DT", "DN"};
constexpr std::array<std::string_view, 5> kBaseAtoms = {"C4", "C4", "C2", "C2", "C1'"};
constexpr std::uint8_t kFirstRna = 21;
constexpr std::uint8_t kFirstDna = 26;

}  // namespace

const char* NameOf(MoleculeType type) {
  switch (type) {
    case MoleculeType::kProtein:
      return "protein";
    case MoleculeType::kRna:
      return "rna";
    case MoleculeType::kDna:
      return "dna";
    case MoleculeType::kLigand:
      return "ligand";
  }
  return "unknown";
}

std::optional<StandardResidue> FindStandard(std::string_view component) {
  for (std::uint8_t i = 0; i < kAminoNames.size(); ++i) {
    if (component == kAminoNames[i]) {
      return StandardResidue{MoleculeType::kProtein, i, component == "GLY" ? "CA" : "CB"};
    }
  }
  if (component == "UNK") {
    return StandardResidue{MoleculeType::kProtein, kUnknownAminoAcid, "CB"};
  }
  for (std::uint8_t i = 0; i < kRnaNames.size(); ++i) {
    const auto rna = static_cast<std::uint8_t>(kFirstRna + i);
    const auto dna = static_cast<std::uint8_t>(kFirstDna + i);
    if (component == kRnaNames[i]) return StandardResidue{MoleculeType::kRna, rna, kBaseAtoms[i]};
    if (component == kDnaNames[i]) return StandardResidue{MoleculeType::kDna, dna, kBaseAtoms[i]};
  }
  return std::nullopt;
}

std::uint8_t UnknownClass(MoleculeType type) {
  if (type == MoleculeType::kRna) return kUnknownRna;
  if (type == MoleculeType::kDna) return kUnknownDna;
  return kUnknownAminoAcid;
}

std::optional<std::uint8_t> ClassOfLetter(char letter, MoleculeType type) {
  if (letter == '-') return kGap;
  if (letter < 'A' || letter > 'Z') return std::nullopt;
  if (type == MoleculeType::kProtein) {
    if (letter == 'B') letter = 'D';
    if (letter == 'Z') letter = 'E';
    if (letter == 'U') letter = 'C';
    const auto at = kAminoLetters.find(letter);
    return at == std::string_view::npos ? kUnknownAminoAcid : static_cast<std::uint8_t>(at);
  }
  if (type == MoleculeType::kLigand) return kUnknownAminoAcid;
  const bool rna = type == MoleculeType::kRna;
  if (letter == 'T' || letter == 'U') letter = rna ? 'U' : 'T';
  const auto at = (rna ? kRnaLetters : kDnaLetters).find(letter);
  if (at == std::string_view::npos) return UnknownClass(type);
  return static_cast<std::uint8_t>((rna ? kFirstRna : kFirstDna) + at);
}

char LetterOfClass(std::uint8_t restype) {
  if (restype < kAminoLetters.size()) return kAminoLetters[restype];
  if (restype >= kFirstRna && restype < kUnknownRna) return kRnaLetters[restype - kFirstRna];
  if (restype >= kFirstDna && restype < kUnknownDna) return kDnaLetters[restype - kFirstDna];
  if (restype == kGap) return '-';
  return restype == kUnknownAminoAcid ? 'X' : 'N';
}

}  // namespace megafold::data
