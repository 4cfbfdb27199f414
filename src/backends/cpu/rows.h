// Row-wise work on blocks of fp32 rows that lie in the cache: conversion from and to the storage
// types, LayerNorm forward and backward, sums. Gates are in gates.h, the matrix products between
// these steps in gemm.h.
//
// A block is `rows` rows of `columns` floats, `stride` apart, padded to kColumnPadding columns
// (gemm.h). Loading fills the padding with zeros; parameter vectors (gamma, beta) are padded with
// zeros as well, so that the padding of a normalised row is zero.
#pragma once

#include <cstdint>

#include "megafold/core/tensor_view.h"

namespace megafold::cpu {

struct Block {
  float* data;
  std::int64_t rows, columns, stride;
};

// Rows in storage: `data` points to the first element of the first one.
struct StoredRows {
  void* data;
  DType dtype;
  std::int64_t stride;  // in elements
};

// The rows of a rank-2 view from `first_row` on.
StoredRows RowsOf(const TensorView& matrix, std::int64_t first_row);

void LoadRows(StoredRows from, Block to);
void StoreRows(Block from, StoredRows to);

// A parameter vector as padded floats; `fallback` fills it when `vector` is undefined. The padding
// is zero.
void LoadVector(const TensorView& vector, std::int64_t size, float fallback, float* out);

struct LayerNormParameters {
  const float* gamma;  // padded
  const float* beta;   // padded
  float eps;
};

// out = (x - mean) * rstd * gamma + beta, with mean and rstd [rows] computed and stored. `out` may
// be `x`.
void LayerNormRows(Block x, LayerNormParameters parameters, float* mean, float* rstd, Block out);

// The same with mean and rstd given.
void NormaliseRows(Block x, LayerNormParameters parameters, const float* mean, const float* rstd,
                   Block out);

// From x and the gradient `grad` of the normalised row: adds to dgamma and dbeta (padded, either
// may be null) and replaces `grad` by the gradient of x.
void LayerNormBackwardRows(Block grad, Block x, const float* gamma, const float* mean,
                           const float* rstd, float* dgamma, float* dbeta);

// sum[n] += sum over the rows of block[row][n]
void AddColumnSums(Block block, float* sum);

// row *= factor[row]
void ScaleRows(Block rows, const float* factor);

// sum[i] += part[i]
void AddInto(float* sum, const float* part, std::int64_t count);

}  // namespace megafold::cpu
