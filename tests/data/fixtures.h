// What the tests of the data pipeline share: small files made on the spot, and the contract check.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/features/array.h"

namespace megafold::data {

// data/demo of the repository.
std::filesystem::path DemoRoot();

// A fresh folder, removed at the end.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // Writes a file and the folders above it; ".gz" names are compressed.
  void Write(const std::string& name, const std::string& text) const;
  // A data root in this folder that takes its components from data/demo.
  DataConfig Config() const;

 private:
  std::filesystem::path path_;
};

// An mmCIF file in the PDB's layout, made of residues whose atoms stand where the dictionary's
// conformer has them, shifted along x so that no two residues overlap.
class CifWriter {
 public:
  struct Options {
    std::string seq = "";       // label_seq_id; empty: '.'
    std::string auth_seq = "";  // empty: as seq, or a running number
    std::string alternative = ".";
    std::string occupancy = "1.00";
    std::string model = "1";
    float shift = 0;                        // added to x
    std::vector<std::string> without = {};  // atoms to leave out, beside all leaving atoms
  };
  // Adds the component's heavy atoms that do not leave.
  CifWriter& Residue(const std::string& asym, const std::string& component, const Options& options);
  // A polymer from seq 1 on; every residue observed.
  CifWriter& Polymer(const std::string& asym, const std::vector<std::string>& components);
  // One atom_site line as it is.
  CifWriter& Atom(const std::string& symbol, const std::string& atom, const std::string& component,
                  const std::string& asym, const Options& options, float x, float y, float z);
  // pdbx_poly_seq_scheme; unobserved positions are those in `missing`, from 1.
  CifWriter& Sequence(const std::string& asym, const std::vector<std::string>& components,
                      const std::vector<int>& missing = {});
  CifWriter& Bond(const std::string& asym1, const std::string& seq1, const std::string& atom1,
                  const std::string& asym2, const std::string& seq2, const std::string& atom2);
  std::string Text() const;

 private:
  std::vector<std::string> atoms_;
  std::vector<std::string> sequence_;
  std::vector<std::string> bonds_;
  int residues_ = 0;
};

// The message of the Error that `call` throws, "no error" when it throws none.
std::string ErrorOf(const std::function<void()>& call);

// Expects every name, type and shape of docs/features.md, and what it says of their values.
void ExpectContract(const Example& example);

template <typename T>
std::vector<T> Values(const Example& example, const std::string& name) {
  const auto values = example.features.at(name).values<T>();
  return {values.begin(), values.end()};
}

}  // namespace megafold::data
