// How many threads the CPU backend uses for one call.
#pragma once

namespace megafold {

// Threads that one CPU call may use, the calling one included. At first MEGAFOLD_NUM_THREADS, else
// OMP_NUM_THREADS, where that is a positive number, else the processors this process may run on.
int GetNumThreads();

// Sets that number for the calls that follow, in every thread. Throws kInvalidArgument unless it is
// positive. Workspaces depend on it: set it before asking for their size. Results do not, unless an
// operator says so.
void SetNumThreads(int threads);

}  // namespace megafold
