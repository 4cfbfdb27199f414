#include "data/features/example.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "data/features/chain_copies.h"
#include "data/features/crop.h"
#include "data/features/example_msa.h"
#include "data/random.h"

namespace megafold::data {
namespace {

// Fills one array per field from a crop of tokens or atoms.
template <typename T, typename Value>
Array Column(std::size_t size, Value value) {
  Array array(ArrayTypeOf<T>::value, {static_cast<std::int64_t>(size)});
  auto out = array.values<T>();
  for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<T>(value(i));
  return array;
}

// As Column, with `width` values per row.
template <typename T, typename Value>
Array Rows(std::size_t size, std::size_t width, Value value) {
  Array array(ArrayTypeOf<T>::value,
              {static_cast<std::int64_t>(size), static_cast<std::int64_t>(width)});
  auto out = array.values<T>();
  for (std::size_t i = 0; i < size; ++i) {
    for (std::size_t j = 0; j < width; ++j) out[i * width + j] = static_cast<T>(value(i, j));
  }
  return array;
}

class ExampleBuilder {
 public:
  ExampleBuilder(const Entry& entry, std::vector<std::int32_t> tokens)
      : entry_(entry), tokens_(std::move(tokens)) {
    new_token_.assign(entry.tokens.size(), -1);
    new_atom_.assign(entry.atoms.size(), kNoAtom);
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const Token& token = entry.tokens[static_cast<std::size_t>(tokens_[i])];
      new_token_[static_cast<std::size_t>(tokens_[i])] = static_cast<std::int32_t>(i);
      for (std::int32_t atom = token.atom_start; atom < token.atom_start + token.atom_count;
           ++atom) {
        new_atom_[static_cast<std::size_t>(atom)] = static_cast<std::int32_t>(atoms_.size());
        atoms_.push_back(atom);
      }
    }
  }

  Example Build(const DataConfig& config, std::uint64_t seed) {
    example_.entry_id = entry_.id;
    AddTokens();
    AddTokenAtoms();
    AddAtoms();
    AddChainCopies(entry_, tokens_, atoms_, &example_.features);
    AddReferences(seed);
    AddBonds();
    AddTemplates();
    AddMsaFeatures(entry_, tokens_, config.msa_rows, seed, &example_.features);
    return std::move(example_);
  }

 private:
  const Token& TokenAt(std::size_t i) const {
    return entry_.tokens[static_cast<std::size_t>(tokens_[i])];
  }
  const ChainFeatures& ChainAt(std::size_t i) const {
    return entry_.chains[static_cast<std::size_t>(TokenAt(i).asym_id)];
  }
  const Atom& AtomAt(std::size_t i) const {
    return entry_.atoms[static_cast<std::size_t>(atoms_[i])];
  }
  std::int32_t NewAtom(std::int32_t atom) const {
    return atom == kNoAtom ? kNoAtom : new_atom_[static_cast<std::size_t>(atom)];
  }
  void Add(const char* name, Array array) { example_.features.emplace(name, std::move(array)); }

  void AddTokens() {
    const std::size_t n = tokens_.size();
    const auto token = [&](auto field) {
      return [this, field](std::size_t i) { return TokenAt(i).*field; };
    };
    const auto is = [&](MoleculeType type) {
      return Column<std::uint8_t>(n, [&](std::size_t i) { return TokenAt(i).type == type; });
    };
    Add("token_mask", Column<std::uint8_t>(n, [](std::size_t) { return 1; }));
    Add("restype", Column<std::uint8_t>(n, token(&Token::restype)));
    Add("residue_index", Column<std::int32_t>(n, token(&Token::residue_index)));
    Add("token_index", Column<std::int32_t>(n, [&](std::size_t i) { return tokens_[i]; }));
    Add("asym_id", Column<std::int32_t>(n, token(&Token::asym_id)));
    Add("entity_id", Column<std::int32_t>(n, [&](std::size_t i) { return ChainAt(i).entity_id; }));
    Add("sym_id", Column<std::int32_t>(n, [&](std::size_t i) { return ChainAt(i).sym_id; }));
    Add("is_protein", is(MoleculeType::kProtein));
    Add("is_rna", is(MoleculeType::kRna));
    Add("is_dna", is(MoleculeType::kDna));
    Add("is_ligand", is(MoleculeType::kLigand));
  }

  // An atom that the crop or the residue lacks is replaced by the token's centre; has_frame says
  // so.
  void AddTokenAtoms() {
    const std::size_t n = tokens_.size();
    const auto atom = [&](auto field) {
      return Column<std::int32_t>(n, [&](std::size_t i) { return NewAtom(TokenAt(i).*field); });
    };
    Add("token_atom_start", atom(&Token::atom_start));
    Add("token_atom_count",
        Column<std::int32_t>(n, [&](std::size_t i) { return TokenAt(i).atom_count; }));
    Add("token_center_atom", atom(&Token::center_atom));
    Add("token_rep_atom", atom(&Token::rep_atom));
    Add("token_frame_atoms", Rows<std::int32_t>(n, 3, [&](std::size_t i, std::size_t j) {
          const std::int32_t frame_atom = NewAtom(TokenAt(i).frame_atoms[j]);
          return frame_atom == kNoAtom ? NewAtom(TokenAt(i).center_atom) : frame_atom;
        }));
    Add("token_has_frame", Column<std::uint8_t>(n, [&](std::size_t i) {
          const auto& frame = TokenAt(i).frame_atoms;
          return TokenAt(i).has_frame && std::all_of(frame, frame + 3, [&](std::int32_t index) {
                   return NewAtom(index) != kNoAtom;
                 });
        }));
  }

  void AddAtoms() {
    const std::size_t n = atoms_.size();
    const auto atom = [&](auto field) {
      return [this, field](std::size_t i) { return AtomAt(i).*field; };
    };
    Add("atom_mask", Column<std::uint8_t>(n, [](std::size_t) { return 1; }));
    Add("atom_to_token", Column<std::int32_t>(n, [&](std::size_t i) {
          return new_token_[static_cast<std::size_t>(AtomAt(i).token)];
        }));
    Add("ref_mask", Column<std::uint8_t>(n, atom(&Atom::ref_present)));
    Add("ref_element", Column<std::uint8_t>(n, atom(&Atom::element)));
    Add("ref_charge", Column<float>(n, atom(&Atom::charge)));
    Add("ref_space_uid", Column<std::int32_t>(n, atom(&Atom::ref_space_uid)));
    Add("ref_atom_name_chars", Rows<std::uint8_t>(n, 4, [&](std::size_t i, std::size_t j) {
          return AtomAt(i).name_chars[j];
        }));
    Add("atom_positions",
        Rows<float>(n, 3, [&](std::size_t i, std::size_t j) { return AtomAt(i).position[j]; }));
    Add("atom_resolved", Column<std::uint8_t>(n, atom(&Atom::resolved)));
  }

  // Atoms of one conformer are consecutive in the entry; each gets its own rotation, about the mean
  // of the whole conformer, whatever part of it the crop has.
  void AddReferences(std::uint64_t seed) {
    Array array(ArrayType::kFloat32, {static_cast<std::int64_t>(atoms_.size()), 3});
    auto out = array.values<float>();
    const auto& all = entry_.atoms;
    for (std::size_t first = 0; first < all.size();) {
      const std::int32_t uid = all[first].ref_space_uid;
      std::size_t end = first;
      double sum[3] = {0, 0, 0};
      int present = 0;
      for (; end < all.size() && all[end].ref_space_uid == uid; ++end) {
        if (!all[end].ref_present) continue;
        ++present;
        for (std::size_t axis = 0; axis < 3; ++axis) sum[axis] += all[end].ref_position[axis];
      }
      float rotation[9];
      Random random(seed, RandomUse::kConformer, static_cast<std::uint64_t>(uid));
      RandomRotation(random, rotation);
      for (; first < end; ++first) {
        if (new_atom_[first] == kNoAtom || !all[first].ref_present) continue;
        Vec3 centred{};
        for (std::size_t axis = 0; axis < 3; ++axis) {
          centred[axis] = all[first].ref_position[axis] - static_cast<float>(sum[axis] / present);
        }
        for (std::size_t row = 0; row < 3; ++row) {
          out[static_cast<std::size_t>(new_atom_[first]) * 3 + row] =
              Dot(centred, {rotation[row * 3], rotation[row * 3 + 1], rotation[row * 3 + 2]});
        }
      }
    }
    Add("ref_pos", std::move(array));
  }

  void AddBonds() {
    const auto n = static_cast<std::int64_t>(tokens_.size());
    Array matrix(ArrayType::kUInt8, {n, n});
    for (const auto& [first, second] : entry_.token_bonds) {
      const std::int64_t i = new_token_[static_cast<std::size_t>(first)];
      const std::int64_t j = new_token_[static_cast<std::size_t>(second)];
      if (i < 0 || j < 0) continue;
      matrix.values<std::uint8_t>()[static_cast<std::size_t>(i * n + j)] = 1;
      matrix.values<std::uint8_t>()[static_cast<std::size_t>(j * n + i)] = 1;
    }
    std::vector<std::int32_t> kept;
    for (const auto& [first, second] : entry_.atom_bonds) {
      if (NewAtom(first) == kNoAtom || NewAtom(second) == kNoAtom) continue;
      kept.insert(kept.end(), {NewAtom(first), NewAtom(second)});
    }
    const std::size_t bonds = kept.size() / 2;
    Add("token_bonds", std::move(matrix));
    Add("bond_atoms", Rows<std::int32_t>(
                          bonds, 2, [&](std::size_t i, std::size_t j) { return kept[i * 2 + j]; }));
    Add("bond_mask", Column<std::uint8_t>(bonds, [](std::size_t) { return 1; }));
  }

  void AddTemplates() {
    const auto n = static_cast<std::int64_t>(tokens_.size());
    Add("template_restype", Array(ArrayType::kUInt8, {0, n}));
    Add("template_pseudo_beta", Array(ArrayType::kFloat32, {0, n, 3}));
    Add("template_pseudo_beta_mask", Array(ArrayType::kUInt8, {0, n}));
    Add("template_backbone", Array(ArrayType::kFloat32, {0, n, 3, 3}));
    Add("template_backbone_mask", Array(ArrayType::kUInt8, {0, n}));
  }

  const Entry& entry_;
  std::vector<std::int32_t> tokens_;     // of the crop, ascending
  std::vector<std::int32_t> atoms_;      // of the crop
  std::vector<std::int32_t> new_token_;  // entry -> crop, -1 when not in it
  std::vector<std::int32_t> new_atom_;
  Example example_;
};

}  // namespace

// Shoemake: a unit quaternion uniform on the sphere in four dimensions.
void RandomRotation(Random& random, float (&matrix)[9]) {
  constexpr double kTurn = 6.283185307179586;
  const double u = random.Uniform();
  const double a = kTurn * random.Uniform();
  const double b = kTurn * random.Uniform();
  const double x = std::sqrt(1 - u) * std::sin(a);
  const double y = std::sqrt(1 - u) * std::cos(a);
  const double z = std::sqrt(u) * std::sin(b);
  const double w = std::sqrt(u) * std::cos(b);
  const double values[9] = {
      1 - 2 * (y * y + z * z), 2 * (x * y - z * w),     2 * (x * z + y * w),
      2 * (x * y + z * w),     1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
      2 * (x * z - y * w),     2 * (y * z + x * w),     1 - 2 * (x * x + y * y)};
  for (std::size_t i = 0; i < 9; ++i) matrix[i] = static_cast<float>(values[i]);
}

Example MakeExample(const Entry& entry, const DataConfig& config, std::uint64_t seed) {
  Random random(seed, RandomUse::kCrop);
  return ExampleBuilder(entry, DrawCrop(entry, config.crop_tokens, config.crop, random))
      .Build(config, seed);
}

}  // namespace megafold::data
