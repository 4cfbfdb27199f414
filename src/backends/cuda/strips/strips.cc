#include "backends/cuda/strips/strips.h"

#include <cstdint>

namespace megafold::cuda {
namespace {

constexpr std::int64_t kVectorBytes = 2;  // of an element: 16-bit types alone
constexpr std::int64_t kReach = std::int64_t{1} << 32;

bool Fits(std::int64_t stride, std::int64_t count) {
  return stride >= 0 && stride * count < kReach;
}

// Rows of all batches follow each other at one distance.
class Rows {
 public:
  explicit Rows(const AttentionProblem& p) : batches_(p.batches), rows_(p.batch_rows) {}
  std::int64_t Stride(std::int64_t batch, std::int64_t row) {
    if (rows_ == 1) return batch;
    if (batches_ > 1 && batch != row * rows_) even_ = false;
    return row;
  }
  bool even() const { return even_; }

 private:
  std::int64_t batches_, rows_;
  bool even_ = true;
};

}  // namespace

Support MakeStripProblem(const AttentionProblem& from, StripProblem& to) {
  Rows rows(from);
  bool fits = true;
  const auto take = [&](const AttentionOperand& operand, int vectors, StripOperand& strip,
                        std::int64_t& row) {
    if (operand.data == nullptr) return;
    const std::int64_t token = operand.token * kVectorBytes, head = operand.head * kVectorBytes;
    fits = fits && Fits(token, vectors) && Fits(head, 1);
    strip = {operand.data, static_cast<std::uint32_t>(token), static_cast<std::uint32_t>(head)};
    row = rows.Stride(operand.batch, operand.row) * kVectorBytes;
  };
  to = {};
  take(from.q, from.queries, to.q, to.row.q);
  take(from.k, from.keys, to.k, to.row.k);
  take(from.v, from.keys, to.v, to.row.v);
  take(from.out, from.queries, to.out, to.row.out);
  take(from.dout, from.queries, to.dout, to.row.dout);
  take(from.dq, from.queries, to.dq, to.row.dq);
  take(from.dk, from.keys, to.dk, to.row.dk);
  take(from.dv, from.keys, to.dv, to.row.dv);

  const std::int64_t bias_bytes = from.bias.kind == TermKind::kFloat32 ? 4 : kVectorBytes;
  const AttentionBias& bias = from.bias;
  fits = fits && Fits(bias.query * bias_bytes, from.queries) &&
         Fits(bias.key * bias_bytes, from.keys) && Fits(bias.head * bias_bytes, 1);
  to.bias = bias.data;
  to.bias_kind = bias.kind;
  to.bias_head = static_cast<std::uint32_t>(bias.head * bias_bytes);
  to.bias_query = static_cast<std::uint32_t>(bias.query);
  to.bias_key = static_cast<std::uint32_t>(bias.key);
  to.bias_vectors = bias.aligned && from.keys % 8 == 0;
  if (from.groups > 1 && from.batch_rows > 1) {
    return Support::No("several batches of several rows, a bias each");
  }
  if (from.groups > 1) to.row.bias = bias.group * bias_bytes;

  const std::int64_t mask_bytes = from.mask.kind == TermKind::kBool      ? 1
                                  : from.mask.kind == TermKind::kFloat32 ? 4
                                                                         : kVectorBytes;
  fits = fits && Fits(from.mask.key, 1);
  to.mask = from.mask.data;
  to.mask_kind = from.mask.kind;
  to.mask_key = static_cast<std::uint32_t>(from.mask.key);
  to.row.mask = rows.Stride(from.mask.batch, from.mask.row) * mask_bytes;
  to.lse = from.lse;
  to.queries = from.queries;
  to.keys = from.keys;
  to.dim = from.dim;
  to.heads = from.heads;
  to.layers = static_cast<int>(from.batches * from.batch_rows);
  to.scale = from.scale;
  if (!rows.even()) return Support::No("rows that do not follow each other at one distance");
  return fits ? Support::Yes() : Support::No("strides of more than 32 bits");
}

}  // namespace megafold::cuda
