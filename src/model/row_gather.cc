#include "model/row_gather.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace megafold::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor Sum(const at::Tensor& x, const at::Tensor& index, std::int64_t rows) {
  at::Tensor out = at::zeros({rows, x.size(1)}, x.options());
  // Each device's repeatable kernel: on the CPU index_put_ adds atomically, on a GPU scatter_add_
  // does.
  if (x.is_cpu()) return out.scatter_add_(0, index.unsqueeze(1).expand_as(x), x);
  return out.index_put_({index}, x, /*accumulate=*/true);
}

struct GatherRowsFunction : torch::autograd::Function<GatherRowsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& index) {
    context->save_for_backward({index});
    context->saved_data["rows"] = x.size(0);
    return x.index_select(0, index);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor index = context->get_saved_variables()[0];
    return {SumRows(gradients[0], index, context->saved_data["rows"].toInt()), {}};
  }
};

struct SumRowsFunction : torch::autograd::Function<SumRowsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& index,
                            std::int64_t rows) {
    context->save_for_backward({index});
    return Sum(x, index, rows);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {GatherRows(gradients[0], context->get_saved_variables()[0]), {}, {}};
  }
};

}  // namespace

at::Tensor GatherRows(const at::Tensor& x, const at::Tensor& index) {
  return GatherRowsFunction::apply(x, index);
}

at::Tensor SumRows(const at::Tensor& x, const at::Tensor& index, std::int64_t rows) {
  return SumRowsFunction::apply(x, index, rows);
}

}  // namespace megafold::model
