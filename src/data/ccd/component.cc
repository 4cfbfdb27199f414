#include "data/ccd/component.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <gemmi/elem.hpp>
#include <map>

#include "megafold/core/error.h"

namespace megafold::data {
namespace {

using gemmi::cif::as_string;
using gemmi::cif::is_null;

constexpr float kMaxCharge = 20;

LinkType LinkOf(std::string type) {
  std::transform(type.begin(), type.end(), type.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  const auto has = [&](const char* word) { return type.find(word) != std::string::npos; };
  if (has("PEPTIDE") && has("LINKING")) return LinkType::kPeptide;
  if (has("RNA") && has("LINKING")) return LinkType::kRna;
  if (has("DNA") && has("LINKING")) return LinkType::kDna;
  return LinkType::kNone;
}

float ParseFloat(const std::string& text, const std::string& file, const std::string& component) {
  float value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end || !std::isfinite(value)) {
    Fail(ErrorCode::kDataCorrupt, file, ": component '", component, "': '", text,
         "' is not a coordinate");
  }
  return value;
}

struct Conformer {
  std::vector<Vec3> positions;
  std::vector<bool> present;
  std::size_t Count() const {
    return static_cast<std::size_t>(std::count(present.begin(), present.end(), true));
  }
};

// Columns first .. first + 2 of the row, when all three are there.
void AddPosition(const gemmi::cif::Table::Row& row, int first, const std::string& file,
                 const std::string& component, Conformer* conformer) {
  Vec3 position{};
  bool present = true;
  for (int axis = 0; axis < 3; ++axis) {
    present = present && row.has2(static_cast<std::size_t>(first + axis));
  }
  for (int axis = 0; present && axis < 3; ++axis) {
    position[static_cast<std::size_t>(axis)] = ParseFloat(row.str(first + axis), file, component);
  }
  conformer->positions.push_back(position);
  conformer->present.push_back(present);
}

void ReadAtoms(gemmi::cif::Block& block, const std::string& file, Component* component) {
  auto table =
      block.find("_chem_comp_atom.",
                 {"atom_id", "type_symbol", "?charge", "?pdbx_leaving_atom_flag", "?model_Cartn_x",
                  "?model_Cartn_y", "?model_Cartn_z", "?pdbx_model_Cartn_x_ideal",
                  "?pdbx_model_Cartn_y_ideal", "?pdbx_model_Cartn_z_ideal"});
  Conformer model;
  Conformer ideal;
  for (const auto& row : table) {
    const gemmi::Element element(row.str(1));
    if (element == gemmi::El::H || element == gemmi::El::D) continue;
    ComponentAtom atom;
    atom.name = row.str(0);
    atom.element = static_cast<std::uint8_t>(element.atomic_number());
    if (row.has2(2)) {
      const float charge = ParseFloat(row.str(2), file, component->id);
      if (std::fabs(charge) > kMaxCharge) {
        Fail(ErrorCode::kDataCorrupt, file, ": component '", component->id, "': charge ", charge,
             " of atom ", atom.name, ", expected at most ", kMaxCharge, " either way");
      }
      atom.charge = static_cast<std::int8_t>(charge);
    }
    atom.leaving = row.has2(3) && row.str(3) == "Y";
    AddPosition(row, 4, file, component->id, &model);
    AddPosition(row, 7, file, component->id, &ideal);
    component->atoms.push_back(std::move(atom));
  }
  const Conformer& best = ideal.Count() >= model.Count() ? ideal : model;
  for (std::size_t i = 0; i < component->atoms.size(); ++i) {
    component->atoms[i].has_position = best.present[i];
    component->atoms[i].position = best.positions[i];
  }
}

void ReadBonds(gemmi::cif::Block& block, const std::string& file, Component* component) {
  std::map<std::string, int> known;  // every atom, hydrogens as -1
  for (const std::string& raw : block.find_values("_chem_comp_atom.atom_id")) {
    known[as_string(raw)] = component->Find(as_string(raw));
  }
  for (const auto& row : block.find("_chem_comp_bond.", {"atom_id_1", "atom_id_2"})) {
    const auto first = known.find(row.str(0));
    const auto second = known.find(row.str(1));
    if (first == known.end() || second == known.end()) {
      Fail(ErrorCode::kDataCorrupt, file, ": component '", component->id, "': bond ", row.str(0),
           "-", row.str(1), " names an atom that the component does not have");
    }
    const auto [low, high] = std::minmax(first->second, second->second);
    if (low >= 0) component->bonds.emplace_back(low, high);
  }
}

}  // namespace

int Component::Find(std::string_view atom_name) const {
  for (std::size_t i = 0; i < atoms.size(); ++i) {
    if (atoms[i].name == atom_name) return static_cast<int>(i);
  }
  return -1;
}

Component ParseComponent(const gemmi::cif::Block& constant_block, const std::string& file) {
  auto& block = const_cast<gemmi::cif::Block&>(constant_block);  // gemmi's tables are not const
  Component component;
  component.id = block.name;
  if (const std::string* id = block.find_value("_chem_comp.id")) component.id = as_string(*id);
  if (!block.has_tag("_chem_comp.type")) {
    Fail(ErrorCode::kDataCorrupt, file, ": component '", component.id, "' has no _chem_comp.type");
  }
  component.link = LinkOf(as_string(*block.find_value("_chem_comp.type")));
  if (const std::string* letter = block.find_value("_chem_comp.one_letter_code")) {
    if (!is_null(*letter) && as_string(*letter).size() == 1) {
      component.one_letter = as_string(*letter)[0];
    }
  }
  ReadAtoms(block, file, &component);
  ReadBonds(block, file, &component);
  return component;
}

}  // namespace megafold::data
