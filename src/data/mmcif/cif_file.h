// The CIF format, through gemmi. Only cif_file.cc sees gemmi's parser, which is slow to compile.
#pragma once

#include <cstdint>
#include <filesystem>
#include <gemmi/cifdoc.hpp>
#include <string>

namespace megafold::data {

// Parses `text`; `name` is the file's name for messages. Error (kDataCorrupt) with the line of the
// fault, or when the text breaks off: a file that separates its categories by '#' lines, as those
// of the PDB do, must end in one.
gemmi::cif::Document ParseCif(const std::string& text, const std::string& name);

// ReadTextFile and ParseCif.
gemmi::cif::Document ReadCifFile(const std::filesystem::path& file);

}  // namespace megafold::data
