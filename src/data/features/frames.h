// The three atoms that give a token its local frame.
#pragma once

#include "data/features/entry.h"

namespace megafold::data {

// For a token that is one atom: the nearest atom of its residue, the token's atom, the second
// nearest, by the reference conformer; atoms first .. first + count - 1 are the residue's. Left as
// they are when the residue has fewer than three atoms in its conformer.
void SetAtomFrame(const std::vector<Atom>& atoms, std::int32_t first, std::int32_t count,
                  Token* token);

// Sets has_frame: all three exist, are resolved, and the angle at the middle one is at least 25
// degrees from straight or folded (AF3 supplement 4.3.2).
void CheckFrame(const std::vector<Atom>& atoms, Token* token);

}  // namespace megafold::data
