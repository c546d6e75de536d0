// Many equal-shaped BLAKE3 inputs at once: whole chunks, parents or short messages. One entry per
// instruction set; `hash_many` takes the active one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmkv::blake3 {

// `count` inputs of `blocks` blocks each, `stride` bytes apart; all of an input's blocks are
// readable, zeros behind `last_length` bytes of the last one. Input i counts as chunk number
// `counter + i * counter_step`. `flags` go to every block, `first` and `last` to those beside.
struct Batch {
  const uint8_t* inputs;
  size_t stride;
  size_t count;
  int blocks;
  uint32_t last_length;
  uint64_t counter;
  uint64_t counter_step;
  uint32_t flags;
  uint32_t first;
  uint32_t last;
  const uint32_t* key;  // 8 words: the IV, or a derive_key context's
  uint8_t* out;         // count * 32 bytes
};

void hash_many(const Batch& batch);

// A chain of links without extras: link = BLAKE3(before || digest) in the mode of `key` and
// `flags`, one block each, and each needs the one before it. It waits for its own results most of
// the time, so it goes along with a batch of digests at hardly any cost.
struct Links {
  const uint32_t* key;
  uint32_t flags;
  const uint8_t* before;   // 32 bytes
  const uint8_t* digests;  // count * 32 bytes
  size_t count;
  uint8_t* out;  // count * 32 bytes
};

// hash_many(batch) and all the links, which may not depend on this batch.
void hash_many_beside(const Batch& batch, const Links& links);

// How many inputs hash_many takes at once, at most: the active set's lanes.
size_t lanes();

// A full register of inputs with as many links beside as the batch has blocks; returns how many
// links were made. `batch.count` is the register's width.
size_t hash_beside_avx2(const Batch& batch, const Links& links);
size_t hash_beside_avx512(const Batch& batch, const Links& links);

// Each returns how many inputs it did, a prefix; the caller does the rest with a narrower one.
size_t hash_many_scalar(const Batch& batch);
size_t hash_many_avx2(const Batch& batch);
size_t hash_many_avx512(const Batch& batch);

}  // namespace lmkv::blake3
