// Scratch memory that the caller allocates: an operator never allocates device memory itself, so that the framework's
// caching allocator and graph capture see every byte.
#pragma once

#include <cstddef>

namespace megafold {

struct Workspace {
  void* data = nullptr;  // aligned to 256 bytes, on the operator's device; contents are undefined before and after
  std::size_t bytes = 0;
};

}  // namespace megafold
