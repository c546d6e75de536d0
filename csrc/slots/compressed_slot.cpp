#include "slots/compressed_slot.h"

#include <cstring>

#include "check.h"
#include "codec/zstd.h"
#include "copy/runs.h"

namespace lmkv {
namespace {

std::uint64_t table_bytes(std::uint32_t segments) {
  return sizeof(CompressedSegment) * std::uint64_t{segments};
}

std::uint64_t table_digest(const std::byte* table, std::uint32_t segments) {
  return lmx64(table, table_bytes(segments), LMKV_TABLE_SEGMENT);
}

// Streaming stores would leave the cache, so this is not where they begin.
constexpr std::size_t kPlainStores = 16;

// A thread's memory to decode in, of the largest segment so far. Addresses are multiples of 64.
struct Scratch {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> stored, raw;
  SegmentDecoder decoder;

  static std::byte* room(std::vector<Line>& lines, std::size_t bytes) {
    if (lines.size() * 64 < bytes) lines.resize((bytes + 63) / 64);
    return lines.data()->bytes;
  }
};

Scratch& scratch() {
  thread_local Scratch mine;
  return mine;
}

void check_codec(std::uint32_t codec) {
  REQUIRE(codec_width(codec) != 0, "codec: ", codec, " is not in 1 .. ", int(kCodecs));
}

}  // namespace

std::uint64_t compressed_payload_offset(std::uint32_t segments) {
  return round_up(sizeof(SlotHeader) + table_bytes(segments), LMKV_SLOT_ALIGN);
}

SlotStatus CompressedReader::check(const Key& key, std::uint64_t generation) {
  SlotShape shape = shape_of(layout_);
  const bool known = codec_width(codec()) != 0 && !zstd_version().empty();
  if (known) shape.word0 = slot_word0(layout_.page_format, codec(), kUnequalLengths);
  shape.payload_units = header_.payload_units;
  const auto verdict = SlotStatus(judge_header(header_, shape, {key.lo, key.hi, generation}));
  if (verdict != SlotStatus::good) return verdict;
  const std::uint64_t payload = header_.payload_units * std::uint64_t{64};
  if (compressed_payload_offset(layout_.segments) + payload > room_) return SlotStatus::gone;
  table_.resize(layout_.segments);
  auto* words = reinterpret_cast<std::uint64_t*>(table_.data());
  const auto* from = reinterpret_cast<const std::uint64_t*>(slot_ + sizeof(SlotHeader));
  for (std::size_t n = 0; n < 2 * table_.size(); ++n)
    words[n] = __atomic_load_n(from + n, __ATOMIC_RELAXED);
  const auto* bytes = reinterpret_cast<const std::byte*>(table_.data());
  if (table_digest(bytes, layout_.segments) != header_.table_digest) return SlotStatus::digest;
  for (const CompressedSegment& segment : table_) {
    const std::uint64_t end =
        segment.offset * std::uint64_t{64} + segment.length * std::uint64_t{16};
    if (segment.length == 0 || end > payload) return SlotStatus::digest;
  }
  return SlotStatus::good;
}

const std::byte* CompressedReader::stored(std::uint32_t n) const {
  return slot_ + compressed_payload_offset(layout_.segments) + table_[n].offset * std::uint64_t{64};
}

bool CompressedReader::verify(std::uint32_t n) const {
  return lmx64(stored(n), table_[n].length * std::uint64_t{16}, n) == table_[n].digest;
}

const std::byte* CompressedReader::decode(std::uint32_t n) const {
  Scratch& mine = scratch();
  const std::size_t bytes = table_[n].length * std::size_t{16};
  std::byte* copy = Scratch::room(mine.stored, kPlainStores + bytes) + kPlainStores;
  std::byte* raw = Scratch::room(mine.raw, layout_.segment_bytes);
  Lmx64 sums;
  active_runs().copy(copy, stored(n), bytes, 0, stored(n) + bytes, sums);
  if (lmx64_finish(sums, bytes, n) != table_[n].digest) return nullptr;
  const bool good = mine.decoder.decode(codec(), {copy, bytes}, {raw, layout_.segment_bytes});
  return good ? raw : nullptr;
}

SlotStatus check_compressed(const std::byte* slot, const SlotLayout& layout, const Key& key,
                            std::uint64_t generation, std::uint64_t room) {
  if (room == kFullSlot) room = layout.used_bytes();
  return read_twice(slot, [&](const SlotHeader& header) {
    CompressedReader reader(slot, header, layout, room);
    const SlotStatus status = reader.check(key, generation);
    if (status != SlotStatus::good) return status;
    for (std::uint32_t n = 0; n < layout.segments; ++n)
      if (!reader.verify(n)) return SlotStatus::digest;
    return SlotStatus::good;
  });
}

CompressedSlot compress_slot(const std::byte* slot, const SlotLayout& layout, const Key& key,
                             std::uint64_t generation, std::uint32_t codec) {
  check_codec(codec);
  if (zstd_version().empty()) throw std::runtime_error("no zstd library is loaded");
  const std::uint64_t begin = compressed_payload_offset(layout.segments);
  std::vector<std::byte> image;
  std::vector<CompressedSegment> table(layout.segments);
  const auto segment = [&](std::uint32_t n, const std::byte* bytes) {
    if (n == 0) image.assign(begin, std::byte{});
    Scratch& mine = scratch();
    std::byte* raw = Scratch::room(mine.stored, kPlainStores + layout.segment_bytes) + kPlainStores;
    Lmx64 sums;
    active_runs().copy(raw, bytes, layout.segment_bytes, 0, bytes + layout.segment_bytes, sums);
    const std::size_t at = image.size();
    compress_segment(codec, {raw, layout.segment_bytes}, image);
    const std::size_t length = image.size() - at;
    table[n] = {lmx64(image.data() + at, length, n), std::uint32_t((at - begin) / 64),
                std::uint32_t(length / 16)};
    return lmx64_finish(sums, layout.segment_bytes, n);
  };
  SlotStatus status = SlotStatus::incompatible;  // one that is compressed already
  if (!is_compressed(load_header(slot)))
    status = read_slot(slot, layout, key, generation, layout.used_bytes(), segment);
  if (status != SlotStatus::good) return {status, {}};
  std::memcpy(image.data() + sizeof(SlotHeader), table.data(), table_bytes(layout.segments));
  return {status, std::move(image)};
}

void place_compressed(std::byte* slot, std::uint64_t room, const SlotLayout& layout, const Key& key,
                      std::uint64_t generation, std::uint32_t codec,
                      std::span<const std::byte> image) {
  check_codec(codec);
  const std::uint64_t begin = compressed_payload_offset(layout.segments);
  REQUIRE(image.size() > begin && image.size() % 64 == 0 && image.size() <= room,
          "image: ", image.size(), " bytes, allowed ", begin + 64, " to ", room, " in steps of 64");
  SlotShape shape = shape_of(layout);
  shape.word0 = slot_word0(layout.page_format, codec, kUnequalLengths);
  shape.payload_units = std::uint32_t((image.size() - begin) / 64);
  clear_slot(slot);
  std::memcpy(slot + sizeof(SlotHeader), image.data() + sizeof(SlotHeader),
              image.size() - sizeof(SlotHeader));
  const std::uint64_t digest = table_digest(slot + sizeof(SlotHeader), layout.segments);
  publish(slot, sealed_header(shape, {key.lo, key.hi, generation}, digest));
}

SlotStatus expand_slot(const std::byte* from, std::uint64_t room, const SlotLayout& layout,
                       const Key& key, std::uint64_t theirs, std::byte* to, std::uint64_t ours) {
  const RunKernels& kernels = active_runs();
  std::vector<std::uint64_t> table = empty_table(layout);
  clear_slot(to);
  const auto segment = [&](std::uint32_t n, const std::byte* bytes) {
    Lmx64 sums;
    std::byte* at = to + layout.payload_offset() + n * layout.segment_bytes;
    kernels.copy(at, bytes, layout.segment_bytes, 0, bytes + layout.segment_bytes, sums);
    return table[n] = lmx64_finish(sums, layout.segment_bytes, n);
  };
  const SlotStatus status = read_slot(from, layout, key, theirs, room, segment);
  if (status == SlotStatus::good) seal_slot(to, layout, key, ours, table);
  return status;
}

}  // namespace lmkv
