// Slots in memory (docs/slots.md): sizes, sealing, and the reader's check.
//
// Writer: clear_slot -> payload -> table -> seal_slot. Reader: read_slot, which judges every part
// before it uses it and every segment as it is read; data is good only when it answers GOOD. A
// compressed slot (compressed_slot.h) reads alike: its segments are decoded on the way.
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

// Instead of a slot's bytes: as many as one of the layout has that is not compressed.
inline constexpr std::uint64_t kFullSlot = 0;

// Digests of a slot's segments, with the table's padding: what stands behind the header.
std::vector<std::uint64_t> empty_table(const SlotLayout& layout);

// No reader accepts the slot from here on; first step of a writer, and of reuse.
void clear_slot(std::byte* slot);

// No reader accepts an older slot here that has more than so many bytes. One of another writer,
// which is shorter, is left alone whenever it is published.
void clear_longer(std::byte* slot, std::uint64_t bytes);

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

// `once(header)` up to twice.
template <class Once>
SlotStatus read_twice(const std::byte* slot, const Once& once) {
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

inline bool is_compressed(const SlotHeader& header) {
  return std::uint32_t(header.word0) == LMKV_SLOT_MAGIC && std::uint8_t(header.word0 >> 40) != 0;
}

// One entry of a compressed slot's table. Its bytes lie `offset` units of 64 behind the start of
// the payload, `length` units of 16, and are what is digested.
struct CompressedSegment {
  std::uint64_t digest;
  std::uint32_t offset, length;
};
static_assert(sizeof(CompressedSegment) == 16);

// One look at a compressed slot. What is decoded is a copy of what was digested, which nobody else
// writes to.
class CompressedReader {
 public:
  CompressedReader(const std::byte* slot, const SlotHeader& header, const SlotLayout& layout,
                   std::uint64_t room)
      : slot_(slot), header_(header), layout_(layout), room_(room) {}

  // Header and table. INCOMPATIBLE: a codec that this process cannot decode.
  SlotStatus check(const Key& key, std::uint64_t generation);
  // Whether the stored bytes of segment n have their digest; after a good check().
  bool verify(std::uint32_t n) const;
  // The segment as it was before; null unless its stored bytes have their digest and can be
  // decoded. Valid until the thread's next decode().
  const std::byte* decode(std::uint32_t n) const;

 private:
  std::uint32_t codec() const { return std::uint8_t(header_.word0 >> 40); }
  const std::byte* stored(std::uint32_t n) const;

  const std::byte* slot_;
  const SlotHeader& header_;
  const SlotLayout& layout_;
  std::uint64_t room_;
  std::vector<CompressedSegment> table_;
};

// A reader of some segments. `segment(n, bytes)` reads segment n, from `bytes` on, and returns its
// digest. A mismatch under an unchanged header is read once more before it counts as DIGEST. `room`
// is the slot's, in bytes: a compressed one's is shorter, and none is read beyond it.
template <class Segments, class Segment>
SlotStatus read_segments(const std::byte* slot, const SlotLayout& layout, const Key& key,
                         std::uint64_t generation, std::uint64_t room, const Segments& segments,
                         Segment&& segment) {
  if (room == kFullSlot) room = layout.used_bytes();
  const auto once = [&](const SlotHeader& header) {
    if (is_compressed(header)) {
      CompressedReader reader(slot, header, layout, room);
      const SlotStatus status = reader.check(key, generation);
      if (status != SlotStatus::good) return status;
      for (const std::uint32_t n : segments) {
        const std::byte* bytes = reader.decode(n);
        if (!bytes) return SlotStatus::digest;
        segment(n, bytes);
      }
      return SlotStatus::good;
    }
    const SlotStatus status = check_header(header, layout, key, generation);
    if (status != SlotStatus::good) return status;
    if (room < layout.used_bytes()) return SlotStatus::gone;  // another slot's place
    const std::vector<std::uint64_t> table = load_table(slot, header);
    if (table.empty()) return SlotStatus::digest;
    const std::byte* payload = slot + layout.payload_offset();
    for (const std::uint32_t n : segments) {
      if (segment(n, payload + n * layout.segment_bytes) != table[n]) return SlotStatus::digest;
    }
    return SlotStatus::good;
  };
  return read_twice(slot, once);
}

// A reader of all segments, in their order.
template <class Segment>
SlotStatus read_slot(const std::byte* slot, const SlotLayout& layout, const Key& key,
                     std::uint64_t generation, std::uint64_t room, Segment&& segment) {
  return read_segments(slot, layout, key, generation, room, std::views::iota(0u, layout.segments),
                       std::forward<Segment>(segment));
}

// read_slot for its verdict alone; nothing is decoded.
SlotStatus check_slot(const std::byte* slot, const SlotLayout& layout, const Key& key,
                      std::uint64_t generation, std::uint64_t room = kFullSlot);

// What a puller does after its READ: check as a reader of `theirs`, then put `ours` in the header.
// Not GOOD: the slot is cleared.
SlotStatus adopt_slot(std::byte* slot, const SlotLayout& layout, const Key& key,
                      std::uint64_t theirs, std::uint64_t ours, std::uint64_t room = kFullSlot);

}  // namespace lmkv
