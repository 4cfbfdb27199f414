// An Entry as bytes and back, for files that the same program on the same kind of machine reads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "data/features/entry.h"

namespace megafold::data {

// Changes whenever an Entry of the same bytes would mean something else; raise it with every change
// of what BuildEntry computes or of the structures below it.
inline constexpr std::uint64_t kEntryFormat = 1;

std::string EntryToBytes(const Entry& entry);

// Error (kDataCorrupt) when the bytes do not hold exactly one entry; no size is believed before it
// was compared with the bytes that are there.
Entry EntryFromBytes(std::string_view bytes);

}  // namespace megafold::data
