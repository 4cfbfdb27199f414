#include "data/cache/entry_bytes.h"

#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "megafold/core/error.h"

namespace megafold::data {
namespace {

// Pairs copy like plain bytes but are not called trivially copyable.
template <typename T>
constexpr bool kIsPlain = std::is_trivially_copyable_v<T> || std::is_same_v<T, IndexPair>;

class Writer {
 public:
  template <typename T>
  void operator()(const T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      Plain(value.data(), value.size(), 1);
    } else {
      static_assert(kIsPlain<T>);
      bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    }
  }
  template <typename T>
  void operator()(const std::vector<T>& values) {
    if constexpr (kIsPlain<T>) {
      Plain(values.data(), values.size(), sizeof(T));
    } else {
      (*this)(static_cast<std::uint64_t>(values.size()));
      for (const T& value : values) (*this)(value);
    }
  }
  std::string Take() { return std::move(bytes_); }

 private:
  void Plain(const void* data, std::size_t count, std::size_t width) {
    (*this)(static_cast<std::uint64_t>(count));
    if (count > 0) bytes_.append(static_cast<const char*>(data), count * width);
  }

  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  template <typename T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      const std::uint64_t count = Count(1);
      value.assign(Take(count), count);
    } else {
      static_assert(kIsPlain<T>);
      std::memcpy(static_cast<void*>(&value), Take(sizeof(T)), sizeof(T));
    }
  }
  template <typename T>
  void operator()(std::vector<T>& values) {
    if constexpr (kIsPlain<T>) {
      const std::uint64_t count = Count(sizeof(T));
      values.resize(count);
      const char* from = Take(count * sizeof(T));
      if (count > 0) std::memcpy(static_cast<void*>(values.data()), from, count * sizeof(T));
    } else {
      values.resize(Count(sizeof(std::uint64_t)));  // an element holds a size at least
      for (T& value : values) (*this)(value);
    }
  }
  void Finish() const {
    if (!rest_.empty()) Torn();
  }

 private:
  [[noreturn]] static void Torn() {
    Fail(ErrorCode::kDataCorrupt, "cached entry: its sizes contradict its length");
  }
  const char* Take(std::uint64_t size) {
    if (size > rest_.size()) Torn();
    const char* data = rest_.data();
    rest_.remove_prefix(size);
    return data;
  }
  // A number of elements of at least `width` bytes each.
  std::uint64_t Count(std::size_t width) {
    std::uint64_t count = 0;
    (*this)(count);
    if (count > rest_.size() / width) Torn();
    return count;
  }

  std::string_view rest_;
};

// One list of fields for both directions; `Archive` is Writer with const, or Reader with plain
// references.
template <typename Archive, typename Part>
void Fields(Archive& archive, Part& part);

template <typename Archive, typename Part>
void Each(Archive& archive, Part& parts) {
  using Value = typename std::remove_const_t<Part>::value_type;
  auto count = static_cast<std::uint64_t>(parts.size());
  archive(count);
  if constexpr (!std::is_const_v<Part>) {
    parts.clear();
    for (std::uint64_t i = 0; i < count; ++i) {
      Value value;
      Fields(archive, value);
      parts.push_back(std::move(value));
    }
  } else {
    for (const Value& value : parts) Fields(archive, value);
  }
}

template <typename Archive, typename Part>
void Fields(Archive& archive, Part& part) {
  using Type = std::remove_const_t<Part>;
  if constexpr (std::is_same_v<Type, LeftOut>) {
    archive(part.what), archive(part.why), archive(part.count);
  } else if constexpr (std::is_same_v<Type, ChainSummary>) {
    archive(part.id), archive(part.type), archive(part.description), archive(part.entity);
    archive(part.residues), archive(part.unresolved_residues), archive(part.tokens);
    archive(part.atoms), archive(part.resolved_atoms), archive(part.msa_files);
    archive(part.msa_rows_read), archive(part.msa_rows), archive(part.msa_species);
  } else if constexpr (std::is_same_v<Type, EntrySummary>) {
    archive(part.entry_id), archive(part.file), archive(part.method), archive(part.release_date);
    archive(part.resolution), archive(part.tokens), archive(part.resolved_tokens);
    archive(part.protein_tokens), archive(part.rna_tokens), archive(part.dna_tokens);
    archive(part.ligand_tokens), archive(part.modified_tokens), archive(part.atoms);
    archive(part.resolved_atoms), archive(part.bonds), archive(part.msa_rows);
    archive(part.paired_rows);
    Each(archive, part.chains), Each(archive, part.left_out);
  } else if constexpr (std::is_same_v<Type, Alignment>) {
    archive(part.columns), archive(part.classes), archive(part.deletions), archive(part.species);
    archive(part.profile), archive(part.deletion_mean), archive(part.files);
    archive(part.rows_read), archive(part.rows_distinct);
  } else {
    static_assert(std::is_same_v<Type, Entry>);
    archive(part.id), archive(part.chains), archive(part.tokens), archive(part.atoms);
    archive(part.token_bonds), archive(part.atom_bonds), archive(part.resolved_tokens);
    archive(part.interface_tokens);
    Each(archive, part.alignments);
    archive(part.rows.alignments), archive(part.rows.paired), archive(part.rows.rows);
    Fields(archive, part.summary);
  }
}

}  // namespace

std::string EntryToBytes(const Entry& entry) {
  Writer writer;
  Fields(writer, entry);
  return writer.Take();
}

Entry EntryFromBytes(std::string_view bytes) {
  Reader reader(bytes);
  Entry entry;
  Fields(reader, entry);
  reader.Finish();
  return entry;
}

}  // namespace megafold::data
