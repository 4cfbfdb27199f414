#include "data/mmcif/atom_site.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <gemmi/elem.hpp>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "megafold/core/error.h"

namespace megafold::data {
namespace {

using Row = gemmi::cif::Table::Row;

// The columns of atom_site, in the order they are asked for.
enum Column {
  kSymbol,
  kAtom,
  kComponent,
  kAsym,
  kX,
  kY,
  kZ,
  kSeq,
  kAlternative,
  kInsertion,
  kOccupancy,
  kAuthSeq,
  kAuthAsym,
  kModel,
};
const std::vector<std::string> kTags = {
    "type_symbol", "label_atom_id", "label_comp_id", "label_asym_id",      "Cartn_x",
    "Cartn_y",     "Cartn_z",       "?label_seq_id", "?label_alt_id",      "?pdbx_PDB_ins_code",
    "?occupancy",  "?auth_seq_id",  "?auth_asym_id", "?pdbx_PDB_model_num"};

constexpr double kMaxNumber = 1e7;  // no coordinate or residue number is near this

struct RawAtom {
  std::string component;
  std::string alternative;  // empty when there is one location
  double occupancy = 1;
  AtomSite site;
};

struct RawResidue {
  Residue residue;  // without component and atoms
  std::vector<RawAtom> atoms;
};

std::string TextOr(const Row& row, Column column, const std::string& otherwise) {
  return row.has2(column) ? row.str(column) : otherwise;
}

template <typename T>
T NumberIn(const Row& row, Column column, T otherwise, const std::string& file) {
  if (!row.has2(column)) return otherwise;
  const std::string text = row.str(column);
  T value{};
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  // from_chars also reads "nan" and "inf".
  const bool usable = std::fabs(static_cast<double>(value)) < kMaxNumber;
  if (error != std::errc() || rest != text.data() + text.size() || !usable) {
    Fail(ErrorCode::kDataCorrupt, file, ": chain ", row.str(kAsym), ", atom ", row.str(kAtom),
         " of ", row.str(kComponent), ": _atom_site.",
         kTags[column].substr(kTags[column][0] == '?' ? 1 : 0), " is '", text,
         "', expected a number");
  }
  return value;
}

bool IsWater(const std::string& component) {
  return component == "HOH" || component == "DOD" || component == "WAT";
}

RawAtom AtomOf(const Row& row, const std::string& file) {
  RawAtom atom;
  atom.component = row.str(kComponent);
  atom.alternative = TextOr(row, kAlternative, "");
  atom.occupancy = NumberIn(row, kOccupancy, 1.0, file);
  atom.site.name = row.str(kAtom);
  for (int axis = 0; axis < 3; ++axis) {
    const auto column = static_cast<Column>(kX + axis);
    if (!row.has2(column)) {
      Fail(ErrorCode::kDataCorrupt, file, ": chain ", row.str(kAsym), ", atom ", atom.site.name,
           " of ", atom.component, " has no coordinates");
    }
    atom.site.position[static_cast<std::size_t>(axis)] = NumberIn(row, column, 0.0F, file);
  }
  if (atom.component == "MSE") {
    atom.component = "MET";
    if (atom.site.name == "SE") atom.site.name = "SD";
  }
  return atom;
}

// Collects rows into residues; a residue's rows need not be adjacent.
class Collector {
 public:
  Collector(std::string file, LeftOutCounts* left_out)
      : file_(std::move(file)), left_out_(left_out) {}

  void Add(const Row& row) {
    const std::string model = TextOr(row, kModel, "1");
    if (first_model_.empty()) first_model_ = model;
    if (model != first_model_) return left_out_->Add("atom", "not in the first model");
    const gemmi::Element element(row.str(kSymbol));
    if (element == gemmi::El::H || element == gemmi::El::D) {
      return left_out_->Add("atom", "hydrogen");
    }
    if (IsWater(row.str(kComponent))) return left_out_->Add("atom", "water");
    RawResidue& residue = ResidueOf(row);
    const bool selenium = row.str(kComponent) == "MSE" && element == gemmi::El::Se;
    if (selenium) left_out_->Add("component MSE", "read as MET");
    residue.atoms.push_back(AtomOf(row, file_));
  }

  std::vector<RawResidue> Take() { return std::move(residues_); }

 private:
  RawResidue& ResidueOf(const Row& row) {
    Residue residue;
    residue.asym = row.str(kAsym);
    residue.seq = NumberIn(row, kSeq, 0, file_);
    residue.auth_asym = TextOr(row, kAuthAsym, residue.asym);
    residue.auth_seq = TextOr(row, kAuthSeq, std::to_string(residue.seq));
    residue.insertion = TextOr(row, kInsertion, "");
    const auto key =
        std::make_tuple(residue.asym, residue.seq, residue.auth_seq, residue.insertion);
    const auto [at, added] = index_.emplace(key, residues_.size());
    if (added) residues_.push_back({std::move(residue), {}});
    return residues_[at->second];
  }

  std::string file_;
  LeftOutCounts* left_out_;
  std::string first_model_;
  std::map<std::tuple<std::string, int, std::string, std::string>, std::size_t> index_;
  std::vector<RawResidue> residues_;
};

// The value of `text_of` with the highest mean occupancy; the first of equals.
template <typename TextOf>
std::string MostOccupied(const std::vector<RawAtom>& atoms, TextOf text_of) {
  std::vector<std::string> values;
  std::map<std::string, std::pair<double, int>> sums;
  for (const RawAtom& atom : atoms) {
    const std::string& value = text_of(atom);
    if (value.empty()) continue;
    auto& [sum, count] = sums[value];
    if (count == 0) values.push_back(value);
    sum += atom.occupancy;
    ++count;
  }
  std::string best;
  double best_mean = -1;
  for (const std::string& value : values) {
    const double mean = sums[value].first / sums[value].second;
    if (mean > best_mean + 1e-6) {
      best_mean = mean;
      best = value;
    }
  }
  return best;
}

Residue ChooseLocations(RawResidue raw, LeftOutCounts* left_out) {
  Residue residue = std::move(raw.residue);
  residue.component = MostOccupied(raw.atoms, [](const RawAtom& a) { return a.component; });
  const auto elsewhere = [&](const RawAtom& a) { return a.component != residue.component; };
  left_out->Add("atom", "other component at the same place", std::erase_if(raw.atoms, elsewhere));
  const std::string chosen =
      MostOccupied(raw.atoms, [](const RawAtom& a) { return a.alternative; });
  std::set<std::string> names;
  for (RawAtom& atom : raw.atoms) {
    if (!atom.alternative.empty() && atom.alternative != chosen) {
      left_out->Add("atom", "alternative location");
    } else if (atom.occupancy <= 0) {
      left_out->Add("atom", "occupancy 0");
    } else if (!names.insert(atom.site.name).second) {
      left_out->Add("atom", "name occurs twice in its residue");
    } else {
      residue.atoms.push_back(std::move(atom.site));
    }
  }
  return residue;
}

void FixArginine(Residue* residue) {
  const auto find = [&](const char* name) {
    return std::find_if(residue->atoms.begin(), residue->atoms.end(),
                        [&](const AtomSite& atom) { return atom.name == name; });
  };
  const auto none = residue->atoms.end();
  const auto cd = find("CD");
  const auto nh1 = find("NH1");
  const auto nh2 = find("NH2");
  if (cd == none || nh1 == none || nh2 == none) return;
  if (SquaredDistance(nh2->position, cd->position) < SquaredDistance(nh1->position, cd->position)) {
    std::swap(nh1->position, nh2->position);
  }
}

}  // namespace

std::string NameOf(const Residue& residue) {
  const std::string number =
      residue.seq > 0 ? std::to_string(residue.seq) : residue.auth_seq + residue.insertion;
  return "chain " + residue.asym + ", residue " + number + " (" + residue.component + ")";
}

std::vector<Residue> ReadAtomSite(gemmi::cif::Block& block, const std::string& file,
                                  LeftOutCounts* left_out) {
  auto table = block.find("_atom_site.", kTags);
  if (!table.ok() || table.length() == 0) {
    for (const std::string& tag : kTags) {
      if (tag[0] == '?' || block.find_values("_atom_site." + tag).length() > 0) continue;
      Fail(ErrorCode::kDataCorrupt, file, ": no _atom_site.", tag, ", expected coordinates");
    }
  }
  Collector collector(file, left_out);
  for (const Row& row : table) collector.Add(row);
  std::vector<Residue> residues;
  for (RawResidue& raw : collector.Take()) {
    residues.push_back(ChooseLocations(std::move(raw), left_out));
    if (residues.back().component == "ARG") FixArginine(&residues.back());
  }
  return residues;
}

}  // namespace megafold::data
