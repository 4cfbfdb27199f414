#include "data/msa/alignment.h"

#include <algorithm>
#include <unordered_set>

#include "data/io/text_file.h"
#include "megafold/core/error.h"

namespace megafold::data {
namespace {

// One sequence of the file: its columns and the deletions before each.
struct ParsedRow {
  std::string_view header;
  std::vector<std::uint8_t> classes;
  std::vector<std::uint32_t> deletions;
};

class Reader {
 public:
  Reader(const std::string& chain, const QuerySequence& query, std::int64_t max_rows)
      : chain_(chain), query_(query), max_rows_(max_rows) {
    const std::size_t length = query.classes.size();
    alignment_.columns = static_cast<std::int64_t>(length);
    counts_.resize(length * kResidueClasses);
    deletion_sums_.resize(length);
  }

  void ReadFile(const std::filesystem::path& file) {
    file_ = file.string();
    alignment_.files.push_back(file.filename().string());
    const std::string text = ReadTextFile(file);
    columns_.clear();
    row_in_file_ = 0;
    std::size_t at = text.find_first_not_of(" \t\r\n");
    if (at == std::string::npos) Fail(ErrorCode::kDataCorrupt, Where(), ": empty alignment");
    if (text[at] != '>') {
      Fail(ErrorCode::kDataCorrupt, Where(), ": begins with '", text.substr(at, 20),
           "', expected '>' and a header");
    }
    while (at != std::string::npos) {
      const auto next = text.find("\n>", at);
      const auto end = next == std::string::npos ? text.size() : next;
      ReadRecord(std::string_view(text).substr(at + 1, end - at - 1));
      at = next == std::string::npos ? next : next + 1;
    }
  }

  Alignment Finish() {
    if (alignment_.rows_read == 0) {
      ParsedRow row{"", query_.classes, std::vector<std::uint32_t>(query_.classes.size())};
      Keep(row);
    }
    const auto rows = static_cast<double>(alignment_.rows_distinct);
    for (const double count : counts_) {
      alignment_.profile.push_back(static_cast<float>(count / rows));
    }
    for (const double sum : deletion_sums_) {
      alignment_.deletion_mean.push_back(static_cast<float>(sum / rows));
    }
    return std::move(alignment_);
  }

 private:
  std::string Where() const { return file_ + ": chain " + chain_; }
  std::string RowName(std::string_view header) const {
    return Where() + ", row " + std::to_string(row_in_file_) + " ('" +
           std::string(header.substr(0, 40)) + "')";
  }

  void ReadRecord(std::string_view record) {
    ++row_in_file_;
    ++alignment_.rows_read;
    const auto line_end = std::min(record.find('\n'), record.size());
    ParsedRow row;
    row.header = record.substr(0, line_end);
    if (!row.header.empty() && row.header.back() == '\r') row.header.remove_suffix(1);
    ReadLetters(record.substr(line_end), &row);
    if (row_in_file_ == 1) MatchQuery(row);
    if (row.classes.size() != columns_.size()) {
      Fail(ErrorCode::kDataCorrupt, RowName(row.header), " has ", row.classes.size(),
           " columns, expected ", columns_.size(), " as the query");
    }
    Spread(&row);
    Keep(row);
  }

  void ReadLetters(std::string_view letters, ParsedRow* row) const {
    std::uint32_t deletions = 0;
    for (const char letter : letters) {
      if (letter == '\n' || letter == '\r' || letter == ' ' || letter == '.') continue;
      if (letter >= 'a' && letter <= 'z') {
        ++deletions;
        continue;
      }
      const auto residue_class = ClassOfLetter(letter, query_.type);
      if (!residue_class) {
        Fail(ErrorCode::kDataCorrupt, RowName(row->header), ": '", letter,
             "' in the sequence, expected letters, '-' or '.'");
      }
      row->classes.push_back(*residue_class);
      row->deletions.push_back(deletions);
      deletions = 0;
    }
  }

  // Finds which positions of the chain the columns of this file are.
  void MatchQuery(const ParsedRow& row) {
    const std::size_t all = query_.classes.size();
    const auto caps = static_cast<std::size_t>(
        std::count(query_.is_cap.begin(), query_.is_cap.end(), std::uint8_t{1}));
    const bool without_caps = row.classes.size() != all && row.classes.size() == all - caps;
    if (row.classes.size() != all && !without_caps) {
      Fail(ErrorCode::kDataCorrupt, RowName(row.header), ": the query has ", row.classes.size(),
           " columns, expected ", all, " as the chain has residues",
           caps > 0 ? StrCat(" (or ", all - caps, " without its caps)") : std::string());
    }
    for (std::size_t i = 0; i < all; ++i) {
      if (!without_caps || query_.is_cap[i] == 0) columns_.push_back(i);
    }
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const std::size_t position = columns_[i];
      const std::uint8_t wanted = query_.classes[position];
      const bool free =
          query_.is_modified[position] != 0 || row.classes[i] == UnknownClass(query_.type);
      if (row.classes[i] != wanted && !free) {
        Fail(ErrorCode::kDataCorrupt, RowName(row.header), ": the query has '",
             LetterOfClass(row.classes[i]), "' at position ", position + 1, ", the structure has '",
             LetterOfClass(wanted), "'");
      }
    }
  }

  // From the file's columns to the chain's positions; the query takes the structure's classes.
  void Spread(ParsedRow* row) const {
    if (columns_.size() != query_.classes.size()) {
      std::vector<std::uint8_t> classes(query_.classes.size(), kGap);
      std::vector<std::uint32_t> deletions(query_.classes.size());
      for (std::size_t i = 0; i < columns_.size(); ++i) {
        classes[columns_[i]] = row->classes[i];
        deletions[columns_[i]] = row->deletions[i];
      }
      row->classes = std::move(classes);
      row->deletions = std::move(deletions);
    }
    if (row_in_file_ == 1) row->classes = query_.classes;
  }

  void Keep(const ParsedRow& row) {
    std::string key(row.classes.begin(), row.classes.end());
    if (!seen_.insert(std::move(key)).second) return;
    ++alignment_.rows_distinct;
    for (std::size_t i = 0; i < row.classes.size(); ++i) {
      counts_[i * kResidueClasses + row.classes[i]] += 1;
      deletion_sums_[i] += row.deletions[i];
    }
    if (alignment_.rows() >= max_rows_) return;
    alignment_.classes.insert(alignment_.classes.end(), row.classes.begin(), row.classes.end());
    for (const std::uint32_t count : row.deletions) {
      alignment_.deletions.push_back(static_cast<std::uint8_t>(std::min(count, 255U)));
    }
    alignment_.species.push_back(alignment_.rows() == 0 ? "" : SpeciesOf(row.header));
  }

  const std::string& chain_;
  const QuerySequence& query_;
  std::int64_t max_rows_;
  std::string file_;
  std::int64_t row_in_file_ = 0;
  std::vector<std::size_t> columns_;  // of the file -> positions of the chain
  Alignment alignment_;
  std::vector<double> counts_;
  std::vector<double> deletion_sums_;
  std::unordered_set<std::string> seen_;
};

}  // namespace

Alignment ReadAlignment(const std::vector<std::filesystem::path>& files, const std::string& chain,
                        const QuerySequence& query, std::int64_t max_rows) {
  Reader reader(chain, query, max_rows);
  for (const auto& file : files) reader.ReadFile(file);
  return reader.Finish();
}

}  // namespace megafold::data
