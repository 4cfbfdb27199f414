// The row-wise work of attention between its matrix products: a tile of scores becomes softmax
// weights, forward with a running maximum over tiles of keys, backward from the log-sum-exp.
//
// Exponentials are taken as exp2 of scores times log2(e): a polynomial of degree 5 after range
// reduction, relative error below 3e-7; below 2^-126.5 it is zero. NaN stays NaN.
#pragma once

#include <cstdint>

#include "backends/cpu/rows.h"

namespace megafold::cpu {

// What is added to the scores of a tile: `bias` one row for each of its rows, `mask` one for all.
// Both begin at the tile's first key and need no padding; either may be null.
struct ScoreTerms {
  const float* bias;
  std::int64_t bias_stride;
  const float* mask;
};

// Of every row, over the keys seen so far: the largest score in log2 units (-inf at first) and the
// sum of 2^(score - largest) (0 at first).
struct RunningSoftmax {
  float* largest;
  float* sum;
};

// Replaces scores [rows, keys] by exp(score + terms - largest) and brings `state` up to date.
// rescale[row] is what sums taken with the former `largest` have to be multiplied by.
void OnlineSoftmaxRows(Block scores, ScoreTerms terms, RunningSoftmax state, float* rescale);

// factor[row] = 1 / sum, or 0 for a row without keys, and lse[row] = its natural log-sum-exp, or
// +inf.
void FinishSoftmax(RunningSoftmax state, std::int64_t rows, float* factor, float* lse);

struct ScoreGradient {
  const float* lse;    // [rows]
  const float* delta;  // [rows]: sum over features of dO * O
  float* dbias;        // as ScoreTerms::bias, or null
  std::int64_t dbias_stride;
  bool accumulate;  // add to dbias instead of setting it
};

// scores becomes p = exp(score + terms - lse), dp becomes p * (dp - delta), which also goes to
// dbias.
void SoftmaxBackwardRows(Block scores, Block dp, ScoreTerms terms, ScoreGradient gradient);

// out[row] = sum over columns of a * b; both blocks' padding is zero.
void DotRows(Block a, Block b, float* out);

}  // namespace megafold::cpu
