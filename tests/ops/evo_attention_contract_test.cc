// EvoAttention's argument checks: every violation names the operand, what it has and what was
// expected.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "megafold/core/error.h"
#include "megafold/ops/evo_attention.h"

namespace megafold::test {
namespace {

using Args = ops::EvoAttentionBackwardArgs;

class EvoAttentionContract : public testing::Test {
 protected:
  TensorView View(std::initializer_list<std::int64_t> sizes) {
    return MakeView(data_.data(), DType::kFloat32, sizes);
  }

  std::string ErrorOf(const std::function<void(Args&)>& change) {
    Args args;
    args.q = args.out = args.dout = View({2, 3, 4, 5, 8});
    args.k = args.v = View({2, 3, 6, 5, 8});
    args.mask = View({1, 3, 1, 1, 6});
    args.bias = View({2, 1, 5, 4, 6});
    args.lse = View({2, 3, 5, 4});
    change(args);
    try {
      ops::EvoAttentionBackwardWorkspace(args);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

 private:
  std::vector<float> data_ = std::vector<float>(2048);
};

TEST_F(EvoAttentionContract, AcceptsWhatTheHeaderPromises) {
  EXPECT_EQ(ErrorOf([](Args&) {}), "no error");
  EXPECT_EQ(ErrorOf([](Args& a) { a.mask.dtype = DType::kBool; }), "no error");
  EXPECT_EQ(ErrorOf([&](Args& a) {
              a.bias = View({1, 1, 5, 4, 6});
              a.dbias = View({1, 1, 5, 4, 6});
            }),
            "no error");
  EXPECT_EQ(ErrorOf([&](Args& a) { a.mask = a.bias = {}; }), "no error");
  EXPECT_EQ(ErrorOf([](Args& a) { a.bias.strides = {0, 0, 1, 30, 5}; }), "no error");
}

TEST_F(EvoAttentionContract, NamesTheOffendingOperand) {
  EXPECT_EQ(ErrorOf([](Args& a) { a.q = {}; }),
            "evo_attention: q is missing; it must have 5 dimensions");
  EXPECT_EQ(ErrorOf([](Args& a) { a.q.dtype = DType::kBool; }),
            "evo_attention: q is bool, expected a floating type");
  EXPECT_EQ(ErrorOf([](Args& a) { a.k = {}; }),
            "evo_attention: k has shape [], expected [2, 3, keys, 5, 8]");
  EXPECT_EQ(ErrorOf([&](Args& a) {
              a.k = View({2, 3, 6, 5, 4});
            }),
            "evo_attention: k has shape [2, 3, 6, 5, 4], expected [2, 3, 6, 5, 8]");
  EXPECT_EQ(ErrorOf([&](Args& a) {
              a.v = View({2, 3, 5, 5, 8});
            }),
            "evo_attention: v has shape [2, 3, 5, 5, 8], expected [2, 3, 6, 5, 8]");
  EXPECT_EQ(ErrorOf([](Args& a) { a.v.dtype = DType::kBFloat16; }),
            "evo_attention: v is bfloat16, expected float32");
  EXPECT_EQ(ErrorOf([](Args& a) { a.k.strides[4] = 2; }),
            "evo_attention: k has stride 2 on its last dimension, expected 1");
  EXPECT_EQ(ErrorOf([](Args& a) {
              a.k.device = {DeviceType::kCuda, 0};
            }),
            "evo_attention: k is on device 'cuda:0', expected 'cpu:0'");
}

TEST_F(EvoAttentionContract, NamesTheOffendingMaskOrBias) {
  EXPECT_EQ(ErrorOf([&](Args& a) {
              a.mask = View({2, 3, 1, 4, 6});
            }),
            "evo_attention: mask has shape [2, 3, 1, 4, 6], expected [2, 3, 1, 1, 6]");
  EXPECT_EQ(ErrorOf([](Args& a) { a.mask.dtype = DType::kFloat16; }),
            "evo_attention: mask is float16, expected bool, float32 or float32");
  EXPECT_EQ(ErrorOf([&](Args& a) {
              a.bias = View({2, 3, 5, 4, 6});
            }),
            "evo_attention: bias has shape [2, 3, 5, 4, 6], expected [2, 1, 5, 4, 6]");
  EXPECT_EQ(ErrorOf([](Args& a) { a.bias.dtype = DType::kBool; }),
            "evo_attention: bias is bool, expected float32");
}

TEST_F(EvoAttentionContract, NamesTheOffendingResult) {
  EXPECT_EQ(ErrorOf([](Args& a) { a.lse = {}; }),
            "evo_attention: lse is missing; expected shape [2, 3, 5, 4]");
  EXPECT_EQ(ErrorOf([](Args& a) { a.lse.strides[2] = 8; }),
            "evo_attention: lse must be contiguous");
  EXPECT_EQ(ErrorOf([&](Args& a) {
              a.dq = View({2, 3, 4, 5, 4});
            }),
            "evo_attention: dq has shape [2, 3, 4, 5, 4], expected [2, 3, 4, 5, 8]");
  EXPECT_EQ(ErrorOf([&](Args& a) {
              a.dbias = View({1, 1, 5, 4, 6});
            }),
            "evo_attention: dbias has shape [1, 1, 5, 4, 6], expected [2, 1, 5, 4, 6]");
  EXPECT_EQ(ErrorOf([&](Args& a) {
              a.dbias = a.bias;
              a.bias = {};
            }),
            "evo_attention: dbias is asked for, but bias is absent");
}

TEST_F(EvoAttentionContract, RefusesASmallWorkspace) {
  std::vector<float> q(64), lse(8);
  ops::EvoAttentionForwardArgs args;
  args.q = args.k = args.v = args.out = MakeView(q.data(), DType::kFloat32, {1, 1, 8, 1, 8});
  args.lse = MakeView(lse.data(), DType::kFloat32, {1, 1, 1, 8});
  const std::size_t needed = ops::EvoAttentionForwardWorkspace(args);
  ASSERT_GT(needed, 0U);
  EXPECT_THROW(ops::EvoAttentionForward(args, {q.data(), needed - 1}, {}), Error);
}

}  // namespace
}  // namespace megafold::test
