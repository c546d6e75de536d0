// BLAKE3's compression, once, for every word type: uint32_t (one message at a time, on a CPU or a
// GPU thread) or a vector of them (one message in each lane). A lane type needs +, ^ and an
// overload of `rotate_right`. Nothing here allocates, and nothing depends on the standard library's
// containers, so that host, device and tests share it.
//
// The functions follow the BLAKE3 paper, section 2: 16 state words, 7 rounds, 64-byte blocks,
// 1,024-byte chunks, flags for the place of a block.
#pragma once

#include "words.h"

namespace lmkv::blake3 {

enum Flag : uint32_t {
  CHUNK_START = 1,
  CHUNK_END = 2,
  PARENT = 4,
  ROOT = 8,
  DERIVE_KEY_CONTEXT = 32,
  DERIVE_KEY_MATERIAL = 64,
};

constexpr int BLOCK_BYTES = 64;
constexpr int CHUNK_BYTES = 1024;
constexpr int HASH_BYTES = 32;
constexpr int ROUNDS = 7;

LMKV_HOST_DEVICE constexpr uint32_t iv(int i) {
  constexpr uint32_t words[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
  return words[i];
}

// Which message word stands at place i in round r: the paper's permutation, r times.
LMKV_HOST_DEVICE constexpr int schedule(int r, int i) {
  constexpr int permutation[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};
  for (; r > 0; --r) i = permutation[i];
  return i;
}

template <int N>
LMKV_HOST_DEVICE uint32_t rotate_right(uint32_t x) {
  return (x >> N) | (x << (32 - N));
}

// One value in every lane.
template <class Word>
LMKV_HOST_DEVICE Word splat(uint32_t x) {
  return Word{} + x;
}

template <class Word>
LMKV_HOST_DEVICE void mix(Word& a, Word& b, Word& c, Word& d, const Word& x, const Word& y) {
  a = (a + x) + b;
  d = rotate_right<16>(d ^ a);
  c = c + d;
  b = rotate_right<12>(b ^ c);
  a = (a + y) + b;
  d = rotate_right<8>(d ^ a);
  c = c + d;
  b = rotate_right<7>(b ^ c);
}

template <int R, class Word>
LMKV_HOST_DEVICE void round(Word (&v)[16], const Word (&m)[16]) {
  mix(v[0], v[4], v[8], v[12], m[schedule(R, 0)], m[schedule(R, 1)]);
  mix(v[1], v[5], v[9], v[13], m[schedule(R, 2)], m[schedule(R, 3)]);
  mix(v[2], v[6], v[10], v[14], m[schedule(R, 4)], m[schedule(R, 5)]);
  mix(v[3], v[7], v[11], v[15], m[schedule(R, 6)], m[schedule(R, 7)]);
  mix(v[0], v[5], v[10], v[15], m[schedule(R, 8)], m[schedule(R, 9)]);
  mix(v[1], v[6], v[11], v[12], m[schedule(R, 10)], m[schedule(R, 11)]);
  mix(v[2], v[7], v[8], v[13], m[schedule(R, 12)], m[schedule(R, 13)]);
  mix(v[3], v[4], v[9], v[14], m[schedule(R, 14)], m[schedule(R, 15)]);
}

// The chaining value h after one more block m; of a ROOT block, the hash's 32 bytes.
template <class Word>
LMKV_HOST_DEVICE void compress(Word (&h)[8], const Word (&m)[16], const Word& counter_low,
                               const Word& counter_high, const Word& length, const Word& flags) {
  Word v[16] = {h[0],
                h[1],
                h[2],
                h[3],
                h[4],
                h[5],
                h[6],
                h[7],
                splat<Word>(iv(0)),
                splat<Word>(iv(1)),
                splat<Word>(iv(2)),
                splat<Word>(iv(3)),
                counter_low,
                counter_high,
                length,
                flags};
  round<0>(v, m);
  round<1>(v, m);
  round<2>(v, m);
  round<3>(v, m);
  round<4>(v, m);
  round<5>(v, m);
  round<6>(v, m);
  for (int i = 0; i < 8; ++i) h[i] = v[i] ^ v[i + 8];
}

// Block b of a run of `blocks` blocks of one BLAKE3 chunk (or parent); they come from first to
// last. `last_length` counts the bytes of the last block, whose other words are zero. `first` and
// `last` are the flags of those blocks beside `flags`.
template <class Word>
LMKV_HOST_DEVICE void hash_block(Word (&h)[8], const Word (&m)[16], int b, int blocks,
                                 uint32_t last_length, const Word& counter_low,
                                 const Word& counter_high, uint32_t flags, uint32_t first,
                                 uint32_t last) {
  const bool end = b == blocks - 1;
  compress(h, m, counter_low, counter_high, splat<Word>(end ? last_length : BLOCK_BYTES),
           splat<Word>(flags | (b == 0 ? first : 0u) | (end ? last : 0u)));
}

// The whole run: `load(b, m)` fetches block b.
template <class Word, class Load>
LMKV_HOST_DEVICE void hash_blocks(Word (&h)[8], int blocks, uint32_t last_length,
                                  const Word& counter_low, const Word& counter_high, uint32_t flags,
                                  uint32_t first, uint32_t last, Load&& load) {
  for (int b = 0; b < blocks; ++b) {
    Word m[16];
    load(b, m);
    hash_block(h, m, b, blocks, last_length, counter_low, counter_high, flags, first, last);
  }
}

// digest_i of docs/keys.md for a chunk of 16 to 256 tokens in whole blocks: one BLAKE3 chunk that
// is its own root. Begin, then each block from 0 on; h is the digest.
template <class Word>
LMKV_HOST_DEVICE void begin_chunk_digest(Word (&h)[8]) {
  for (int i = 0; i < 8; ++i) h[i] = splat<Word>(iv(i));
}

template <class Word>
LMKV_HOST_DEVICE void chunk_digest_block(Word (&h)[8], const Word (&m)[16], int b, int blocks) {
  hash_block(h, m, b, blocks, BLOCK_BYTES, splat<Word>(0), splat<Word>(0), 0, CHUNK_START,
             CHUNK_END | ROOT);
}

}  // namespace lmkv::blake3
