#include "slots/slot_format.h"

#include <cstring>

#include "check.h"
#include "copy/runs.h"
#include "slots/compressed_slot.h"

namespace lmkv {
namespace {

std::uint64_t* words(std::byte* at) { return reinterpret_cast<std::uint64_t*>(at); }
const std::uint64_t* words(const std::byte* at) {
  return reinterpret_cast<const std::uint64_t*>(at);
}

std::uint64_t table_digest(std::span<const std::uint64_t> table) {
  return lmx64(reinterpret_cast<const std::byte*>(table.data()), table.size_bytes(),
               LMKV_TABLE_SEGMENT);
}

}  // namespace

SlotShape shape_of(const SlotLayout& layout) {
  return {.word0 = slot_word0(layout.page_format),
          .fingerprint = layout.fingerprint,
          .segments = layout.segments,
          .payload_units = std::uint32_t(layout.payload_bytes() / 64)};
}

void publish(std::byte* slot, SlotHeader header) {
  header.checksum = header_checksum(header);
  active_runs().fence();
  std::memcpy(slot + 8, reinterpret_cast<const std::byte*>(&header) + 8, sizeof header - 8);
  __atomic_store_n(words(slot), header.word0, __ATOMIC_RELEASE);
}

SlotLayout::SlotLayout(std::uint64_t segments_, std::uint64_t segment_bytes_,
                       std::uint64_t page_format_, std::uint64_t fingerprint_)
    : segments(std::uint32_t(segments_)),
      segment_bytes(segment_bytes_),
      page_format(std::uint32_t(page_format_)),
      fingerprint(fingerprint_) {
  REQUIRE(segments_ >= 1 && segments_ < (1u << 24) - 2, "segments: ", segments_,
          " is not in 1 .. 2^24 - 3");
  REQUIRE(segment_bytes > 0 && segment_bytes % 64 == 0 && segment_bytes < (1ull << 36),
          "segment_bytes: ", segment_bytes, " is not a multiple of 64 in 64 .. 2^36 - 64");
  REQUIRE(payload_bytes() / 64 <= 0xFFFFFFFFull, "payload: ", segments_, " segments of ",
          segment_bytes, " bytes are more than 2^32 - 1 units of 64");
  REQUIRE(page_format_ == kPageFormatTokens || page_format_ == kPageFormatBlocks,
          "page_format: ", page_format_, " is not 1 (tokens) or 2 (the engine's blocks)");
}

std::uint64_t SlotLayout::granule_bytes() const {
  const std::uint64_t bytes = payload_offset() + payload_bytes();
  return round_up((bytes + kGranulesPerSlot - 1) / kGranulesPerSlot, LMKV_SLOT_ALIGN);
}

std::vector<std::uint64_t> empty_table(const SlotLayout& layout) {
  return std::vector<std::uint64_t>(slot_table_bytes(layout.segments) / 8, 0);
}

void clear_slot(std::byte* slot) {
  __atomic_store_n(words(slot), 0, __ATOMIC_RELEASE);
  active_runs().fence();  // streaming stores pass earlier stores
}

void clear_longer(std::byte* slot, std::uint64_t bytes) {
  if (std::uint32_t(__atomic_load_n(words(slot), __ATOMIC_RELAXED)) != LMKV_SLOT_MAGIC) return;
  const SlotHeader header = load_header(slot);
  if (header.checksum != header_checksum(header)) return;
  const std::uint64_t begin = is_compressed(header) ? compressed_payload_offset(header.segments)
                                                    : slot_payload_offset(header.segments);
  if (begin + header.payload_units * std::uint64_t{64} <= bytes) return;
  std::uint64_t word = header.word0;
  if (!__atomic_compare_exchange_n(words(slot), &word, 0, false, __ATOMIC_SEQ_CST,
                                   __ATOMIC_RELAXED))
    return;
  if (load_header(slot).generation != header.generation)  // published between the two
    __atomic_store_n(words(slot), word, __ATOMIC_RELEASE);
}

void seal_slot(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t generation,
               std::span<const std::uint64_t> table) {
  std::memcpy(slot + sizeof(SlotHeader), table.data(), table.size_bytes());
  publish(slot, sealed_header(shape_of(layout), {key.lo, key.hi, generation}, table_digest(table)));
}

void write_slot(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t generation,
                std::span<const std::byte> payload) {
  REQUIRE(payload.size() == layout.payload_bytes(), "payload: ", payload.size(), " bytes, not ",
          layout.payload_bytes());
  clear_slot(slot);
  std::byte* to = slot + layout.payload_offset();
  std::memcpy(to, payload.data(), payload.size());
  std::vector<std::uint64_t> table = empty_table(layout);
  for (std::uint32_t n = 0; n < layout.segments; ++n) {
    table[n] = lmx64(to + n * layout.segment_bytes, layout.segment_bytes, n);
  }
  seal_slot(slot, layout, key, generation, table);
}

SlotHeader load_header(const std::byte* slot) {
  std::uint64_t loaded[sizeof(SlotHeader) / 8];
  loaded[0] = __atomic_load_n(words(slot), __ATOMIC_ACQUIRE);
  for (std::size_t n = 1; n < std::size(loaded); ++n) {
    loaded[n] = __atomic_load_n(words(slot) + n, __ATOMIC_RELAXED);
  }
  return std::bit_cast<SlotHeader>(loaded);
}

SlotStatus check_header(const SlotHeader& header, const SlotLayout& layout, const Key& key,
                        std::uint64_t generation) {
  return SlotStatus(judge_header(header, shape_of(layout), {key.lo, key.hi, generation}));
}

std::vector<std::uint64_t> load_table(const std::byte* slot, const SlotHeader& header) {
  std::vector<std::uint64_t> table(slot_table_bytes(header.segments) / 8);
  const std::uint64_t* from = words(slot + sizeof(SlotHeader));
  for (std::size_t n = 0; n < table.size(); ++n) {
    table[n] = __atomic_load_n(from + n, __ATOMIC_RELAXED);
  }
  if (table_digest(table) != header.table_digest) table.clear();
  return table;
}

SlotStatus check_slot(const std::byte* slot, const SlotLayout& layout, const Key& key,
                      std::uint64_t generation, std::uint64_t room) {
  if (is_compressed(load_header(slot)))
    return check_compressed(slot, layout, key, generation, room);
  return read_slot(slot, layout, key, generation, room,
                   [&](std::uint32_t n, const std::byte* bytes) {
                     return lmx64(bytes, layout.segment_bytes, n);
                   });
}

SlotStatus adopt_slot(std::byte* slot, const SlotLayout& layout, const Key& key,
                      std::uint64_t theirs, std::uint64_t ours, std::uint64_t room) {
  const SlotStatus status = check_slot(slot, layout, key, theirs, room);
  SlotHeader header = load_header(slot);
  clear_slot(slot);
  if (status != SlotStatus::good) return status;
  header.generation = ours;
  publish(slot, header);
  return status;
}

}  // namespace lmkv
