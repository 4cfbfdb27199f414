#include "config/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "megafold/core/error.h"

namespace megafold::config {
namespace {

constexpr int kMaxIncludes = 8;  // deeper is a cycle
constexpr const char* kIncludeKey = "include";

class Reader {
 public:
  Reader(const std::vector<Field>& fields, std::string source)
      : fields_(fields), source_(std::move(source)) {}

  void ReadMap(const YAML::Node& map, const std::string& prefix) const {
    std::set<std::string> seen;
    for (const auto& entry : map) {
      if (!entry.first.IsScalar()) Complain(entry.first, "a key must be plain text");
      const std::string& key = entry.first.Scalar();
      if (prefix.empty() && key == kIncludeKey) continue;
      if (!seen.insert(key).second) {
        Complain(entry.first, StrCat("key '", prefix, key, "' is given twice"));
      }
      ReadEntry(entry.first, entry.second, prefix + key);
    }
  }

  void ReadEntry(const YAML::Node& key, const YAML::Node& value, const std::string& path) const {
    for (const Field& field : fields_) {
      if (field.path == path) return ReadLeaf(key, value, field);
    }
    const std::string section = path + ".";
    const bool is_section = std::any_of(fields_.begin(), fields_.end(), [&](const Field& field) {
      return field.path.starts_with(section);
    });
    if (!is_section) {
      Complain(key, StrCat("unknown key '", path, "'; the nearest is '", NearestKey(fields_, path),
                           "'"));
    }
    if (value.IsNull()) return;
    if (!value.IsMap()) {
      Complain(key, StrCat("'", path, "' is '", Text(value), "', expected a section of keys"));
    }
    ReadMap(value, section);
  }

  [[noreturn]] void Complain(const YAML::Node& node, const std::string& what) const {
    const int line = node.Mark().line;
    Fail(ErrorCode::kInvalidArgument, source_, line >= 0 && numbered_ ? StrCat(":", line + 1) : "",
         ": ", what);
  }

  void set_numbered(bool numbered) { numbered_ = numbered; }

 private:
  void ReadLeaf(const YAML::Node& key, const YAML::Node& node, const Field& field) const {
    Value value;
    bool plain = true;
    if (node.IsSequence()) {
      value.is_list = true;
      for (const auto& item : node) {
        plain = plain && item.IsScalar();
        if (item.IsScalar()) value.items.push_back(item.Scalar());
      }
    } else {
      plain = node.IsScalar();
      if (plain) value.items = {node.Scalar()};
    }
    if (!plain || !field.set(value)) {
      Complain(key, StrCat("'", field.path, "' is '", Text(node), "', expected ", field.expected));
    }
  }

  static std::string Text(const YAML::Node& node) {
    YAML::Emitter out;
    out.SetSeqFormat(YAML::Flow);
    out.SetMapFormat(YAML::Flow);
    out << node;
    return node.IsScalar() ? node.Scalar() : out.c_str();
  }

  const std::vector<Field>& fields_;
  std::string source_;
  bool numbered_ = true;
};

YAML::Node Parse(const std::string& text, const std::string& source) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    Fail(ErrorCode::kInvalidArgument, source, ":", error.mark.line + 1,
         ": not valid YAML: ", error.msg);
  }
}

std::string Slurp(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream || std::filesystem::is_directory(file)) {
    Fail(ErrorCode::kNotFound, file.string(), ": cannot read this configuration file");
  }
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

void ReadNested(const std::vector<Field>& fields, const std::string& text, const std::string& name,
                int depth) {
  const YAML::Node root = Parse(text, name);
  const Reader reader(fields, name);
  if (root.IsNull()) return;
  if (!root.IsMap()) reader.Complain(root, "expected 'key: value' lines");
  if (const YAML::Node base = root[kIncludeKey]) {
    if (!base.IsScalar()) reader.Complain(base, "'include' must name one file");
    if (depth == kMaxIncludes) reader.Complain(base, "files include each other in a circle");
    const auto file = std::filesystem::path(name).parent_path() / base.Scalar();
    ReadNested(fields, Slurp(file), file.string(), depth + 1);
  }
  reader.ReadMap(root, "");
}

void EmitFields(YAML::Emitter& out, std::vector<Field>::const_iterator begin,
                std::vector<Field>::const_iterator end, std::size_t prefix) {
  out << YAML::BeginMap;
  while (begin != end) {
    const std::size_t dot = begin->path.find('.', prefix);
    out << YAML::Key << begin->path.substr(prefix, dot - prefix) << YAML::Value;
    if (dot == std::string::npos) {
      const Value value = begin->get();
      if (value.is_list) {
        out << YAML::Flow << value.items;
      } else {
        out << value.items.front();
      }
      ++begin;
      continue;
    }
    const std::string section = begin->path.substr(0, dot + 1);
    const auto last = std::find_if_not(
        begin, end, [&](const Field& field) { return field.path.starts_with(section); });
    EmitFields(out, begin, last, dot + 1);
    begin = last;
  }
  out << YAML::EndMap;
}

}  // namespace

void ReadFile(const std::vector<Field>& fields, const std::filesystem::path& file) {
  ReadNested(fields, Slurp(file), file.string(), 0);
}

void ReadText(const std::vector<Field>& fields, const std::string& text, const std::string& name) {
  ReadNested(fields, text, name, 0);
}

void Override(const std::vector<Field>& fields, const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  const std::string source = "--set " + assignment;
  if (equals == std::string::npos || equals == 0) {
    Fail(ErrorCode::kInvalidArgument, source, ": expected key=value, such as train.steps=100");
  }
  const std::string key = assignment.substr(0, equals);
  Reader reader(fields, source);
  reader.set_numbered(false);
  const std::string text = assignment.substr(equals + 1);
  // YAML takes no text for null; who writes `key=` means the empty text.
  const YAML::Node value = text.empty() ? YAML::Node(text) : Parse(text, source);
  reader.ReadEntry(YAML::Node(key), value, key);
}

std::string ToYaml(const std::vector<Field>& fields) {
  YAML::Emitter out;
  EmitFields(out, fields.begin(), fields.end(), 0);
  return std::string(out.c_str()) + "\n";
}

std::string HelpText(const std::vector<Field>& fields) {
  std::ostringstream out;
  for (const Field& field : fields) {
    const Value value = field.get();
    std::string text;
    for (const std::string& item : value.items) text += (text.empty() ? "" : ", ") + item;
    out << field.path << ": " << (value.is_list ? "[" + text + "]" : text) << "\n    " << field.doc
        << " (" << field.expected << ")\n";
  }
  return out.str();
}

}  // namespace megafold::config
