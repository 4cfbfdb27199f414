// Reflection of configuration structs, without a macro and without YAML.
//
// A struct lists its fields once; everything else (reading YAML, --set, writing, help) works on
// that list:
//
//   enum class Ops { kBaseline, kFused };
//   constexpr auto NamesOf(Ops) {
//     return std::to_array<config::Named<Ops>>({{Ops::kBaseline, "baseline"}, {Ops::kFused,
//     "fused"}});
//   }
//   struct PairformerConfig {
//     int blocks = 48;
//     Ops ops = Ops::kFused;
//     template <class V> void Visit(V& v) {
//       v("blocks", blocks, "number of blocks", config::AtLeast(1));
//       v("ops", ops, "plain PyTorch operators or the fused ones");
//     }
//   };
//
// A field is bool, an integer, float or double, std::string, an enum with NamesOf beside it, a
// std::vector of these, or another struct with Visit (a section). Defaults are the members'
// initialisers.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace megafold::config {

template <typename E>
struct Named {
  E value;
  const char* name;
};

// The numbers a field accepts; for a list, each of its elements.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false;  // `low` itself is refused
  bool Contains(double value) const {
    return (low_open ? value > low : value >= low) && value <= high;
  }
  std::string Text() const;  // " of at least 1", " in (0, 1]", "" when anything goes
};
constexpr Range AtLeast(double low) { return {.low = low}; }
constexpr Range MoreThan(double low) { return {.low = low, .low_open = true}; }
constexpr Range Between(double low, double high) { return {.low = low, .high = high}; }

// What a file or a command line says, before it has a type.
struct Value {
  bool is_list = false;
  std::vector<std::string> items;  // exactly one unless is_list
};

// One leaf of a configuration struct. The functions refer to the struct it was collected from and
// live no longer.
struct Field {
  std::string path;  // "model.pairformer.blocks"
  std::string doc;
  std::string expected;                   // "an integer of at least 1"
  std::function<bool(const Value&)> set;  // false: the value is not `expected`, nothing was changed
  std::function<Value()> get;
};

namespace internal {

bool ParseBool(const std::string& text, bool* out);
bool ParseInt(const std::string& text, std::int64_t* out);
bool ParseUnsigned(const std::string& text, std::uint64_t* out);
bool ParseDouble(const std::string& text, double* out);
std::string FormatDouble(double value);  // the shortest text that reads back as the same number
std::string FormatFloat(float value);

template <typename T>
bool ParseScalar(const std::string& text, const Range& range, T* out) {
  if constexpr (std::is_same_v<T, std::string>) {
    *out = text;
    return true;
  } else if constexpr (std::is_same_v<T, bool>) {
    return ParseBool(text, out);
  } else if constexpr (std::is_enum_v<T>) {
    for (const auto& named : NamesOf(T{})) {
      if (text == named.name) {
        *out = named.value;
        return true;
      }
    }
    return false;
  } else if constexpr (std::unsigned_integral<T>) {
    std::uint64_t value = 0;
    if (!ParseUnsigned(text, &value) || value > std::numeric_limits<T>::max() ||
        !range.Contains(static_cast<double>(value))) {
      return false;
    }
    *out = static_cast<T>(value);
    return true;
  } else if constexpr (std::integral<T>) {
    std::int64_t value = 0;
    if (!ParseInt(text, &value) || !std::in_range<T>(value) ||
        !range.Contains(static_cast<double>(value))) {
      return false;
    }
    *out = static_cast<T>(value);
    return true;
  } else {
    static_assert(std::floating_point<T>, "this type cannot be a configuration field");
    double value = 0;
    if (!ParseDouble(text, &value) || !range.Contains(value)) return false;
    *out = static_cast<T>(value);
    return true;
  }
}

template <typename T>
std::string FormatScalar(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    return value;
  } else if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_enum_v<T>) {
    for (const auto& named : NamesOf(T{})) {
      if (value == named.value) return named.name;
    }
    return "";
  } else if constexpr (std::is_same_v<T, float>) {
    return FormatFloat(value);
  } else if constexpr (std::floating_point<T>) {
    return FormatDouble(value);
  } else {
    return std::to_string(value);
  }
}

template <typename T>
std::string Expected(const Range& range) {
  if constexpr (std::is_same_v<T, std::string>) {
    return "text";
  } else if constexpr (std::is_same_v<T, bool>) {
    return "true or false";
  } else if constexpr (std::is_enum_v<T>) {
    std::string text = "one of:";
    for (const auto& named : NamesOf(T{})) text += std::string(" ") + named.name;
    return text;
  } else if constexpr (std::unsigned_integral<T>) {
    return "an integer" + (range.Text().empty() ? AtLeast(0).Text() : range.Text());
  } else if constexpr (std::integral<T>) {
    return "an integer" + range.Text();
  } else {
    return "a number" + range.Text();
  }
}

template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};

template <typename T>
Field ScalarField(T& member, const Range& range) {
  Field field;
  field.expected = Expected<T>(range);
  field.set = [&member, range](const Value& value) {
    return !value.is_list && ParseScalar(value.items.front(), range, &member);
  };
  field.get = [&member] { return Value{false, {FormatScalar(member)}}; };
  return field;
}

template <typename T>
Field ListField(std::vector<T>& member, const Range& range) {
  Field field;
  field.expected = "a list [a, b, ...], each " + Expected<T>(range);
  field.set = [&member, range](const Value& value) {
    if (!value.is_list) return false;
    std::vector<T> parsed;
    for (const std::string& item : value.items) {
      T element{};
      if (!ParseScalar(item, range, &element)) return false;
      parsed.push_back(std::move(element));
    }
    member = std::move(parsed);
    return true;
  };
  field.get = [&member] {
    Value value{true, {}};
    for (const auto& element : member) value.items.push_back(FormatScalar<T>(element));
    return value;
  };
  return field;
}

class Collector {
 public:
  Collector(std::string prefix, std::vector<Field>* fields)
      : prefix_(std::move(prefix)), fields_(fields) {}

  template <typename T>
  void operator()(const char* name, T& member, const char* doc, Range range = {}) {
    const std::string path = prefix_ + name;
    if constexpr (IsVector<T>::value) {
      Add(path, doc, ListField(member, range));
    } else if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string>) {
      Collector inner(path + ".", fields_);
      member.Visit(inner);
    } else {
      Add(path, doc, ScalarField(member, range));
    }
  }

 private:
  void Add(const std::string& path, const char* doc, Field field) {
    field.path = path;
    field.doc = doc;
    fields_->push_back(std::move(field));
  }

  std::string prefix_;
  std::vector<Field>* fields_;
};

}  // namespace internal

// Every leaf of `config`, in the order its structs list them.
template <typename Config>
std::vector<Field> FieldsOf(Config& config) {
  std::vector<Field> fields;
  internal::Collector collector("", &fields);
  config.Visit(collector);
  return fields;
}

}  // namespace megafold::config
