#include "data/summary.h"

#include <cstdio>
#include <sstream>

namespace megafold::data {
namespace {

constexpr std::size_t kMaxDescription = 60;

std::string Shortened(const std::string& text) {
  if (text.size() <= kMaxDescription) return text;
  return text.substr(0, kMaxDescription - 3) + "...";
}

std::string Alignment(const ChainSummary& chain) {
  if (chain.type == "ligand") return "";
  if (chain.msa_files.empty()) return "no alignment: the query alone";
  std::ostringstream out;
  out << chain.msa_rows << " distinct of " << chain.msa_rows_read << " rows, " << chain.msa_species
      << " with a species (";
  for (std::size_t i = 0; i < chain.msa_files.size(); ++i) {
    out << (i > 0 ? ", " : "") << chain.msa_files[i];
  }
  out << ")";
  return out.str();
}

}  // namespace

std::string ToText(const EntrySummary& summary) {
  std::ostringstream out;
  const auto or_none = [](const std::string& text) { return text.empty() ? "not stated" : text; };
  char resolution[32] = "not stated";
  if (summary.resolution > 0) {
    std::snprintf(resolution, sizeof(resolution), "%.2f A", summary.resolution);
  }
  out << summary.entry_id << "  (" << summary.file << ")\n"
      << "  method " << or_none(summary.method) << ", resolution " << resolution << ", released "
      << or_none(summary.release_date) << "\n"
      << "  tokens " << summary.tokens << ", " << summary.resolved_tokens
      << " with coordinates: protein " << summary.protein_tokens << ", rna " << summary.rna_tokens
      << ", dna " << summary.dna_tokens << ", ligand " << summary.ligand_tokens
      << "; in modified residues " << summary.modified_tokens << "\n"
      << "  atoms " << summary.atoms << ", " << summary.resolved_atoms << " with coordinates; "
      << summary.bonds << " bonds of ligands\n"
      << "  alignment " << summary.msa_rows << " rows, " << summary.paired_rows
      << " of them paired by species\n";
  for (const ChainSummary& chain : summary.chains) {
    out << "  chain " << chain.id << ": " << chain.type << ", entity " << chain.entity << ", "
        << chain.residues << " residues";
    if (chain.unresolved_residues > 0) {
      out << " (" << chain.unresolved_residues << " without coordinates)";
    }
    out << ", " << chain.tokens << " tokens, " << chain.atoms << " atoms";
    if (chain.resolved_atoms < chain.atoms) {
      out << " (" << chain.atoms - chain.resolved_atoms << " without coordinates)";
    }
    out << "\n      " << Shortened(chain.description) << "\n";
    const std::string alignment = Alignment(chain);
    if (!alignment.empty()) out << "      " << alignment << "\n";
  }
  out << "  left out:" << (summary.left_out.empty() ? " nothing" : "") << "\n";
  for (const LeftOut& item : summary.left_out) {
    out << "      " << item.count << " x " << item.what << ": " << item.why << "\n";
  }
  return out.str();
}

}  // namespace megafold::data
