// SwiGLU and the sigmoid gates, forward and backward, on blocks of fp32 rows (rows.h).
#pragma once

#include <cstdint>

#include "backends/cpu/rows.h"

namespace megafold::cpu {

// gate = silu(gate) * value
void SwiGlu(Block gate, Block value);

// From gate, value and the gradient `dhidden` of h = silu(gate) * value: gate becomes its gradient,
// value becomes its gradient, dhidden becomes h.
void SwiGluBackward(Block gate, Block value, Block dhidden);

// rows = sigmoid(rows)
void SigmoidRows(Block rows);

// value = sigmoid(gate) * value * factor[row]; gate becomes sigmoid(gate). A null factor counts as
// one.
void Gate(Block gate, Block value, const float* factor);

// From y = s * p: p becomes dy * p * s * (1 - s), the gradient of the gate before its sigmoid, and
// dy becomes dy * s, the gradient of p. `s` holds the sigmoid.
void GateBackward(Block s, Block p, Block dy);

// From product = s * value * factor: dproduct[i] * product[i] * (1 - s[i]) into product, the
// gradient of the gate before its sigmoid, and dproduct[i] * s[i] into s, the gradient of value but
// for the factor.
void GatedProductBackward(const float* dproduct, float* product, float* s, std::int64_t count);

}  // namespace megafold::cpu
