// Host gather and scatter between vLLM's blocks and a slot, digests in the same pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "copy/pages.h"
#include "copy/runs.h"
#include "slots/slot_format.h"
#include "slots/slot_part.h"

namespace lmkv {

// Immutable, so any number of threads may copy at once. A chunk is `blocks_per_chunk` blocks.
class Copier {
 public:
  // std::invalid_argument when a chunk of these pages does not make the layout's segments.
  Copier(const SlotLayout& layout, Pages pages, std::uint64_t blocks_per_chunk);

  // Blocks to a reserved slot: word 0 cleared, payload, table, header, word 0.
  void gather(std::byte* slot, const Key& key, std::uint64_t generation,
              std::span<const std::uint32_t> blocks) const;
  // Do the blocks still have the digests of the slot's table?
  bool audit(const std::byte* slot, std::span<const std::uint32_t> blocks) const;
  // Slot, of `room` bytes, to blocks; they hold rubbish unless the answer is good.
  SlotStatus scatter(const std::byte* slot, const Key& key, std::uint64_t generation,
                     std::span<const std::uint32_t> blocks, std::uint64_t room = kFullSlot) const;
  // The same for a peer's slot that has some of our heads, and perhaps others: only those of the
  // part are read, and verified, as segments of theirs. std::invalid_argument when `ours` of the
  // part is not this copier's layout.
  SlotStatus scatter_part(const std::byte* slot, const SlotPart& part, const Key& key,
                          std::uint64_t generation, std::span<const std::uint32_t> blocks,
                          std::uint64_t room = kFullSlot) const;

  std::uint64_t blocks_per_chunk() const { return blocks_per_chunk_; }
  // std::invalid_argument for another number of blocks, or a block that is not there.
  void check_blocks(std::span<const std::uint32_t> blocks, bool may_skip = false) const;

 private:
  // Copies one of our segments from `from` to its blocks; `runs` is room to work in.
  Lmx64 scatter_segment(std::uint32_t segment, const std::byte* from,
                        std::span<const std::uint32_t> blocks, std::vector<Run>& runs,
                        const RunKernels& kernels) const;

  SlotLayout layout_;
  Pages pages_;
  std::uint64_t blocks_per_chunk_, padding_;
};

}  // namespace lmkv
