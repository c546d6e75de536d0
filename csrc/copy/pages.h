// How vLLM's paged KV lies in memory, and the runs of one segment in slot order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "slots/slot_format.h"

namespace lmkv {

// Widths of access to pages, in bytes: the host's copies take one, a GPU's any down to the least.
inline constexpr std::uint32_t kHostPiece = 16, kLeastPiece = 4;

// For layer l, plane p (K, V, or one opaque plane), block b, head h, token t the `run_bytes` bytes
// at layers[l] + p*plane_stride + b*block_stride + h*head_stride + t*token_stride. `tokens` counts
// runs in a block: opaque pages have one plane and one "token", the whole (block, head) page.
struct Pages {
  std::vector<std::byte*> layers;
  std::uint64_t blocks = 0, heads = 0, tokens = 0, run_bytes = 0;
  std::int64_t block_stride = 0, head_stride = 0, token_stride = 0;
  std::uint64_t planes = 1;
  std::int64_t plane_stride = 0;

  // std::invalid_argument for what cannot be copied by accesses of `piece` bytes.
  void check(std::uint32_t piece) const;
  // Bytes of a chunk's segment before and with its padding to 64.
  std::uint64_t content_bytes(std::uint64_t blocks_per_chunk) const;
  std::uint64_t segment_bytes(std::uint64_t blocks_per_chunk) const;
};

// std::invalid_argument unless `blocks_per_chunk` of these blocks make the layout's segments.
void check_chunk(const Pages& pages, std::uint64_t blocks_per_chunk, const SlotLayout& layout);
// std::invalid_argument for another number of blocks than `count`, or one that is not below
// `below`.
void check_blocks(std::span<const std::uint32_t> blocks, std::uint64_t count, std::uint64_t below,
                  bool may_skip);

// In a scatter: this block is left alone, its bytes in the slot are only checked.
inline constexpr std::uint32_t kSkippedBlock = 0xFFFFFFFFu;

struct Run {
  std::byte* at;
  std::size_t bytes;
};

// The runs of segment (layer, head) of a chunk in these blocks: plane, block, token; adjacent ones
// are merged. `runs` is overwritten.
void segment_runs(const Pages& pages, std::uint32_t segment, std::span<const std::uint32_t> blocks,
                  std::vector<Run>& runs);

}  // namespace lmkv
