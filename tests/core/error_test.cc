#include "megafold/core/error.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <locale>
#include <string>
#include <string_view>

namespace megafold {
namespace {

TEST(StrCat, Text) {
  const std::string chain = "A";
  EXPECT_EQ(StrCat("chain ", chain, std::string_view(", entity"), ' ', "1"), "chain A, entity 1");
  EXPECT_EQ(StrCat(), "");
  EXPECT_EQ(StrCat("", std::string(2, '\0')).size(), 2u);
}

TEST(StrCat, Integers) {
  EXPECT_EQ(StrCat(0, " ", -7, " ", std::size_t{42}), "0 -7 42");
  EXPECT_EQ(StrCat(std::numeric_limits<std::int64_t>::min()), "-9223372036854775808");
  EXPECT_EQ(StrCat(std::numeric_limits<std::uint64_t>::max()), "18446744073709551615");
  // Small types are numbers, not characters.
  EXPECT_EQ(StrCat(std::int8_t{-128}, " ", std::uint8_t{65}, " ", short{3}), "-128 65 3");
}

TEST(StrCat, BoolsAreWords) { EXPECT_EQ(StrCat(true, "/", false), "true/false"); }

TEST(StrCat, FloatingPointReadsBack) {
  EXPECT_EQ(StrCat(0.1, " ", 0.1f, " ", -2.5, " ", 3.0), "0.1 0.1 -2.5 3");
  EXPECT_EQ(StrCat(1e300, " ", std::numeric_limits<double>::infinity()), "1e+300 inf");
  const double longest = -std::numeric_limits<double>::min();
  EXPECT_EQ(std::stod(StrCat(longest)), longest);
  EXPECT_EQ(StrCat(std::numeric_limits<double>::quiet_NaN()), "nan");
}

TEST(StrCat, NoLocaleIsAsked) {
  struct Grouping : std::numpunct<char> {
    char do_thousands_sep() const override { return '.'; }
    char do_decimal_point() const override { return ','; }
    std::string do_grouping() const override { return "\3"; }
  };
  const std::locale before = std::locale::global(std::locale(std::locale(), new Grouping));
  const std::string text = StrCat(1234567, " ", 1234.5);
  std::locale::global(before);
  EXPECT_EQ(text, "1234567 1234.5");
}

TEST(Require, ThrowsTheConcatenatedMessage) {
  EXPECT_NO_THROW(Require(true, "never ", 1));
  try {
    Require(false, "k has ", std::int64_t{3}, " heads, expected ", 4);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "k has 3 heads, expected 4");
  }
}

TEST(Fail, KeepsTheCode) {
  try {
    Fail(ErrorCode::kDevice, "device ", 0, ": out of memory");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDevice);
    EXPECT_STREQ(error.what(), "device 0: out of memory");
  }
}

}  // namespace
}  // namespace megafold
