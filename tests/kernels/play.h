// A launch of the kernels played on a CPU: which body a kernel's name means, and its teams of two
// warps, whatever the size of the GPU's. Shared by the tests of the bodies (bodies.cpp) and by the
// fake driver (tests/fakecuda).
#pragma once

#include <cstdint>

#include "cpu_team.h"
#include "gather_scatter.h"
#include "hash_chunks.h"

namespace lmkv {

// tests/kernels/bodies.py has the same fields.
struct Launch {
  std::uint32_t teams, threads;  // teams of two warps, real threads
  std::uint64_t seed;
};

using PlayTeam = CpuTeam<64>;

template <Copy kCopy, int kPiece>
void play(const CopyJob& job, const Launch& launch) {
  using Shared = CopyShared<PlayTeam>;
  run_grid<PlayTeam, Shared>(
      launch.teams, launch.seed, launch.threads,
      [&](PlayTeam& team, Shared& shared) { copy_chunks<kCopy, kPiece>(team, job, shared); });
}

template <Copy kCopy>
bool play(std::uint32_t piece, const CopyJob& job, const Launch& launch) {
  if (piece == 16) return play<kCopy, 16>(job, launch), true;
  if constexpr (kCopy != Copy::verify) {
    if (piece == 8) return play<kCopy, 8>(job, launch), true;
    if (piece == 4) return play<kCopy, 4>(job, launch), true;
  }
  return false;
}

// False: there is no such kernel.
inline bool play(Copy copy, std::uint32_t piece, const CopyJob& job, const Launch& launch) {
  switch (copy) {
    case Copy::gather:
      return play<Copy::gather>(piece, job, launch);
    case Copy::scatter:
      return play<Copy::scatter>(piece, job, launch);
    case Copy::verify:
      return play<Copy::verify>(16, job, launch);
    case Copy::audit:
      return play<Copy::audit>(piece, job, launch);
  }
  return false;
}

// As many teams as the chunks take.
inline void play_headers(const HeaderJob& job, const Launch& launch, bool publish) {
  struct Nothing {};
  constexpr std::uint32_t kSize = PlayTeam::kSize;
  run_grid<PlayTeam, Nothing>(
      (job.chunks + kSize - 1) / kSize, launch.seed, launch.threads, [&](PlayTeam& team, Nothing&) {
        team.phase([&](int thread) {
          const std::uint32_t n = team.block() * kSize + std::uint32_t(thread);
          publish ? publish_slot(job, n) : clear_slot(job, n);
        });
      });
}

inline void play_hash(const HashJob& job, std::uint32_t piece, const Launch& launch) {
  using Shared = HashShared<PlayTeam>;
  run_grid<PlayTeam, Shared>(
      launch.teams, launch.seed, launch.threads, [&](PlayTeam& team, Shared& shared) {
        piece == 16 ? hash_chunks<16>(team, job, shared) : hash_chunks<4>(team, job, shared);
      });
}

}  // namespace lmkv
