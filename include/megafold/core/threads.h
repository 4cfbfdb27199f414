// The threads that the CPU backend uses: how many for one call, and whose.
#pragma once

namespace megafold {

// Threads that one CPU call may use, the calling one included. At first MEGAFOLD_NUM_THREADS, else
// OMP_NUM_THREADS, where that is a positive number, else the processors this process may run on.
int GetNumThreads();

// Sets that number for the calls that follow, in every thread. Throws kInvalidArgument unless it is
// positive. Workspaces depend on it: set it before asking for their size. Results do not, unless an
// operator says so.
void SetNumThreads(int threads);

// Runs work(context) in up to `workers` threads at a time, the calling one included, at least once,
// and returns when every one has returned. Work does not throw.
using ParallelRunner = void (*)(int workers, void (*work)(void*), void* context);

// Lets the threads of the program around the library do its work: two pools on the same processors
// wait for each other, above all where idle threads of one spin. Null, as at first, is a pool of
// the library's own, whose idle threads sleep; so is a process that was forked since.
void SetParallelRunner(ParallelRunner runner);
ParallelRunner GetParallelRunner();

}  // namespace megafold
