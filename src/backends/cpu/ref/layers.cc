#include "backends/cpu/ref/layers.h"

#include <cmath>
#include <utility>

namespace megafold::cpu::ref {
namespace {

std::size_t Index(std::int64_t i) { return static_cast<std::size_t>(i); }

}  // namespace

LayerNormResult LayerNorm(const Dense& x, const Dense& gamma, const Dense& beta, double eps) {
  const auto features = static_cast<std::int64_t>(gamma.size());
  const auto rows = static_cast<std::int64_t>(x.size()) / features;
  Dense means(Index(rows));
  Dense rstds(Index(rows));
  for (std::int64_t m = 0; m < rows; ++m) {
    double mean = 0;
    for (std::int64_t k = 0; k < features; ++k) mean += x[Index(m * features + k)];
    mean /= static_cast<double>(features);
    double variance = 0;
    for (std::int64_t k = 0; k < features; ++k) {
      const double centred = x[Index(m * features + k)] - mean;
      variance += centred * centred;
    }
    variance /= static_cast<double>(features);
    means[Index(m)] = mean;
    rstds[Index(m)] = 1 / std::sqrt(variance + eps);
  }
  return LayerNormFrom(x, gamma, beta, std::move(means), std::move(rstds));
}

LayerNormResult LayerNormFrom(const Dense& x, const Dense& gamma, const Dense& beta, Dense mean,
                              Dense rstd) {
  const auto features = static_cast<std::int64_t>(gamma.size());
  LayerNormResult result{Dense(x.size()), Dense(x.size()), std::move(mean), std::move(rstd)};
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(x.size()); ++i) {
    const std::int64_t m = i / features;
    const std::int64_t k = i % features;
    result.xhat[Index(i)] = (x[Index(i)] - result.mean[Index(m)]) * result.rstd[Index(m)];
    result.normalised[Index(i)] = result.xhat[Index(i)] * gamma[Index(k)] + beta[Index(k)];
  }
  return result;
}

LayerNormGradients LayerNormBackward(const LayerNormResult& forward, const Dense& gamma,
                                     const Dense& dnormalised) {
  const auto rows = static_cast<std::int64_t>(forward.rstd.size());
  const auto features = static_cast<std::int64_t>(gamma.size());
  LayerNormGradients grads{Dense(dnormalised.size()), Dense(gamma.size()), Dense(gamma.size())};
  for (std::int64_t m = 0; m < rows; ++m) {
    double mean_g = 0;       // mean over k of g = gamma * dnormalised
    double mean_g_xhat = 0;  // mean over k of g * xhat
    for (std::int64_t k = 0; k < features; ++k) {
      const double d = dnormalised[Index(m * features + k)];
      const double xhat = forward.xhat[Index(m * features + k)];
      grads.dgamma[Index(k)] += d * xhat;
      grads.dbeta[Index(k)] += d;
      mean_g += d * gamma[Index(k)] / static_cast<double>(features);
      mean_g_xhat += d * gamma[Index(k)] * xhat / static_cast<double>(features);
    }
    for (std::int64_t k = 0; k < features; ++k) {
      const double g = dnormalised[Index(m * features + k)] * gamma[Index(k)];
      const double xhat = forward.xhat[Index(m * features + k)];
      grads.dx[Index(m * features + k)] =
          forward.rstd[Index(m)] * (g - mean_g - xhat * mean_g_xhat);
    }
  }
  return grads;
}

Dense Linear(const Dense& u, const Dense& weight, LinearShape shape) {
  const auto [rows, features, outputs] = shape;
  Dense y(Index(rows * outputs));
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t c = 0; c < outputs; ++c) {
      double sum = 0;
      for (std::int64_t k = 0; k < features; ++k) {
        sum += u[Index(m * features + k)] * weight[Index(c * features + k)];
      }
      y[Index(m * outputs + c)] = sum;
    }
  }
  return y;
}

Dense LinearInputGradient(const Dense& dy, const Dense& weight, LinearShape shape) {
  const auto [rows, features, outputs] = shape;
  Dense du(Index(rows * features));
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t c = 0; c < outputs; ++c) {
      for (std::int64_t k = 0; k < features; ++k) {
        du[Index(m * features + k)] += dy[Index(m * outputs + c)] * weight[Index(c * features + k)];
      }
    }
  }
  return du;
}

Dense LinearWeightGradient(const Dense& dy, const Dense& u, LinearShape shape) {
  const auto [rows, features, outputs] = shape;
  Dense dweight(Index(outputs * features));
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t c = 0; c < outputs; ++c) {
      for (std::int64_t k = 0; k < features; ++k) {
        dweight[Index(c * features + k)] += dy[Index(m * outputs + c)] * u[Index(m * features + k)];
      }
    }
  }
  return dweight;
}

double Sigmoid(double t) { return 1 / (1 + std::exp(-t)); }

void Accumulate(Dense& a, const Dense& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
}

}  // namespace megafold::cpu::ref
