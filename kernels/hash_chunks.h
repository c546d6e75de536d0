// digest_i (docs/keys.md) of many chunks of tokens, of any number of prompts, in one launch.
//
// A BLAKE3 chunk is 16 compressions, each of which needs the one before; a thread makes them for
// one chunk of tokens. (Four threads a chunk, a column each, would need two shuffles a round, which
// take longer than the sums they divide.) A team loads the same 64-byte block of all its chunks
// together, four threads a block, and the next block while it hashes this one.
#pragma once

#include "access.h"
#include "chunk_hash.h"
#include "jobs.h"
#include "team.h"

namespace lmkv {

constexpr int kBlockWords = 16;

template <class Team>
struct HashShared {
  const uint8_t* chunk[Team::kSize];
  uint32_t block[Team::kSize][kBlockWords + 1];  // one word more: threads meet no bank twice
};

// Quarter-blocks of the team's chunks, each thread's four. Those behind the last chunk stay zero.
struct Quarters {
  Unit unit[4];
};

template <int kPiece, class Team>
LMKV_BODY Quarters load_quarters(const HashShared<Team>& shared, int thread, uint32_t b) {
  Quarters quarters;
  LMKV_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int n = thread + i * Team::kSize;
    const uint8_t* const chunk = shared.chunk[n / 4];
    quarters.unit[i] = Unit{};
    if (chunk == nullptr) continue;
    const uint8_t* const from = chunk + b * blake3::BLOCK_BYTES + uint32_t(n % 4) * 16;
    LMKV_UNROLL
    for (int at = 0; at < 16; at += kPiece) {
      load_piece<kPiece>(quarters.unit[i].word + at / 4, from + at);
    }
  }
  return quarters;
}

// The kernel: all that falls to this team, kSize chunks at a time. `kPiece`: addresses of chunks
// are multiples of it, 16 or 4.
template <int kPiece, class Team>
LMKV_BODY void hash_chunks(Team& team, const HashJob& job, HashShared<Team>& shared) {
  struct Hash {
    uint32_t word[8];
  };
  typename Team::template Local<Hash> hash;
  typename Team::template Local<Quarters> next;
  for (uint32_t first = team.block() * Team::kSize; first < job.count;
       first += team.blocks() * Team::kSize) {
    team.phase([&](int thread) {
      const uint32_t n = first + uint32_t(thread);
      shared.chunk[thread] = n < job.count ? job.chunks[n] : nullptr;
      blake3::begin_chunk_digest(hash[thread].word);
    });
    team.phase([&](int thread) { next[thread] = load_quarters<kPiece>(shared, thread, 0); });
    for (uint32_t b = 0; b < job.blocks; ++b) {
      team.phase([&](int thread) {
        LMKV_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int n = thread + i * Team::kSize;
          for (int w = 0; w < 4; ++w) {
            shared.block[n / 4][n % 4 * 4 + w] = next[thread].unit[i].word[w];
          }
        }
      });
      team.phase([&](int thread) {
        if (b + 1 < job.blocks) next[thread] = load_quarters<kPiece>(shared, thread, b + 1);
        uint32_t m[kBlockWords];
        LMKV_UNROLL
        for (int w = 0; w < kBlockWords; ++w) m[w] = shared.block[thread][w];
        blake3::chunk_digest_block(hash[thread].word, m, int(b), int(job.blocks));
      });
    }
    team.phase([&](int thread) {
      const uint32_t n = first + uint32_t(thread);
      if (n >= job.count) return;
      uint8_t* const to = job.digests + uint64_t(n) * blake3::HASH_BYTES;
      store_piece<16>(to, hash[thread].word);
      store_piece<16>(to + 16, hash[thread].word + 4);
    });
  }
}

}  // namespace lmkv
