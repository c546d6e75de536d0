// Compressed slots (docs/slots.md): header with a codec and flag bit 0, a table of 16 bytes a
// segment (digest of the stored bytes, offset, length), and segments of unequal length.
//
// Writer: compress_slot -> place_compressed, which seals it in a place of fewer granules.
// expand_slot makes a full slot again. Readers: slot_format.h's.
#pragma once

#include <span>
#include <vector>

#include "codec/segment_codec.h"
#include "slots/slot_format.h"

namespace lmkv {

inline constexpr std::uint32_t kUnequalLengths = 1;  // flag bit 0

std::uint64_t compressed_payload_offset(std::uint32_t segments);

// All of a compressed slot but its header: `image` begins where the slot does.
struct CompressedSlot {
  SlotStatus status;
  std::vector<std::byte> image;  // empty unless good
};

// From a full slot. std::invalid_argument for a codec that is not ours; std::runtime_error without
// a zstd library.
CompressedSlot compress_slot(const std::byte* slot, const SlotLayout& layout, const Key& key,
                             std::uint64_t generation, std::uint32_t codec);

// Writes and seals an image that compress_slot() made. std::invalid_argument when it is larger than
// `room` or no image of this layout.
void place_compressed(std::byte* slot, std::uint64_t room, const SlotLayout& layout, const Key& key,
                      std::uint64_t generation, std::uint32_t codec,
                      std::span<const std::byte> image);

// The compressed (or full) slot at `from` as a full slot at `to`, sealed with the generation
// `ours`; cleared unless good.
SlotStatus expand_slot(const std::byte* from, std::uint64_t room, const SlotLayout& layout,
                       const Key& key, std::uint64_t theirs, std::byte* to, std::uint64_t ours);

// check_slot() of a compressed one.
SlotStatus check_compressed(const std::byte* slot, const SlotLayout& layout, const Key& key,
                            std::uint64_t generation, std::uint64_t room);

}  // namespace lmkv
