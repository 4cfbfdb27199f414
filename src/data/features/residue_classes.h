// The 32 residue classes of docs/features.md, and what is known of the standard residues.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace megafold::data {

enum class MoleculeType : std::uint8_t { kProtein, kRna, kDna, kLigand };
const char* NameOf(MoleculeType type);  // "protein", ...

inline constexpr int kResidueClasses = 32;
inline constexpr std::uint8_t kUnknownAminoAcid = 20;
inline constexpr std::uint8_t kUnknownRna = 25;
inline constexpr std::uint8_t kUnknownDna = 30;
inline constexpr std::uint8_t kGap = 31;

// A residue that is one token: the 20 amino acids, the nucleotides A G C U and DA DG DC DT, and the
// unknown ones UNK, N, DN.
struct StandardResidue {
  MoleculeType type;
  std::uint8_t restype;
  std::string_view representative;  // the atom of the distogram
};
// Nothing when the component is not standard.
std::optional<StandardResidue> FindStandard(std::string_view component);

// The unknown class of a molecule type; ligands count as unknown amino acids.
std::uint8_t UnknownClass(MoleculeType type);

// The class of an upper-case letter of an alignment or sequence of this type. '-' is the gap; T and
// U are the same nucleotide; letters without a class of their own are the type's unknown, but B is
// D, Z is E and U (selenocysteine) is C in proteins. Nothing for what is not a letter or '-'.
std::optional<std::uint8_t> ClassOfLetter(char letter, MoleculeType type);

// 'X' or 'N' for unknown classes, '-' for the gap.
char LetterOfClass(std::uint8_t restype);

}  // namespace megafold::data
