// What the trunk hands to the diffusion module and the heads.
#pragma once

#include <ATen/core/Tensor.h>

namespace megafold::model {

struct TrunkOutput {
  at::Tensor s_inputs;  // [B, N, c_s_inputs]
  at::Tensor s;         // [B, N, c_s]
  at::Tensor z;         // [B, N, N, c_z]
};

}  // namespace megafold::model
