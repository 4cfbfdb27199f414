#include "train/checkpoint.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>

#include "megafold/core/error.h"
#include "tests/train/toy.h"
#include "train/files.h"

namespace megafold::train {
namespace {

std::string ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

std::string Bytes(const std::filesystem::path& file) { return ReadTextFile(file, 1 << 20); }

void Write(const std::filesystem::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary) << bytes;
}

// A file with this header and `data_bytes` of data.
std::string FileWith(const std::string& header, std::size_t data_bytes) {
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size() & 0xFF);
  bytes[1] = static_cast<char>(header.size() >> 8);
  return bytes + header + std::string(data_bytes, '\1');
}

TEST(Safetensors, EveryTypeAndShapeComesBack) {
  const toy::Folder folder("types");
  NamedTensors tensors;
  for (const at::ScalarType type :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
        at::kChar, at::kUInt64, at::kUInt32, at::kUInt16, at::kByte, at::kBool}) {
    tensors.emplace(std::string("t.") + at::toString(type),
                    (at::rand({3, 5}) * 100).to(at::kLong).remainder(2).to(type));
  }
  tensors.emplace("scalar", at::full({}, 1.5));
  tensors.emplace("empty", at::empty({0, 4}));
  tensors.emplace("strided", at::randn({4, 6}).t().slice(0, 0, 6, 2));
  WriteSafetensors(folder.path() / "a.safetensors", tensors, {{"note", "a \"text\" \n"}});
  const SafetensorsFile read = ReadSafetensors(folder.path() / "a.safetensors");
  ASSERT_EQ(read.tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    ASSERT_TRUE(read.tensors.contains(name)) << name;
    EXPECT_EQ(read.tensors.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(read.tensors.at(name), tensor)) << name;
  }
  EXPECT_EQ(read.metadata.at("note"), "a \"text\" \n");
}

TEST(Safetensors, ComplexNumbersAreRefused) {
  const toy::Folder folder("complex");
  const std::string error = ErrorOf([&] {
    WriteSafetensors(folder.path() / "a", {{"z", at::zeros({2}, at::kComplexFloat)}});
  });
  EXPECT_HAS(error, "no dtype for ComplexFloat (tensor 'z')");
}

TEST(Safetensors, ATornFileIsNamedAtEveryLength) {
  const toy::Folder folder("torn");
  const auto file = folder.path() / "a.safetensors";
  WriteSafetensors(file, {{"a", at::randn({3})}, {"b", at::zeros({2}, at::kByte)}});
  const std::string whole = Bytes(file);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    Write(file, whole.substr(0, length));
    EXPECT_HAS(ErrorOf([&] { ReadSafetensors(file); }), file.string());
  }
  Write(file, whole + "x");
  EXPECT_HAS(ErrorOf([&] { ReadSafetensors(file); }), "bytes of data, its tensors cover");
  std::filesystem::remove(file);
  EXPECT_HAS(ErrorOf([&] { ReadSafetensors(file); }), "cannot read this file");
}

TEST(Safetensors, LyingHeadersAreRefusedBeforeMemoryIsTaken) {
  const toy::Folder folder("lies");
  const auto file = folder.path() / "a.safetensors";
  const auto refuse = [&](const std::string& entry, std::size_t data, const std::string& why) {
    Write(file, FileWith("{\"a\":" + entry + "}", data));
    EXPECT_HAS(ErrorOf([&] { ReadSafetensors(file); }), why);
  };
  refuse(R"({"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]})", 4,
         "torn: tensor 'a' ends at byte");
  refuse(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})", 4,
         "an impossible shape");
  refuse(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4, "needs 8 bytes");
  refuse(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8, "leave a hole at byte 0");
  refuse(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4, "not a list of sizes");
  refuse(R"({"dtype":"Q7","shape":[1],"data_offsets":[0,4]})", 4, "unknown dtype \"Q7\"");
  refuse(R"({"shape":[1],"data_offsets":[0,4]})", 4, "has no 'dtype'");
  refuse(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4, "no range of data");
  Write(file, FileWith("[1]", 0));
  EXPECT_HAS(ErrorOf([&] { ReadSafetensors(file); }), "not a JSON object");
}

class CheckpointFiles : public ::testing::Test {
 protected:
  CheckpointFiles() : folder_("checkpoint"), checkpoints_(folder_.path() / "checkpoints", 2) {}

  static CheckpointTensors Tensors(float value) {
    return {{{"w", at::full({2, 3}, value)}},
            {{"w", at::full({2, 3}, value + 1)}},
            {{"exp_avg.w", at::full({2, 3}, value + 2)}}};
  }

  toy::Folder folder_;
  Checkpoints checkpoints_;
};

TEST_F(CheckpointFiles, StateAndTensorsComeBack) {
  const std::uint64_t seed = 0xFFFFFFFFFFFFFFF1U;
  const auto saved = checkpoints_.Save({12, 24, seed}, Tensors(1), "a: 1\n");
  EXPECT_EQ(saved, folder_.path() / "checkpoints" / "step-000012");
  EXPECT_EQ(checkpoints_.Latest(), saved);
  CheckpointTensors target = Tensors(0);
  const CheckpointState state = LoadCheckpoint(saved, target);
  EXPECT_EQ(state.step, 12);
  EXPECT_EQ(state.batches, 24);
  EXPECT_EQ(state.seed, seed);
  EXPECT_TRUE(at::equal(target.model.at("w"), Tensors(1).model.at("w")));
  EXPECT_TRUE(at::equal(target.ema.at("w"), Tensors(1).ema.at("w")));
  EXPECT_TRUE(at::equal(target.optimizer.at("exp_avg.w"), Tensors(1).optimizer.at("exp_avg.w")));
  EXPECT_EQ(Bytes(saved / "config.yaml"), "a: 1\n");
}

TEST_F(CheckpointFiles, WhatDoesNotFitIsNamedAndChangesNothing) {
  const auto saved = checkpoints_.Save({1, 1, 0}, Tensors(1), "");
  const auto refuse = [&](CheckpointTensors target, const std::string& why) {
    const at::Tensor before = target.model.begin()->second.clone();
    EXPECT_HAS(ErrorOf([&] { LoadCheckpoint(saved, target); }), why);
    EXPECT_TRUE(at::equal(target.model.begin()->second, before));
  };
  CheckpointTensors target = Tensors(0);
  target.ema["w"] = at::zeros({3, 2});
  refuse(target, "ema.safetensors: 'w' is [2, 3] Float, this configuration's model wants [3, 2]");
  target = Tensors(0);
  target.optimizer["exp_avg.v"] = at::zeros({1});
  refuse(target, "optimizer.safetensors: has no tensor 'exp_avg.v'");
  target = Tensors(0);
  target.ema.clear();
  refuse(target, "ema.safetensors: has the tensor 'w', which this configuration's model lacks");
  std::filesystem::resize_file(saved / "ema.safetensors", 20);
  refuse(Tensors(0), "ema.safetensors: torn");
  Write(saved / "state.json", "{\"format\": 1, \"st");
  refuse(Tensors(0), "state.json: torn or foreign");
}

TEST_F(CheckpointFiles, AnInterruptedSaveLeavesTheOldOneAndIsCleanedUp) {
  const auto saved = checkpoints_.Save({1, 1, 0}, Tensors(1), "");
  const auto partial = folder_.path() / "checkpoints" / ".step-000002.partial";
  std::filesystem::create_directories(partial);
  Write(partial / "model.safetensors", "half");
  EXPECT_EQ(checkpoints_.Latest(), saved);
  const Checkpoints next(folder_.path() / "checkpoints", 2);
  EXPECT_FALSE(std::filesystem::exists(partial));
  EXPECT_EQ(next.Latest(), saved);
}

}  // namespace
}  // namespace megafold::train
