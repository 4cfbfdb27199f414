#include "tests/data/fixtures.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <atomic>
#include <fstream>
#include <sstream>

#include "data/ccd/dictionary.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

namespace fs = std::filesystem;

const ComponentDictionary& DemoDictionary() {
  static const ComponentDictionary dictionary(DemoRoot() / "ccd");
  return dictionary;
}

std::string Gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  std::string input = text;
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string Quoted(const std::string& name) {
  return name.find('\'') == std::string::npos ? name : "\"" + name + "\"";
}

}  // namespace

fs::path DemoRoot() { return fs::path(MEGAFOLD_SOURCE_DIR) / "data" / "demo"; }

TempFolder::TempFolder() {
  static std::atomic<int> count = 0;
  path_ = fs::temp_directory_path() /
          ("megafold_data_" + std::to_string(getpid()) + "_" + std::to_string(count++));
  fs::create_directories(path_);
}

TempFolder::~TempFolder() { fs::remove_all(path_); }

void TempFolder::Write(const std::string& name, const std::string& text) const {
  fs::create_directories((path_ / name).parent_path());
  std::ofstream(path_ / name, std::ios::binary) << (name.ends_with(".gz") ? Gzip(text) : text);
}

DataConfig TempFolder::Config() const {
  DataConfig config;
  config.root = path_.string();
  config.ccd = (DemoRoot() / "ccd").string();
  return config;
}

CifWriter& CifWriter::Residue(const std::string& asym, const std::string& component,
                              const Options& options) {
  const auto known = DemoDictionary().Find(component);
  if (known == nullptr) throw std::logic_error("no component " + component);
  Options used = options;
  used.shift += 20.0F * static_cast<float>(residues_++);
  if (used.auth_seq.empty() && used.seq.empty()) used.auth_seq = std::to_string(100 + residues_);
  for (const ComponentAtom& atom : known->atoms) {
    const auto& without = options.without;
    if (atom.leaving || std::find(without.begin(), without.end(), atom.name) != without.end()) {
      continue;
    }
    Atom("C", atom.name, component, asym, used, atom.position[0], atom.position[1],
         atom.position[2]);
  }
  return *this;
}

CifWriter& CifWriter::Polymer(const std::string& asym, const std::vector<std::string>& components) {
  for (std::size_t i = 0; i < components.size(); ++i) {
    Residue(asym, components[i], {.seq = std::to_string(i + 1)});
  }
  return Sequence(asym, components);
}

CifWriter& CifWriter::Atom(const std::string& symbol, const std::string& atom,
                           const std::string& component, const std::string& asym,
                           const Options& options, float x, float y, float z) {
  std::ostringstream line;
  line << "ATOM " << symbol << " " << Quoted(atom) << " " << options.alternative << " " << component
       << " " << asym << " " << (options.seq.empty() ? "." : options.seq) << " "
       << x + options.shift << " " << y << " " << z << " " << options.occupancy << " "
       << (options.auth_seq.empty() ? options.seq : options.auth_seq) << " " << asym << " "
       << options.model;
  atoms_.push_back(line.str());
  return *this;
}

CifWriter& CifWriter::Sequence(const std::string& asym, const std::vector<std::string>& components,
                               const std::vector<int>& missing) {
  for (std::size_t i = 0; i < components.size(); ++i) {
    const int seq = static_cast<int>(i) + 1;
    const bool unseen = std::find(missing.begin(), missing.end(), seq) != missing.end();
    std::ostringstream line;
    line << asym << " " << seq << " " << components[i] << " ";
    if (unseen) {
      line << "?";
    } else {
      line << seq;
    }
    sequence_.push_back(line.str());
  }
  return *this;
}

CifWriter& CifWriter::Bond(const std::string& asym1, const std::string& seq1,
                           const std::string& atom1, const std::string& asym2,
                           const std::string& seq2, const std::string& atom2) {
  bonds_.push_back("covale " + asym1 + " " + seq1 + " " + Quoted(atom1) + " " + asym2 + " " + seq2 +
                   " " + Quoted(atom2));
  return *this;
}

std::string CifWriter::Text() const {
  const auto loop = [](const std::string& category, const std::vector<std::string>& tags,
                       const std::vector<std::string>& rows) {
    std::string text;
    if (rows.empty()) return text;
    text = "loop_\n";
    for (const std::string& tag : tags) text += category + "." + tag + "\n";
    for (const std::string& row : rows) text += row + "\n";
    return text + "#\n";
  };
  return "data_TEST\n#\n_exptl.method 'X-RAY DIFFRACTION'\n#\n_refine.ls_d_res_high 2.5\n#\n" +
         loop("_pdbx_audit_revision_history", {"ordinal", "revision_date"},
              {"1 2011-07-13", "2 2004-03-09"}) +
         loop("_struct_conn",
              {"conn_type_id", "ptnr1_auth_asym_id", "ptnr1_auth_seq_id", "ptnr1_label_atom_id",
               "ptnr2_auth_asym_id", "ptnr2_auth_seq_id", "ptnr2_label_atom_id"},
              bonds_) +
         loop("_atom_site",
              {"group_PDB", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id",
               "label_asym_id", "label_seq_id", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy",
               "auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num"},
              atoms_) +
         loop("_pdbx_poly_seq_scheme", {"asym_id", "seq_id", "mon_id", "auth_seq_num"}, sequence_);
}

std::string ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace megafold::data
