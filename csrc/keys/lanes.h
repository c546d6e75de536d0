// The body of hash_many for a SIMD register: lane j of every word belongs to input j. Included only
// by the hash_many_*.cpp of one instruction set each; everything is instantiated with that file's
// own lane type, so that no code of a wider set can end up in a shared function.
//
// A lane type has `WIDTH`, `load(m, rows)` (block of each row, transposed), `store(h, out)`
// (32 bytes per lane), `numbers(first, step, high)` (a 64-bit counter per lane, low or high half).
#pragma once

#include "chunk_hash.h"
#include "hash_many.h"

namespace lmkv::blake3 {

template <class Lanes>
inline __attribute__((always_inline)) void hash_lanes(const Batch& batch, size_t begin,
                                                      size_t lanes) {
  const uint8_t* rows[Lanes::WIDTH];
  for (size_t j = 0; j < Lanes::WIDTH; ++j) {
    rows[j] = batch.inputs + (begin + (j < lanes ? j : 0)) * batch.stride;  // idle lanes repeat
  }
  const uint64_t first = batch.counter + begin * batch.counter_step;
  Lanes h[8];
  for (int i = 0; i < 8; ++i) h[i] = splat<Lanes>(batch.key[i]);
  hash_blocks(h, batch.blocks, batch.last_length, Lanes::numbers(first, batch.counter_step, 0),
              Lanes::numbers(first, batch.counter_step, 32), batch.flags, batch.first, batch.last,
              [&](int b, Lanes(&m)[16]) __attribute__((always_inline)) {
                Lanes::load(m, rows, static_cast<size_t>(b) * BLOCK_BYTES);
              });
  if (lanes == Lanes::WIDTH) {
    Lanes::store(h, batch.out + begin * HASH_BYTES);
    return;
  }
  alignas(64) uint8_t all[Lanes::WIDTH * HASH_BYTES];
  Lanes::store(h, all);
  __builtin_memcpy(batch.out + begin * HASH_BYTES, all, lanes * HASH_BYTES);
}

// Full registers, then one partly idle register when at least `least` inputs are left.
template <class Lanes>
inline __attribute__((always_inline)) size_t hash_all(const Batch& batch, size_t least) {
  size_t done = 0;
  while (batch.count - done >= Lanes::WIDTH) {
    hash_lanes<Lanes>(batch, done, Lanes::WIDTH);
    done += Lanes::WIDTH;
  }
  if (batch.count - done >= least) {
    hash_lanes<Lanes>(batch, done, batch.count - done);
    done = batch.count;
  }
  return done;
}

}  // namespace lmkv::blake3
