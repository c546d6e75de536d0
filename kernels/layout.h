// How a slot lies in memory (docs/slots.md): header, digest table, payload. Host and device.
#pragma once

#include "digest.h"

namespace lmkv {

// Integers are little-endian. `word0` is magic "LMKV", version, codec, page format, flags: one
// aligned 8-byte store publishes or kills the slot.
struct SlotHeader {
  uint64_t word0;
  uint64_t fingerprint;
  uint64_t key_lo, key_hi;
  uint64_t generation;
  uint32_t segments;
  uint32_t payload_units;  // payload bytes / 64
  uint64_t table_digest;
  uint64_t checksum;  // lmx64 of the header with this field 0
};
static_assert(sizeof(SlotHeader) == 64, "a header is one cache line");

#define LMKV_SLOT_MAGIC 0x564B4D4Cu  // "LMKV"
#define LMKV_SLOT_VERSION 1u
#define LMKV_SLOT_ALIGN 4096ull

LMKV_HOST_DEVICE uint64_t slot_word0(uint32_t page_format, uint32_t codec = 0, uint32_t flags = 0) {
  return LMKV_SLOT_MAGIC | uint64_t(LMKV_SLOT_VERSION) << 32 | uint64_t(codec) << 40 |
         uint64_t(page_format) << 48 | uint64_t(flags) << 56;
}

LMKV_HOST_DEVICE uint64_t round_up(uint64_t bytes, uint64_t to) {
  return (bytes + to - 1) / to * to;
}

// The table: 8 bytes a segment, zero-padded to a multiple of 16.
LMKV_HOST_DEVICE uint64_t slot_table_bytes(uint64_t segments) { return round_up(8 * segments, 16); }

LMKV_HOST_DEVICE uint64_t slot_payload_offset(uint64_t segments) {
  return round_up(sizeof(SlotHeader) + slot_table_bytes(segments), LMKV_SLOT_ALIGN);
}

LMKV_HOST_DEVICE uint64_t header_checksum(const SlotHeader& h) {
  Lmx64 sums;
  lmx64_unit(sums, h.word0, h.fingerprint, 1);
  lmx64_unit(sums, h.key_lo, h.key_hi, 2);
  lmx64_unit(sums, h.generation, uint64_t(h.payload_units) << 32 | h.segments, 3);
  lmx64_unit(sums, h.table_digest, 0, 4);
  return lmx64_finish(sums, sizeof(SlotHeader), LMKV_HEADER_SEGMENT);
}

// What a reader expects of a slot, and a writer puts there.
struct SlotName {
  uint64_t key_lo, key_hi;
  uint64_t generation;
};
struct SlotShape {
  uint64_t word0;
  uint64_t fingerprint;
  uint32_t segments;
  uint32_t payload_units;
};

LMKV_HOST_DEVICE SlotHeader sealed_header(const SlotShape& shape, const SlotName& name,
                                          uint64_t table_digest) {
  SlotHeader header = {shape.word0,         shape.fingerprint, name.key_lo,
                       name.key_hi,         name.generation,   shape.segments,
                       shape.payload_units, table_digest,      0};
  header.checksum = header_checksum(header);
  return header;
}

// A reader's verdict; the numbers of SlotStatus.
enum SlotVerdict : uint32_t { SLOT_GOOD, SLOT_GONE, SLOT_DIGEST, SLOT_INCOMPATIBLE };

// Checksum, key, generation and shape of a header, in the reader's order.
LMKV_HOST_DEVICE SlotVerdict judge_header(const SlotHeader& h, const SlotShape& shape,
                                          const SlotName& name) {
  // Zero while it is reused; any bytes once it is, where another slot's payload may lie here.
  if (uint32_t(h.word0) != LMKV_SLOT_MAGIC) return SLOT_GONE;
  if (uint8_t(h.word0 >> 32) != LMKV_SLOT_VERSION) return SLOT_INCOMPATIBLE;
  if (h.checksum != header_checksum(h)) return SLOT_DIGEST;
  if (h.key_lo != name.key_lo || h.key_hi != name.key_hi) return SLOT_GONE;
  if (h.generation != name.generation) return SLOT_GONE;
  const bool same = h.fingerprint == shape.fingerprint && h.word0 == shape.word0 &&
                    h.segments == shape.segments && h.payload_units == shape.payload_units;
  return same ? SLOT_GOOD : SLOT_INCOMPATIBLE;
}

}  // namespace lmkv
