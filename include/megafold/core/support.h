// An implementation's answer to "can you run this problem?". A no carries its reason, so that a problem nobody accepts
// is reported with every refusal and `MEGAFOLD_LOG=dispatch` can say why the faster choice was passed over.
#pragma once

#include <string>
#include <utility>

namespace megafold {

class Support {
 public:
  static Support Yes() { return Support({}); }
  static Support No(std::string reason) { return Support(std::move(reason)); }
  explicit operator bool() const { return reason_.empty(); }
  const std::string& reason() const { return reason_; }

 private:
  explicit Support(std::string reason) : reason_(std::move(reason)) {}
  std::string reason_;  // empty means yes
};

}  // namespace megafold
