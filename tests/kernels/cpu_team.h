// The team on a CPU, for tests: one thread of the system plays all threads of a team, phase by
// phase, each phase in another order that a seed decides. Not for GPU compilers.
//
// run_grid plays the teams of a launch one after the other in a shuffled order, or on several real
// threads. Shared memory begins as rubbish, as on a GPU.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "team.h"

namespace lmkv {

template <int kThreads>
class CpuTeam {
 public:
  static constexpr int kSize = kThreads;
  static constexpr int kWarps = kThreads / kWarp;

  template <class T>
  struct Local {
    std::array<T, kThreads> all;
    T& operator[](int thread) { return all[std::size_t(thread)]; }
    const T& operator[](int thread) const { return all[std::size_t(thread)]; }
  };

  CpuTeam(std::uint32_t block, std::uint32_t blocks, std::uint64_t seed)
      : block_(block), blocks_(blocks), random_(seed * 0x9E3779B97F4A7C15u + block) {
    std::iota(order_.begin(), order_.end(), 0);
  }

  template <class Do>
  void phase(Do&& work) {
    std::shuffle(order_.begin(), order_.end(), random_);
    for (const int thread : order_) work(thread);
  }

  template <class T>
  void exchange_xor(Local<T>& to, const Local<T>& from, int mask) {
    for (int thread = 0; thread < kThreads; ++thread) to[thread] = from[thread ^ mask];
  }

  template <class T>
  const T& uniform(const Local<T>& local) const {
    // The first thread of the last phase has seen least of what the others shared.
    const T& first = local[order_.front()];
    for (const T& one : local.all) {
      if (std::memcmp(&one, &first, sizeof(T)) != 0) disagree();
    }
    return first;
  }

  std::uint32_t block() const { return block_; }
  std::uint32_t blocks() const { return blocks_; }

 private:
  [[noreturn]] static void disagree() {
    std::fputs("threads disagree on what is equal in all of them: a barrier is missing\n", stderr);
    std::abort();
  }

  std::uint32_t block_, blocks_;
  std::minstd_rand random_;
  std::array<int, kThreads> order_;
};

// `body(team, shared)` for each of `blocks` teams.
template <class Team, class Shared, class Body>
void run_grid(std::uint32_t blocks, std::uint64_t seed, unsigned threads, Body&& body) {
  std::vector<std::uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::minstd_rand random(seed + 1);
  std::shuffle(order.begin(), order.end(), random);
  std::atomic<std::size_t> next = 0;
  const auto play = [&] {
    for (std::size_t n = next++; n < order.size(); n = next++) {
      Team team(order[n], blocks, seed);
      const auto shared = std::make_unique<Shared>();
      std::memset(static_cast<void*>(shared.get()), 0xA5, sizeof(Shared));
      body(team, *shared);
    }
  };
  std::vector<std::thread> others;
  for (unsigned n = 1; n < threads; ++n) others.emplace_back(play);
  play();
  for (std::thread& other : others) other.join();
}

}  // namespace lmkv
