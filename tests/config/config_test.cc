#include "config/config.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "megafold/core/error.h"

namespace megafold::config {
namespace {

enum class Ops { kBaseline, kFused };
constexpr auto NamesOf(Ops) {
  return std::to_array<Named<Ops>>({{Ops::kBaseline, "baseline"}, {Ops::kFused, "fused"}});
}

struct Pairformer {
  int blocks = 48;
  double dropout = 0.25;
  template <class V>
  void Visit(V& v) {
    v("blocks", blocks, "number of blocks", AtLeast(1));
    v("dropout", dropout, "of pair rows", Between(0, 1));
  }
};

struct Model {
  Ops ops = Ops::kFused;
  Pairformer pairformer;
  template <class V>
  void Visit(V& v) {
    v("ops", ops, "which operators");
    v("pairformer", pairformer, "the trunk");
  }
};

struct Root {
  Model model;
  float rate = 1.8e-3F;
  std::uint64_t seed = 1;
  std::int32_t small = 0;
  bool resume = false;
  std::string name = "x";
  std::vector<std::string> entries;
  std::vector<int> sizes = {1, 2};
  template <class V>
  void Visit(V& v) {
    v("model", model, "the model");
    v("rate", rate, "learning rate", MoreThan(0));
    v("seed", seed, "of everything random");
    v("small", small, "a 32-bit integer");
    v("resume", resume, "go on");
    v("name", name, "of the run");
    v("entries", entries, "entry ids");
    v("sizes", sizes, "some sizes", AtLeast(1));
  }
};

std::string ErrorOf(const std::string& text) {
  Root root;
  try {
    ReadTextInto(root, text, "a.yaml");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string OverrideError(const std::string& assignment) {
  Root root;
  try {
    OverrideIn(root, assignment);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Config, ReadsEveryKind) {
  Root root;
  ReadTextInto(root,
               "model:\n  ops: baseline\n  pairformer: {blocks: 3, dropout: 1}\nrate: 1e-4\n"
               "seed: 18446744073709551615\nresume: true\nname: \"12\"\nentries: [1ubq, 2q2k]\n"
               "sizes:\n- 7\n- 8\n");
  EXPECT_EQ(root.model.ops, Ops::kBaseline);
  EXPECT_EQ(root.model.pairformer.blocks, 3);
  EXPECT_EQ(root.model.pairformer.dropout, 1.0);
  EXPECT_EQ(root.rate, 1e-4F);
  EXPECT_EQ(root.seed, 18446744073709551615ULL);
  EXPECT_TRUE(root.resume);
  EXPECT_EQ(root.name, "12");
  EXPECT_EQ(root.entries, (std::vector<std::string>{"1ubq", "2q2k"}));
  EXPECT_EQ(root.sizes, (std::vector<int>{7, 8}));
}

TEST(Config, UnknownKeyNamesFileLineAndNearest) {
  EXPECT_EQ(ErrorOf("rate: 1\nmodel:\n  pairformer:\n    block: 4\n"),
            "a.yaml:4: unknown key 'model.pairformer.block'; the nearest is "
            "'model.pairformer.blocks'");
  EXPECT_EQ(ErrorOf("modle:\n  ops: fused\n"),
            "a.yaml:1: unknown key 'modle'; the nearest is 'model'");
  EXPECT_EQ(ErrorOf("dropout: 0.1\n"),
            "a.yaml:1: unknown key 'dropout'; the nearest is 'model.pairformer.dropout'");
  EXPECT_EQ(ErrorOf("rate:\n  x: 1\n"),
            "a.yaml:1: 'rate' is '{x: 1}', expected a number greater than 0");
}

TEST(Config, WrongValuesNameKeyValueAndExpected) {
  EXPECT_EQ(ErrorOf("model: {pairformer: {blocks: 0}}"),
            "a.yaml:1: 'model.pairformer.blocks' is '0', expected an integer of at least 1");
  EXPECT_EQ(ErrorOf("model: {pairformer: {blocks: 4.5}}"),
            "a.yaml:1: 'model.pairformer.blocks' is '4.5', expected an integer of at least 1");
  EXPECT_EQ(ErrorOf("model: {ops: quick}"),
            "a.yaml:1: 'model.ops' is 'quick', expected one of: baseline fused");
  EXPECT_EQ(ErrorOf("model: {pairformer: {dropout: 1.5}}"),
            "a.yaml:1: 'model.pairformer.dropout' is '1.5', expected a number in [0, 1]");
  EXPECT_EQ(ErrorOf("resume: yes"), "a.yaml:1: 'resume' is 'yes', expected true or false");
  EXPECT_EQ(ErrorOf("small: 4294967296"), "a.yaml:1: 'small' is '4294967296', expected an integer");
  EXPECT_EQ(ErrorOf("seed: -1"), "a.yaml:1: 'seed' is '-1', expected an integer of at least 0");
  EXPECT_EQ(ErrorOf("rate: nan"), "a.yaml:1: 'rate' is 'nan', expected a number greater than 0");
  EXPECT_EQ(ErrorOf("sizes: [1, 0]"),
            "a.yaml:1: 'sizes' is '[1, 0]', expected a list [a, b, ...], each an integer of at "
            "least 1");
  EXPECT_EQ(ErrorOf("model: 3"), "a.yaml:1: 'model' is '3', expected a section of keys");
  EXPECT_EQ(ErrorOf("rate: 1\nrate: 2"), "a.yaml:2: key 'rate' is given twice");
  EXPECT_EQ(ErrorOf("- 1"), "a.yaml:1: expected 'key: value' lines");
  EXPECT_NE(ErrorOf("rate: [1").find("a.yaml:1: not valid YAML"), std::string::npos);
  EXPECT_EQ(ErrorOf(""), "no error");
}

TEST(Config, AWrongListChangesNothing) {
  Root root;
  EXPECT_THROW(ReadTextInto(root, "sizes: [5, 0]"), Error);
  EXPECT_EQ(root.sizes, (std::vector<int>{1, 2}));
}

TEST(Config, OverridesGoThroughTheSameChecks) {
  Root root;
  OverrideIn(root, "model.pairformer.blocks=4");
  OverrideIn(root, "entries=[a, b]");
  OverrideIn(root, "name=a=b");
  EXPECT_EQ(root.model.pairformer.blocks, 4);
  EXPECT_EQ(root.entries.size(), 2U);
  EXPECT_EQ(root.name, "a=b");
  EXPECT_EQ(OverrideError("model.pairformer.bloks=4"),
            "--set model.pairformer.bloks=4: unknown key 'model.pairformer.bloks'; the nearest is "
            "'model.pairformer.blocks'");
  EXPECT_EQ(OverrideError("rate=fast"),
            "--set rate=fast: 'rate' is 'fast', expected a number greater than 0");
  EXPECT_EQ(OverrideError("rate"), "--set rate: expected key=value, such as train.steps=100");
}

TEST(Config, OverridesWithNothingSetTheEmptyText) {
  Root root;
  root.name = "before";
  OverrideIn(root, "name=");
  EXPECT_EQ(root.name, "");
  EXPECT_EQ(OverrideError("rate="), "--set rate=: 'rate' is '', expected a number greater than 0");
  EXPECT_EQ(OverrideError("sizes="),
            "--set sizes=: 'sizes' is '', expected a list [a, b, ...], each an integer of at least "
            "1");
  EXPECT_EQ(OverrideError("model="), "--set model=: 'model' is '', expected a section of keys");
}

TEST(Config, WritesWhatItReadsBack) {
  Root root;
  ReadTextInto(root,
               "model: {ops: baseline, pairformer: {dropout: 0.1}}\nrate: 0.3\nname: ''\n"
               "entries: [\"a: b\", '#c', \"\"]\nsizes: []\n");
  const std::string yaml = YamlOf(root);
  Root again;
  ReadTextInto(again, yaml);
  EXPECT_EQ(YamlOf(again), yaml);
  EXPECT_EQ(again.rate, 0.3F);
  EXPECT_EQ(again.model.pairformer.dropout, 0.1);
  EXPECT_EQ(again.model.ops, Ops::kBaseline);
  EXPECT_EQ(again.name, "");
  EXPECT_EQ(again.entries, (std::vector<std::string>{"a: b", "#c", ""}));
  EXPECT_TRUE(again.sizes.empty());
}

TEST(Config, IncludesABaseFile) {
  const auto folder = std::filesystem::temp_directory_path() / "megafold_config_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "base.yaml") << "rate: 0.5\nname: base\n";
  std::ofstream(folder / "top.yaml") << "include: base.yaml\nname: top\n";
  std::ofstream(folder / "circle.yaml") << "include: circle.yaml\n";
  Root root;
  ReadFileInto(root, folder / "top.yaml");
  EXPECT_EQ(root.rate, 0.5F);
  EXPECT_EQ(root.name, "top");
  EXPECT_THROW(ReadFileInto(root, folder / "circle.yaml"), Error);
  EXPECT_THROW(ReadFileInto(root, folder / "absent.yaml"), Error);
  EXPECT_THROW(ReadFileInto(root, folder), Error);
  std::filesystem::remove_all(folder);
}

TEST(Config, HelpListsEveryKeyWithItsDefault) {
  Root root;
  const std::string help = HelpText(FieldsOf(root));
  EXPECT_NE(
      help.find("model.pairformer.blocks: 48\n    number of blocks (an integer of at least 1)"),
      std::string::npos)
      << help;
  EXPECT_NE(help.find("sizes: [1, 2]"), std::string::npos);
}

}  // namespace
}  // namespace megafold::config
