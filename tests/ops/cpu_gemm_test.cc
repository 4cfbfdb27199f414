// The CPU kernels' matrix product and transpose against plain loops, for every instruction set.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "backends/cpu/gemm.h"
#include "backends/cpu/half.h"
#include "tests/ops/targets.h"

namespace megafold::cpu {
namespace {

using Int = std::int64_t;

// Rows of floats with padded columns; the padding is NaN.
struct Matrix {
  Int rows, columns, stride;
  std::vector<float> data;

  Matrix(Int r, Int c)
      : rows(r),
        columns(c),
        stride(PadColumns(c) + kColumnPadding),
        data(static_cast<std::size_t>(r * stride), std::numeric_limits<float>::quiet_NaN()) {}

  float& at(Int r, Int c) { return data[static_cast<std::size_t>(r * stride + c)]; }
  float at(Int r, Int c) const { return data[static_cast<std::size_t>(r * stride + c)]; }

  static Matrix Random(Int rows, Int columns, std::mt19937& random) {
    Matrix matrix(rows, columns);
    std::normal_distribution<float> normal;
    for (Int r = 0; r < rows; ++r) {
      for (Int c = 0; c < columns; ++c) matrix.at(r, c) = normal(random);
    }
    return matrix;
  }
};

struct Variant {
  bool transposed_left, packed, accumulate;
};

void CheckProduct(GemmShape shape, Variant variant, std::mt19937& random) {
  const Matrix a = variant.transposed_left ? Matrix::Random(shape.depth, shape.rows, random)
                                           : Matrix::Random(shape.rows, shape.depth, random);
  const Matrix b = Matrix::Random(shape.depth, shape.columns, random);
  Matrix c = Matrix::Random(shape.rows, shape.columns, random);
  const Matrix before = c;
  std::vector<float> packed(static_cast<std::size_t>(PackedSize(shape.depth, shape.columns)));
  PackMatrix(b.data.data(), b.stride, 1, shape.depth, shape.columns, packed.data());

  Gemm(shape,
       variant.transposed_left ? Transposed(a.data.data(), a.stride)
                               : RowMajor(a.data.data(), a.stride),
       variant.packed ? Packed(packed.data(), shape.depth) : Rows(b.data.data(), b.stride),
       variant.accumulate ? c.data.data() : nullptr, c.stride, c.data.data(), c.stride);

  for (Int r = 0; r < shape.rows; ++r) {
    for (Int n = 0; n < shape.columns; ++n) {
      double expected = variant.accumulate ? before.at(r, n) : 0;
      for (Int p = 0; p < shape.depth; ++p) {
        const float left = variant.transposed_left ? a.at(p, r) : a.at(r, p);
        expected += static_cast<double>(left) * b.at(p, n);
      }
      ASSERT_NEAR(c.at(r, n), expected, 1e-5 * std::sqrt(1.0 + static_cast<double>(shape.depth)))
          << "row " << r << " column " << n << " of " << shape.rows << "x" << shape.columns << "x"
          << shape.depth;
    }
  }
}

TEST(CpuGemm, MatchesPlainLoops) {
  test::ForEachTarget([] {
    std::mt19937 random(1);
    const GemmShape shapes[] = {{1, 1, 1},    {6, 16, 8},   {7, 17, 5},    {23, 33, 24},
                                {13, 64, 70}, {5, 130, 16}, {97, 48, 300}, {11, 80, 520},
                                {13, 24, 40}, {20, 85, 290}};
    for (const GemmShape& shape : shapes) {
      for (int bits = 0; bits < 8; ++bits) {
        CheckProduct(shape, {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0}, random);
      }
    }
  });
}

TEST(CpuGemm, NoDepthGivesTheInitialValue) {
  test::ForEachTarget([] {
    const std::vector<float> bias(16, 2.5F);
    std::vector<float> c(3 * 16, 7);
    Gemm({3, 16, 0}, RowMajor(nullptr, 0), Rows(nullptr, 16), bias.data(), 0, c.data(), 16);
    EXPECT_EQ(c, std::vector<float>(3 * 16, 2.5F));
  });
}

// Parts of a packed matrix: columns from a multiple of the step, depths from anywhere.
TEST(CpuGemm, MultipliesPartsOfAPackedMatrix) {
  test::ForEachTarget([] {
    std::mt19937 random(2);
    constexpr Int kDepth = 40;
    constexpr Int kColumns = 150;
    const Matrix b = Matrix::Random(kDepth, kColumns, random);
    std::vector<float> packed(static_cast<std::size_t>(PackedSize(kDepth, kColumns)));
    PackMatrix(b.data.data(), b.stride, 1, kDepth, kColumns, packed.data());
    for (const Int first_column : {Int{0}, kPackedColumnStep, 2 * kPackedColumnStep}) {
      const Int columns = kColumns - first_column;
      const Matrix a = Matrix::Random(5, 15, random);
      Matrix c(5, columns);
      Gemm({5, columns, 15}, RowMajor(a.data.data(), a.stride),
           Packed(packed.data(), kDepth, first_column, 25), nullptr, 0, c.data.data(), c.stride);
      for (Int n = 0; n < columns; ++n) {
        double expected = 0;
        for (Int p = 0; p < 15; ++p) {
          expected += static_cast<double>(a.at(4, p)) * b.at(25 + p, first_column + n);
        }
        ASSERT_NEAR(c.at(4, n), expected, 1e-4);
      }
    }
  });
}

TEST(CpuGemm, TransposesAndPacksTransposed) {
  test::ForEachTarget([] {
    std::mt19937 random(3);
    const Matrix in = Matrix::Random(23, 37, random);
    Matrix out(37, 23);
    Transpose(in.data.data(), in.stride, 23, 37, out.data.data(), out.stride);
    for (Int r = 0; r < 23; ++r) {
      for (Int c = 0; c < 37; ++c) ASSERT_EQ(out.at(c, r), in.at(r, c));
    }
    std::vector<float> packed(static_cast<std::size_t>(PackedSize(37, 23)), -1);
    std::vector<float> packed_transpose = packed;
    PackMatrix(in.data.data(), 1, in.stride, 37, 23, packed.data());
    PackMatrix(out.data.data(), out.stride, 1, 37, 23, packed_transpose.data());
    EXPECT_EQ(packed, packed_transpose);
  });
}

TEST(HalfPrecision, EveryPatternSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    if (!std::isnan(FromBFloat16(pattern))) {
      ASSERT_EQ(ToBFloat16(FromBFloat16(pattern)), pattern);
    }
    if (!std::isnan(FromFloat16(pattern))) {
      ASSERT_EQ(ToFloat16(FromFloat16(pattern)), pattern);
    }
  }
}

TEST(HalfPrecision, RoundsToNearestEven) {
  EXPECT_EQ(ToFloat16(1.0F + 0x1p-11F), 0x3C00);      // a tie, down to even
  EXPECT_EQ(ToFloat16(1.0F + 3 * 0x1p-11F), 0x3C02);  // a tie, up to even
  EXPECT_EQ(ToFloat16(65519.0F), 0x7BFF);             // the largest that stays finite
  EXPECT_EQ(ToFloat16(65520.0F), 0x7C00);             // rounds to infinity
  EXPECT_EQ(ToFloat16(0x1p-25F), 0x0000);             // half the smallest subnormal
  EXPECT_EQ(ToFloat16(0x1.8p-25F), 0x0001);
  EXPECT_EQ(ToBFloat16(1.0F + 0x1p-8F), 0x3F80);
  EXPECT_EQ(ToBFloat16(1.0F + 3 * 0x1p-8F), 0x3F82);
  EXPECT_TRUE(std::isnan(FromBFloat16(ToBFloat16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(FromFloat16(ToFloat16(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace megafold::cpu
