// Slots in memory (docs/slots.md): sizes, sealing, and the reader's check.
//
// Writer: clear_slot -> payload -> table -> seal_slot. Reader: read_slot, which judges every part
// before it uses it and every segment as it is read; data is good only when it answers GOOD.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <utility>
#include <vector>

#include "layout.h"
#include "slots/place.h"

namespace lmkv {

static_assert(std::endian::native == std::endian::little, "slots are little-endian");

inline constexpr std::uint32_t kPageFormatTokens = 1;
inline constexpr std::uint32_t kPageFormatBlocks = 2;

// Sizes of one slot. A full slot is 16 granules, so its last bytes may be unused.
struct SlotLayout {
  std::uint32_t segments;
  std::uint64_t segment_bytes;
  std::uint32_t page_format;
  std::uint64_t fingerprint;

  // std::invalid_argument for what the format cannot hold.
  SlotLayout(std::uint64_t segments, std::uint64_t segment_bytes, std::uint64_t page_format,
             std::uint64_t fingerprint);

  std::uint64_t payload_offset() const { return slot_payload_offset(segments); }
  std::uint64_t payload_bytes() const { return segments * segment_bytes; }
  std::uint64_t used_bytes() const { return payload_offset() + payload_bytes(); }
  std::uint64_t granule_bytes() const;
  std::uint64_t slot_bytes() const { return granule_bytes() * kGranulesPerSlot; }
  bool operator==(const SlotLayout&) const = default;
};

// The numbers of messages.PullResult.
enum class SlotStatus : std::uint8_t {
  good = SLOT_GOOD,
  gone = SLOT_GONE,
  digest = SLOT_DIGEST,
  incompatible = SLOT_INCOMPATIBLE
};

// Digests of a slot's segments, with the table's padding: what stands behind the header.
std::vector<std::uint64_t> empty_table(const SlotLayout& layout);

// No reader accepts the slot from here on; first step of a writer, and of reuse.
void clear_slot(std::byte* slot);

// Table, then header, then word 0 (release). The payload is there already; `fence`d by this.
void seal_slot(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t generation,
               std::span<const std::uint64_t> table);

// A header that was made elsewhere, word 0 last (release). All else is there already.
void publish(std::byte* slot, SlotHeader header);

// What a reader expects of all slots of this layout.
SlotShape shape_of(const SlotLayout& layout);

// All of it from a payload in slot order.
void write_slot(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t generation,
                std::span<const std::byte> payload);

// A header as one reader saw it, each word loaded once.
SlotHeader load_header(const std::byte* slot);

// Checksum, key, generation and layout of a header, in the reader's order.
SlotStatus check_header(const SlotHeader& header, const SlotLayout& layout, const Key& key,
                        std::uint64_t generation);

// The table, if it is what the header says; else empty.
std::vector<std::uint64_t> load_table(const std::byte* slot, const SlotHeader& header);

// A reader of some segments. `segment(n, bytes)` reads segment n, from `bytes` on, and returns its
// digest. A mismatch under an unchanged header is read once more before it counts as DIGEST.
template <class Segments, class Segment>
SlotStatus read_segments(const std::byte* slot, const SlotLayout& layout, const Key& key,
                         std::uint64_t generation, const Segments& segments, Segment&& segment) {
  const auto once = [&](const SlotHeader& header) {
    const SlotStatus status = check_header(header, layout, key, generation);
    if (status != SlotStatus::good) return status;
    const std::vector<std::uint64_t> table = load_table(slot, header);
    if (table.empty()) return SlotStatus::digest;
    const std::byte* payload = slot + layout.payload_offset();
    for (const std::uint32_t n : segments) {
      if (segment(n, payload + n * layout.segment_bytes) != table[n]) return SlotStatus::digest;
    }
    return SlotStatus::good;
  };
  for (int attempt = 0; attempt < 2; ++attempt) {
    const SlotHeader header = load_header(slot);
    const SlotStatus status = once(header);
    if (status != SlotStatus::digest) return status;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);  // the header as of after what was read
    const SlotHeader now = load_header(slot);
    if (now.word0 != header.word0 || now.generation != header.generation) return SlotStatus::gone;
  }
  return SlotStatus::digest;
}

// A reader of all segments, in their order.
template <class Segment>
SlotStatus read_slot(const std::byte* slot, const SlotLayout& layout, const Key& key,
                     std::uint64_t generation, Segment&& segment) {
  return read_segments(slot, layout, key, generation, std::views::iota(0u, layout.segments),
                       std::forward<Segment>(segment));
}

// read_slot for its verdict alone.
SlotStatus check_slot(const std::byte* slot, const SlotLayout& layout, const Key& key,
                      std::uint64_t generation);

// What a puller does after its READ: check as a reader of `theirs`, then put `ours` in the header.
// Not GOOD: the slot is cleared.
SlotStatus adopt_slot(std::byte* slot, const SlotLayout& layout, const Key& key,
                      std::uint64_t theirs, std::uint64_t ours);

}  // namespace lmkv
