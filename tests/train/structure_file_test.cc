#include "train/structure_file.h"

#include <gtest/gtest.h>

#include "megafold/core/error.h"

namespace megafold::train {
namespace {

at::Tensor Ints(std::vector<std::int64_t> values) {
  return at::tensor(values, at::kInt).unsqueeze(0);
}

// A nucleotide's C1', a modified residue's atom and an iron, the second atom without coordinates.
TensorDict ThreeAtoms() {
  const auto chars = [](const char* name) {
    at::Tensor codes = at::zeros({4}, at::kByte);
    for (int i = 0; name[i] != '\0'; ++i) codes[i] = name[i] - 32;
    return codes;
  };
  return {{"atom_to_token", Ints({0, 1, 2})},
          {"ref_atom_name_chars", at::stack({chars("C1'"), chars("CA"), chars("FE")}).unsqueeze(0)},
          {"ref_element", Ints({6, 6, 26})},
          {"asym_id", Ints({0, 25, 26})},
          {"entity_id", Ints({0, 1, 2})},
          {"residue_index", Ints({7, 8, 1})},
          {"restype", Ints({27, 20, 20})},
          {"is_protein", Ints({0, 1, 0})},
          {"is_rna", Ints({0, 0, 0})},
          {"is_dna", Ints({1, 0, 0})}};
}

TEST(StructureFile, NamesAtomsResiduesAndChains) {
  const at::Tensor positions =
      torch::tensor({{1.0, -2.5, 3.25}, {0.0, 0.0, 0.0}, {9.9999, 0.0, 1.0}});
  const at::Tensor all = at::ones({3}, at::kByte);
  const std::string text = StructureMmcif("x", ThreeAtoms(), positions, all);
  EXPECT_EQ(text.rfind("data_x\n#\nloop_\n_atom_site.group_PDB\n", 0), 0U) << text;
  for (const char* line : {"\nATOM 1 C \"C1'\" . DG A 1 7 1.000 -2.500 3.250 1.00 0.00 7 A 1\n",
                           "\nATOM 2 C CA . UNK Z 2 8 0.000 0.000 0.000 1.00 0.00 8 Z 1\n",
                           "\nHETATM 3 Fe FE . UNL AA 3 . 10.000 0.000 1.000 1.00 0.00 1 AA 1\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  }
}

TEST(StructureFile, LeavesOutWhatIsNotWritten) {
  const at::Tensor written = at::tensor({1, 0, 1}, at::kByte);
  const std::string text = StructureMmcif("x", ThreeAtoms(), at::zeros({3, 3}), written);
  EXPECT_EQ(text.find(" UNK "), std::string::npos) << text;
  EXPECT_NE(text.find("\nHETATM 2 Fe"), std::string::npos) << text;
}

TEST(StructureFile, AMissingFeatureIsNamed) {
  TensorDict features = ThreeAtoms();
  features.erase("asym_id");
  try {
    StructureMmcif("x", features, at::zeros({3, 3}), at::ones({3}, at::kByte));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no feature 'asym_id'"), std::string::npos);
  }
}

}  // namespace
}  // namespace megafold::train
