#include "memory/pool.h"

#include <algorithm>
#include <utility>

#include "check.h"
#include "layout.h"
#include "slots/slot_format.h"

namespace lmkv {
namespace {

void check_sizes(std::uint64_t granule_bytes, std::uint64_t slots, std::uint64_t segment_slots) {
  REQUIRE(granule_bytes >= LMKV_SLOT_ALIGN && granule_bytes % LMKV_SLOT_ALIGN == 0 &&
              granule_bytes <= 1ull << 40,
          "granule_bytes: ", granule_bytes, " is not a multiple of 4096 up to 2^40");
  REQUIRE(slots >= 1 && slots <= 0xFFFFFFFFull / kGranulesPerSlot, "slots: ", slots,
          " is not in 1 .. ", 0xFFFFFFFFull / kGranulesPerSlot);
  REQUIRE(segment_slots >= 1 && segment_slots <= 0xFFFFFFFFull / kGranulesPerSlot,
          "segment_slots: ", segment_slots, " is not in 1 .. ", 0xFFFFFFFFull / kGranulesPerSlot);
  const std::uint64_t slot_bytes = granule_bytes * kGranulesPerSlot;
  REQUIRE(slots < (1ull << 46) / slot_bytes, "slots: ", slots, " of ", slot_bytes,
          " bytes are more than 2^46 bytes");
}

}  // namespace

PoolRange::PoolRange(std::uint64_t granule_bytes, std::uint64_t slots, std::uint64_t segment_slots,
                     Tier tier)
    : granule_bytes_(granule_bytes), slots_(slots), segment_slots_(segment_slots), tier_(tier) {
  check_sizes(granule_bytes, slots, segment_slots);
}

std::uint32_t PoolRange::segments_at_most() const {
  return std::uint32_t((slots_ + segment_slots_ - 1) / segment_slots_);
}

std::uint64_t PoolRange::segment_offset(std::uint32_t segment) const {
  return segment * segment_slots_ * slot_bytes();
}

std::uint64_t PoolRange::segment_bytes(std::uint32_t segment) const {
  const std::uint64_t rest = slots_ - segment * segment_slots_;  // the last may be shorter
  return std::min(segment_slots_, rest) * slot_bytes();
}

std::span<std::byte> PoolRange::segment(std::uint32_t n) const {
  REQUIRE(n < segments(), "segment: ", n, " of ", segments());
  return {base_ + segment_offset(n), segment_bytes(n)};
}

std::byte* PoolRange::slot(const Place& place) const {
  REQUIRE(place.tier == std::uint8_t(tier_), "place: tier ", int(place.tier), " is not ",
          int(tier_), tier_ == Tier::host ? " (host)" : " (device)");
  REQUIRE(place.granules >= 1 && place.granules <= kGranulesPerSlot, "place: ", int(place.granules),
          " granules are not in 1 .. 16");
  const std::uint64_t per_segment = segment_slots_ * kGranulesPerSlot;
  const std::uint64_t last = std::uint64_t{place.first} + place.granules - 1;
  const std::uint64_t usable = std::min(segments() * per_segment, slots_ * kGranulesPerSlot);
  REQUIRE(last < usable, "place: granules ", place.first, " .. ", last, ", but ", usable,
          " are usable");
  REQUIRE(place.first / per_segment == last / per_segment, "place: granules ", place.first, " .. ",
          last, " cross segments of ", per_segment);
  return base_ + place.first * granule_bytes_;
}

void PoolRange::clear(const Place& place) const {
  std::byte* begin = slot(place);
  const std::uint64_t before = place.first % (segment_slots_ * kGranulesPerSlot);
  for (std::uint64_t n = std::min<std::uint64_t>(before, kGranulesPerSlot - 1); n > 0; --n)
    clear_longer(begin - n * granule_bytes_, n * granule_bytes_);
  for (std::uint64_t n = 0; n < place.granules; ++n) clear_longer(begin + n * granule_bytes_, 0);
}

std::uint32_t PoolRange::next_segment() const {
  REQUIRE(base_ != nullptr, "pool: it is closed");
  const std::uint32_t next = segments();
  REQUIRE(next < segments_at_most(), "pool: all ", next, " segments are there");
  return next;
}

HostRange::HostRange(std::uint64_t granule_bytes, std::uint64_t slots, std::uint64_t segment_slots,
                     std::uintptr_t address)
    : PoolRange(granule_bytes, slots, segment_slots, Tier::host),
      range_(slots * slot_bytes(), address) {
  base_ = range_.data();
}

void HostRange::close_range() {
  usable_ = 0;
  base_ = nullptr;
  range_.unmap();
}

std::uint32_t Pool::add_segment(bool populate) {
  const std::lock_guard lock(adding_);
  const std::uint32_t segment = next_segment();
  const std::uint64_t offset = segment_offset(segment), bytes = segment_bytes(segment);
  fds_.reserve(segment + 1);
  Descriptor fd = create_segment(bytes);
  range_.map(fd.get(), offset, bytes, true);
  try {
    if (populate) range_.populate(offset, bytes);
  } catch (...) {
    range_.hide(offset, bytes);
    throw;
  }
  fds_.push_back(std::move(fd));
  usable_.store(segment + 1, std::memory_order_release);
  return segment;
}

Descriptor Pool::segment_fd(std::uint32_t segment, bool readonly) {
  const std::lock_guard lock(adding_);
  REQUIRE(segment < fds_.size(), "segment ", segment, " of ", fds_.size());
  return duplicate_segment(fds_[segment].get(), readonly);
}

void Pool::close() {
  const std::lock_guard lock(adding_);
  close_range();
  fds_.clear();
}

std::uint32_t PoolMap::add_segment(int fd) {
  const std::lock_guard lock(adding_);
  const std::uint32_t segment = next_segment();
  check_segment(fd, segment_bytes(segment));
  range_.map(fd, segment_offset(segment), segment_bytes(segment), writable_);
  usable_.store(segment + 1, std::memory_order_release);
  return segment;
}

void PoolMap::fault_in(std::uint32_t segment) {
  constexpr std::uint64_t kPiece = 1 << 20;  // 0.2 ms, for which others wait
  REQUIRE(segment < segments(), "segment ", segment, " of ", segments());
  const std::uint64_t offset = segment_offset(segment), bytes = segment_bytes(segment);
  for (std::uint64_t at = 0; at < bytes; at += kPiece) {
    const std::lock_guard lock(adding_);
    if (segments() == 0) return;  // closed meanwhile
    range_.fault_in(offset + at, std::min(kPiece, bytes - at), writable_);
  }
}

void PoolMap::clear(const Place& place) const {
  REQUIRE(writable_, "pool: it is mapped read-only");
  PoolRange::clear(place);
}

void PoolMap::close() {
  const std::lock_guard lock(adding_);
  close_range();
}

}  // namespace lmkv
