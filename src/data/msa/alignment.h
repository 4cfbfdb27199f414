// One alignment: the rows that belong to one chain's sequence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/features/residue_classes.h"

namespace megafold::data {

// What an alignment must match: the residue classes of a chain and which positions may differ.
struct QuerySequence {
  MoleculeType type = MoleculeType::kProtein;
  std::vector<std::uint8_t> classes;
  // Positions with a modified or unknown residue: alignments write X, the parent, or leave out
  // those that do not link into polymers (caps).
  std::vector<std::uint8_t> is_modified;
  std::vector<std::uint8_t> is_cap;
};

// Rows are distinct, row 0 is the query. Columns are positions of the QuerySequence.
struct Alignment {
  std::int64_t columns = 0;
  std::vector<std::uint8_t> classes;    // [rows, columns]
  std::vector<std::uint8_t> deletions;  // [rows, columns], to the left of the column, at most 255
  std::vector<std::string> species;     // [rows], empty when the header names none
  std::vector<float> profile;           // [columns, 32], over all distinct rows, also those cut off
  std::vector<float> deletion_mean;     // [columns]
  std::vector<std::string> files;
  std::int64_t rows_read = 0;
  std::int64_t rows_distinct = 0;

  std::int64_t rows() const { return static_cast<std::int64_t>(species.size()); }
  std::span<const std::uint8_t> Row(std::int64_t row) const {
    return std::span(classes).subspan(static_cast<std::size_t>(row * columns),
                                      static_cast<std::size_t>(columns));
  }
  std::span<const std::uint8_t> DeletionRow(std::int64_t row) const {
    return std::span(deletions).subspan(static_cast<std::size_t>(row * columns),
                                        static_cast<std::size_t>(columns));
  }
};

// Reads A3M files (plain or gzip) one after the other: lower-case letters are insertions and count
// as deletions of the next column, '.' is ignored. Each file's first row must be the query. Rows
// that repeat an earlier row are dropped; `max_rows` are kept. Without files the query is the only
// row. Error (kDataCorrupt) names file, chain, row and what was expected.
Alignment ReadAlignment(const std::vector<std::filesystem::path>& files, const std::string& chain,
                        const QuerySequence& query, std::int64_t max_rows);

// The species of a row's header: the number after OX= or TaxID= ("taxon 9606"), else the mnemonic
// of a UniProt name such as RASH_HUMAN ("HUMAN"); empty when there is none. The two spellings do
// not match each other.
std::string SpeciesOf(std::string_view header);

}  // namespace megafold::data
