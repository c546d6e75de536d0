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

}  // namespace lmkv
