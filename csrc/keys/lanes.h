// The body of hash_many for a SIMD register: lane j of every word belongs to input j. Included only
// by the hash_many_*.cpp of one instruction set each; everything is instantiated with that file's
// own lane type, so that no code of a wider set can end up in a shared function.
//
// A lane type has `WIDTH`, `load(m, rows)` (block of each row, transposed), `store(h, out)`
// (32 bytes per lane), `numbers(first, step, high)` (a 64-bit counter per lane, low or high half).
#pragma once

#include "chunk_hash.h"
#include "hash_many.h"

#define LMKV_INLINE inline __attribute__((always_inline))

namespace lmkv::blake3 {

template <class Lanes>
LMKV_INLINE void hash_lanes(const Batch& batch, size_t begin, size_t lanes) {
  const uint8_t* rows[Lanes::WIDTH];
  for (size_t j = 0; j < Lanes::WIDTH; ++j) {
    rows[j] = batch.inputs + (begin + (j < lanes ? j : 0)) * batch.stride;  // idle lanes repeat
  }
  const uint64_t first = batch.counter + begin * batch.counter_step;
  Lanes h[8];
  for (int i = 0; i < 8; ++i) h[i] = splat<Lanes>(batch.key[i]);
  hash_blocks(
      h, batch.blocks, batch.last_length, Lanes::numbers(first, batch.counter_step, 0),
      Lanes::numbers(first, batch.counter_step, 32), batch.flags, batch.first,
      batch.last, [&](int b, Lanes(&m)[16]) __attribute__((always_inline)) {
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

// A lane more: one message in the integer unit beside those in the SIMD unit, word by word, so that
// the processor has both to do at any moment.
template <class Lanes>
struct Beside {
  Lanes wide;
  uint32_t narrow;
};

template <class Lanes>
LMKV_INLINE Beside<Lanes> operator+(const Beside<Lanes>& a, const Beside<Lanes>& b) {
  return {a.wide + b.wide, a.narrow + b.narrow};
}

template <class Lanes>
LMKV_INLINE Beside<Lanes> operator+(const Beside<Lanes>& a, uint32_t b) {
  return {a.wide + b, a.narrow + b};
}

template <class Lanes>
LMKV_INLINE Beside<Lanes> operator^(const Beside<Lanes>& a, const Beside<Lanes>& b) {
  return {a.wide ^ b.wide, a.narrow ^ b.narrow};
}

template <int N, class Lanes>
LMKV_INLINE Beside<Lanes> rotate_right(const Beside<Lanes>& a) {
  return {rotate_right<N>(a.wide), (a.narrow >> N) | (a.narrow << (32 - N))};
}

// One register of inputs, counters all `batch.counter`, and a link with each block.
template <class Lanes>
LMKV_INLINE size_t hash_lanes_beside(const Batch& batch, const Links& links) {
  const uint8_t* rows[Lanes::WIDTH];
  for (size_t j = 0; j < Lanes::WIDTH; ++j) rows[j] = batch.inputs + j * batch.stride;
  const auto wide = [](uint32_t x) { return splat<Lanes>(x); };
  Lanes h[8];
  for (int i = 0; i < 8; ++i) h[i] = wide(batch.key[i]);
  const Lanes low = wide(static_cast<uint32_t>(batch.counter));
  const Lanes high = wide(static_cast<uint32_t>(batch.counter >> 32));
  const uint8_t* before = links.before;
  const size_t blocks = static_cast<size_t>(batch.blocks);
  for (size_t b = 0; b < blocks; ++b) {
    const size_t link = b < links.count ? b : links.count - 1;  // the last one again, to no effect
    if (link > 0) before = links.out + (link - 1) * HASH_BYTES;
    Lanes loaded[16];
    Lanes::load(loaded, rows, b * BLOCK_BYTES);
    uint32_t message[16];
    __builtin_memcpy(message, before, HASH_BYTES);
    __builtin_memcpy(message + 8, links.digests + link * HASH_BYTES, HASH_BYTES);
    Beside<Lanes> m[16], v[8];
    for (int i = 0; i < 16; ++i) m[i] = {loaded[i], message[i]};
    for (int i = 0; i < 8; ++i) v[i] = {h[i], links.key[i]};
    const uint32_t flags =
        batch.flags | (b == 0 ? batch.first : 0u) | (b == blocks - 1 ? batch.last : 0u);
    const uint32_t length = b == blocks - 1 ? batch.last_length : BLOCK_BYTES;
    compress(v, m, Beside<Lanes>{low, 0}, Beside<Lanes>{high, 0},
             Beside<Lanes>{wide(length), BLOCK_BYTES},
             Beside<Lanes>{wide(flags), links.flags | CHUNK_START | CHUNK_END | ROOT});
    uint32_t out[8];
    for (int i = 0; i < 8; ++i) {
      h[i] = v[i].wide;
      out[i] = v[i].narrow;
    }
    __builtin_memcpy(links.out + link * HASH_BYTES, out, HASH_BYTES);
  }
  Lanes::store(h, batch.out);
  return links.count < blocks ? links.count : blocks;
}

// Full registers, then one partly idle register when at least `least` inputs are left.
template <class Lanes>
LMKV_INLINE size_t hash_all(const Batch& batch, size_t least) {
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
