// Runs a test once for every instruction set that the vectorised kernels were compiled for and this
// machine has.
#pragma once

#include <functional>

namespace megafold::test {

// Calls body() with the dispatcher set to each target in turn, best last, and leaves it as it was.
void ForEachTarget(const std::function<void()>& body);

}  // namespace megafold::test
