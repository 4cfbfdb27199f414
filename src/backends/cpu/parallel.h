// The threads that the CPU kernels share: those of the program around the library where it lends
// them (SetParallelRunner), else one pool a process, started on first use.
//
// A pool of our own, because linking OpenMP would put a second runtime beside the one inside
// libtorch, each with threads that spin after their work. Between calls these sleep.
#pragma once

#include <cstdint>
#include <functional>

#include "megafold/core/threads.h"

namespace megafold::cpu {

// Threads that ParallelFor uses, the caller's included. How sums are divided depends on this number
// alone.
inline int NumThreads() { return GetNumThreads(); }

// Calls body(0) ... body(count - 1), each once, on up to NumThreads() threads, and returns when all
// are done. The first exception is thrown again here. Calls from several threads at a time are
// safe: one of them gets the pool, the others run in their own thread, as does a call from inside a
// body.
void ParallelFor(std::int64_t count, const std::function<void(std::int64_t)>& body);

// Calls body(worker, begin, end) for runs of items that are [0, count) together, each item once,
// with worker in [0, workers). No two threads have the same worker at a time, so that each worker
// may own scratch. Items of a run are neighbours, and what one of them brings into the cache serves
// the next.
void ParallelRuns(int workers, std::int64_t count,
                  const std::function<void(int, std::int64_t, std::int64_t)>& body);

}  // namespace megafold::cpu
