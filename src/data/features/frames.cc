#include "data/features/frames.h"

#include <cmath>
#include <limits>

namespace megafold::data {
namespace {

constexpr float kMaxCosine = 0.90630779F;  // of 25 degrees

}  // namespace

void SetAtomFrame(const std::vector<Atom>& atoms, std::int32_t first, std::int32_t count,
                  Token* token) {
  const Atom& own = atoms[static_cast<std::size_t>(token->center_atom)];
  if (!own.ref_present) return;
  std::int32_t nearest[2] = {kNoAtom, kNoAtom};
  float distances[2] = {std::numeric_limits<float>::max(), std::numeric_limits<float>::max()};
  for (std::int32_t i = first; i < first + count; ++i) {
    const Atom& other = atoms[static_cast<std::size_t>(i)];
    if (i == token->center_atom || !other.ref_present) continue;
    const float distance = SquaredDistance(own.ref_position, other.ref_position);
    if (distance < distances[0]) {
      nearest[1] = nearest[0];
      distances[1] = distances[0];
      nearest[0] = i;
      distances[0] = distance;
    } else if (distance < distances[1]) {
      nearest[1] = i;
      distances[1] = distance;
    }
  }
  if (nearest[1] == kNoAtom) return;
  token->frame_atoms[0] = nearest[0];
  token->frame_atoms[1] = token->center_atom;
  token->frame_atoms[2] = nearest[1];
}

void CheckFrame(const std::vector<Atom>& atoms, Token* token) {
  token->has_frame = false;
  Vec3 positions[3];
  for (std::size_t i = 0; i < 3; ++i) {
    const std::int32_t index = token->frame_atoms[i];
    if (index == kNoAtom || !atoms[static_cast<std::size_t>(index)].resolved) return;
    positions[i] = atoms[static_cast<std::size_t>(index)].position;
  }
  const Vec3 a = positions[0] - positions[1];
  const Vec3 c = positions[2] - positions[1];
  const float lengths = std::sqrt(Dot(a, a) * Dot(c, c));
  token->has_frame = lengths > 0 && std::fabs(Dot(a, c)) <= kMaxCosine * lengths;
}

}  // namespace megafold::data
