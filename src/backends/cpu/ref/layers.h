// LayerNorm, linear layer and sigmoid of the reference, on row-major arrays of double: the pieces
// that LayerNormLinear, Transition and TriangleMultiplication are made of. Plain loops; meant to be
// read.
#pragma once

#include <cstdint>

#include "backends/cpu/ref/dense.h"

namespace megafold::cpu::ref {

struct LayerNormResult {
  Dense normalised;  // [M, K]: gamma * xhat + beta
  Dense xhat;        // [M, K]: (x - mean) * rstd
  Dense mean, rstd;  // [M]
};

// x [M, K], gamma and beta [K].
LayerNormResult LayerNorm(const Dense& x, const Dense& gamma, const Dense& beta, double eps);

// The same from statistics already known, mean and rstd [M].
LayerNormResult LayerNormFrom(const Dense& x, const Dense& gamma, const Dense& beta, Dense mean,
                              Dense rstd);

struct LayerNormGradients {
  Dense dx;             // [M, K]
  Dense dgamma, dbeta;  // [K]
};

LayerNormGradients LayerNormBackward(const LayerNormResult& forward, const Dense& gamma,
                                     const Dense& dnormalised);

struct LinearShape {
  std::int64_t rows, features, outputs;  // M, K, C
};

// y[m, c] = sum_k u[m, k] weight[c, k]
Dense Linear(const Dense& u, const Dense& weight, LinearShape shape);

// du[m, k] = sum_c dy[m, c] weight[c, k]
Dense LinearInputGradient(const Dense& dy, const Dense& weight, LinearShape shape);

// dweight[c, k] = sum_m dy[m, c] u[m, k]
Dense LinearWeightGradient(const Dense& dy, const Dense& u, LinearShape shape);

double Sigmoid(double t);

// a += b
void Accumulate(Dense& a, const Dense& b);

}  // namespace megafold::cpu::ref
