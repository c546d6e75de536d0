// What a launch is told: plain structs, passed by value, the same for the host that launches, the
// kernels, and the CPU that runs their bodies in tests. Addresses are the device's. Who fills them
// in has checked them; nothing here checks.
#pragma once

#include "layout.h"

namespace lmkv {

// n / divisor for n below 2^31, as a multiplication (Granlund and Montgomery 1994, figure 4.1).
struct Divider {
  uint32_t divisor, multiplier, shift;

  static LMKV_HOST_DEVICE Divider by(uint32_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t(1) << shift) < divisor) ++shift;
    const uint64_t over = (uint64_t(1) << shift) - divisor;
    return {divisor, uint32_t((over << 32) / divisor + 1), shift};
  }
  LMKV_HOST_DEVICE uint32_t quotient(uint32_t n) const {
    return (uint32_t(uint64_t(n) * multiplier >> 32) + n) >> shift;
  }
};

// In a scatter: this block is left alone, its bytes in the slot are only checked.
#define LMKV_SKIPPED_BLOCK 0xFFFFFFFFu

// vLLM's pages, as csrc/copy/pages.h describes them: for layer l, plane p (K, V, or one opaque
// plane), block b, head h, token t the run at
//   layers[l] + p*plane_stride + b*block_stride + h*head_stride + t*token_stride.
// Blocks are those that the kernels of the engine see (16 to 128 tokens), where vLLM splits its
// own. Addresses, strides and run length are multiples of the piece that the kernel's name says
// (16, 8 or 4 bytes). Runs that touch (token_stride == run length) are told as one "token".
struct PagedKv {
  uint8_t* const* layers;
  int64_t block_stride, head_stride, plane_stride;
  uint32_t token_stride;  // times tokens below 2^32
  Divider run_pieces;     // of a run
  Divider page_runs;      // "tokens" of a block
  uint32_t planes;
  uint32_t blocks;  // of a chunk
};

// `run_bytes` and the strides as csrc/copy/pages.h has them, for accesses of `piece` bytes.
LMKV_HOST_DEVICE PagedKv paged_kv(uint8_t* const* layers, uint32_t planes, uint32_t blocks,
                                  uint32_t tokens, uint32_t run_bytes, int64_t block_stride,
                                  int64_t head_stride, uint32_t token_stride, int64_t plane_stride,
                                  uint32_t piece) {
  const bool touch = token_stride == run_bytes;
  return {layers,
          block_stride,
          head_stride,
          plane_stride,
          touch ? 0 : token_stride,
          Divider::by((touch ? run_bytes * tokens : run_bytes) / piece),
          Divider::by(touch ? 1 : tokens),
          planes,
          blocks};
}

// The widest access, 16, 8 or 4 bytes, for addresses, strides and lengths whose bits are or-ed
// together in `bits`; 0: there is none.
LMKV_HOST_DEVICE uint32_t widest_piece(uint64_t bits) {
  if (bits % 16 == 0) return 16;
  if (bits % 8 == 0) return 8;
  return bits % 4 == 0 ? 4 : 0;
}

// One launch of gather, scatter, verify or audit: `chunks` chunks of `layers` x `heads` segments.
// Segment (l, h) is number first_segment + l*slot_heads + h in its slot, which lets a reader take
// some heads or layers of a holder's slots: then `pages.layers` begins at its first layer, and
// `head_offset` is that of its first head. A gather has all segments of its slots.
struct CopyJob {
  PagedKv pages;
  const uint32_t* chunk_blocks;  // [chunk][pages.blocks]
  uint8_t* const* slots;         // [chunk] multiples of 16
  const SlotName* names;         // [chunk]
  SlotShape shape;
  uint64_t segment_bytes;  // at most 2^31 - 64
  int64_t head_offset;     // bytes
  uint32_t chunks, layers, heads;
  uint32_t slot_heads, first_segment;

  uint64_t* digests;    // [chunk][layers*heads] scratch
  uint32_t* arrived;    // [chunk] zero before the launch, and after it
  SlotHeader* headers;  // [chunk] what gather made, word 0 included; not yet in the slots
  uint32_t* verdicts;   // [chunk] SlotVerdict of the others
};

// clear: word 0 of slots to 0. publish: headers into slots, word 0 last. A thread for each chunk.
struct HeaderJob {
  uint8_t* const* slots;
  const SlotHeader* headers;
  uint32_t chunks;
};

// Digests of chunks of tokens: `blocks` (1 to 16) of 64 bytes at each address.
struct HashJob {
  const uint8_t* const* chunks;  // [count]
  uint8_t* digests;              // [count] 32 bytes, at a multiple of 16
  uint32_t count;
  uint32_t blocks;
};

constexpr int kCopyThreads = 256;
constexpr int kHashThreads = 64;
constexpr int kHeaderThreads = 64;

}  // namespace lmkv
