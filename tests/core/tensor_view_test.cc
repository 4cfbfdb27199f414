#include "megafold/core/tensor_view.h"

#include <gtest/gtest.h>

#include "megafold/core/error.h"

namespace megafold {
namespace {

TEST(TensorView, MakeViewIsRowMajor) {
  float data[24] = {};
  const TensorView view = MakeView(data, DType::kFloat32, {2, 3, 4});
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.numel(), 24);
  EXPECT_EQ(view.stride(0), 12);
  EXPECT_EQ(view.stride(1), 4);
  EXPECT_EQ(view.stride(2), 1);
  EXPECT_TRUE(view.contiguous());
  EXPECT_EQ(ShapeString(view), "[2, 3, 4]");
}

TEST(TensorView, TransposedIsNotContiguousButUnitDimensionsDoNotMatter) {
  float data[24] = {};
  TensorView view = MakeView(data, DType::kFloat32, {1, 3, 4});
  view.strides[0] = 999;
  EXPECT_TRUE(view.contiguous());
  std::swap(view.sizes[1], view.sizes[2]);
  std::swap(view.strides[1], view.strides[2]);
  EXPECT_FALSE(view.contiguous());
}

TEST(TensorView, UndefinedViewIsEmpty) {
  EXPECT_FALSE(TensorView{}.defined());
  EXPECT_EQ(TensorView{}.numel(), 0);
}

TEST(TensorView, CountsPastTwoToTheThirtyOne) {
  const TensorView view = MakeView(nullptr, DType::kBFloat16, {1, 4096, 4096, 4, 64});
  EXPECT_EQ(view.numel(), std::int64_t{4096} * 4096 * 256);
  EXPECT_EQ(view.stride(1), std::int64_t{4096} * 256);
}

TEST(TensorView, RefusesTooManyDimensions) {
  try {
    MakeView(nullptr, DType::kFloat32, {1, 1, 1, 1, 1, 1, 1});
    FAIL() << "seven dimensions were accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("at most 6"), std::string::npos);
  }
}

}  // namespace
}  // namespace megafold
