// A pool: slots in memfd segments at one address, the worker's own (Pool) or mapped (PoolMap). One
// in a GPU's memory is in cuda/gpu_pool.h.
//
// add_segment() may run in a background thread: a segment counts once it can be used. close()
// invalidates every address that was handed out; the caller knows that no copy is running.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "memory/segment.h"
#include "slots/place.h"

namespace lmkv {

// What all have: where slot and segment lie.
class PoolRange {
 public:
  // A slot is 16 granules, room for a chunk of any of the rank's cache groups.
  PoolRange(std::uint64_t granule_bytes, std::uint64_t slots, std::uint64_t segment_slots,
            Tier tier);

  std::uintptr_t address() const { return reinterpret_cast<std::uintptr_t>(base_); }
  Tier tier() const { return tier_; }
  std::uint64_t slots() const { return slots_; }
  std::uint64_t segment_slots() const { return segment_slots_; }
  std::uint32_t segments() const { return usable_.load(std::memory_order_acquire); }
  std::uint32_t segments_at_most() const;
  std::uint64_t granule_bytes() const { return granule_bytes_; }
  std::uint64_t slot_bytes() const { return granule_bytes_ * kGranulesPerSlot; }
  // A usable segment's bytes; std::invalid_argument for another.
  std::span<std::byte> segment(std::uint32_t n) const;
  // std::invalid_argument for a place outside the usable segments, or across two.
  std::byte* slot(const Place& place) const;
  // Before a writer's first byte: no reader accepts an older slot that has granules in this place,
  // wherever it begins. In memory of the host alone.
  void clear(const Place& place) const;

 protected:
  std::uint64_t segment_bytes(std::uint32_t segment) const;
  std::uint64_t segment_offset(std::uint32_t segment) const;
  // The number of the segment to add next; std::invalid_argument when all are there or closed.
  std::uint32_t next_segment() const;

  std::uint64_t granule_bytes_, slots_, segment_slots_;
  Tier tier_;
  std::byte* base_ = nullptr;  // none: it is closed
  std::atomic<std::uint32_t> usable_ = 0;
  std::mutex adding_;
};

// In memory of the host.
class HostRange : public PoolRange {
 public:
  HostRange(std::uint64_t granule_bytes, std::uint64_t slots, std::uint64_t segment_slots,
            std::uintptr_t address);

 protected:
  void close_range();

  AddressRange range_;
};

class Pool : public HostRange {
 public:
  using HostRange::HostRange;
  std::uint32_t add_segment(bool populate);
  Descriptor segment_fd(std::uint32_t segment, bool readonly);
  void close();

 private:
  std::vector<Descriptor> fds_;  // guarded by adding_
};

class PoolMap : public HostRange {
 public:
  PoolMap(std::uint64_t granule_bytes, std::uint64_t slots, std::uint64_t segment_slots,
          std::uintptr_t address, bool writable)
      : HostRange(granule_bytes, slots, segment_slots, address), writable_(writable) {}
  std::uint32_t add_segment(int fd);
  // Page faults of a segment now, in pieces, not in the first READs: 0.8 us a page (tried).
  void fault_in(std::uint32_t segment);
  // std::invalid_argument: it is mapped read-only.
  void clear(const Place& place) const;
  void close();

 private:
  bool writable_;
};

}  // namespace lmkv
