// A team: the threads that do one piece of work together. On a GPU a block of threads; on a CPU
// (cpu_team.h) a loop over them, each phase in another shuffled order.
//
// A body is a template over its team, and is written as phases:
//
//   typename Team::template Local<T> x;          // one T for each thread
//   team.phase([&](int thread) { x[thread] = ...; shared.y[...] = ...; });   // ends with a barrier
//   team.exchange_xor(to, from, mask);           // thread t gets from[t ^ mask]; within a warp
//   team.uniform(x)                              // a Local that is equal in all threads
//   team.block(), team.blocks()                  // which team this is, of how many
//
// What one thread shares with another it writes in one phase and reads in a later one: shuffled
// threads on a CPU show it as wrong bytes when it does not. Between phases a body touches no shared
// memory, as the next phase's fast threads may be there already; `team_read` brings a value out.
#pragma once

#include "words.h"

namespace lmkv {

constexpr int kWarp = 32;

#if defined(__CUDACC__)
template <int kThreads>
struct GpuTeam {
  static constexpr int kSize = kThreads;
  static constexpr int kWarps = kThreads / kWarp;

  template <class T>
  struct Local {
    T own;
    LMKV_BODY T& operator[](int) { return own; }
    LMKV_BODY const T& operator[](int) const { return own; }
  };

  template <class Do>
  LMKV_BODY void phase(Do&& work) {
    work(int(threadIdx.x));
    __syncthreads();
  }

  template <class T>
  LMKV_BODY void exchange_xor(Local<T>& to, const Local<T>& from, int mask) {
    static_assert(sizeof(T) % 8 == 0, "whole 64-bit words");
    unsigned long long words[sizeof(T) / 8];
    memcpy(words, &from.own, sizeof(T));
    for (unsigned i = 0; i < sizeof(T) / 8; ++i) {
      words[i] = __shfl_xor_sync(0xFFFFFFFFu, words[i], mask);
    }
    memcpy(&to.own, words, sizeof(T));
  }

  template <class T>
  LMKV_BODY const T& uniform(const Local<T>& local) const {
    return local.own;
  }

  LMKV_BODY uint32_t block() const { return blockIdx.x; }
  LMKV_BODY uint32_t blocks() const { return gridDim.x; }
};
#endif

// The sum of a Local over the team, in every thread: by warp, then over the warps through
// `warps`, which is shared. `parts` is used up. T has `+`, and T{} is nothing.
template <class Team, class T>
LMKV_BODY T team_sum(Team& team, typename Team::template Local<T>& parts,
                     T (&warps)[Team::kWarps]) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    typename Team::template Local<T> other;
    team.exchange_xor(other, parts, mask);
    team.phase([&](int thread) { parts[thread] = parts[thread] + other[thread]; });
  }
  team.phase([&](int thread) {
    if (thread % kWarp == 0) warps[thread / kWarp] = parts[thread];
  });
  team.phase([&](int thread) {
    T total{};
    for (int warp = 0; warp < Team::kWarps; ++warp) total = total + warps[warp];
    parts[thread] = total;
  });
  return team.uniform(parts);
}

// A value in shared memory that a phase has written: for all threads, outside of phases.
template <class Team, class T>
LMKV_BODY T team_read(Team& team, const T& shared) {
  typename Team::template Local<T> value;
  team.phase([&](int thread) { value[thread] = shared; });
  return team.uniform(value);
}

}  // namespace lmkv
