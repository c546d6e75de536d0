// How a puller touches the slots that it pulls into: as memory of the host, or by a GPU's driver
// (cuda/gpu_slots.h).
#pragma once

#include <cstddef>
#include <span>

#include "memory/pages_for_good.h"
#include "slots/slot_format.h"
#include "slots/slot_part.h"

namespace lmkv {

// Thread-safe. std::runtime_error: they cannot be reached any more.
class OwnSlots {
 public:
  OwnSlots() = default;
  OwnSlots(const OwnSlots&) = delete;
  OwnSlots& operator=(const OwnSlots&) = delete;
  virtual ~OwnSlots() = default;

  // No reader accepts them from here on, and what is written after this comes after it.
  virtual void clear(std::span<std::byte* const> slots) = 0;
  // What a puller does after its READ: check as a reader of `theirs`, then put `ours` in the
  // header. Not GOOD: the slot is cleared. `room` is its place's, in bytes.
  virtual SlotStatus adopt(std::byte* slot, const SlotLayout& layout, const Key& key,
                           std::uint64_t theirs, std::uint64_t ours, std::uint64_t room) = 0;

  // Of slots that come in parts: memory of the same kind for headers and tables, as long as READs
  // may land in it; check_part() of slot_part.h for each part; then seal_slot().
  virtual std::byte* memory(std::size_t bytes) = 0;
  virtual SlotStatus check(const std::byte* header, std::byte* own, const SlotPart& part,
                           const Key& key, std::uint64_t theirs,
                           std::span<std::uint64_t> table) = 0;
  virtual void seal(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t ours,
                    std::span<const std::uint64_t> table) = 0;
};

class HostSlots final : public OwnSlots {
 public:
  void clear(std::span<std::byte* const> slots) override {
    for (std::byte* slot : slots) clear_slot(slot);
  }
  SlotStatus adopt(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t theirs,
                   std::uint64_t ours, std::uint64_t room) override {
    return adopt_slot(slot, layout, key, theirs, ours, room);
  }
  std::byte* memory(std::size_t bytes) override { return pages_for_good(bytes); }
  SlotStatus check(const std::byte* header, std::byte* own, const SlotPart& part, const Key& key,
                   std::uint64_t theirs, std::span<std::uint64_t> table) override {
    return check_part(header, own, part, key, theirs, table);
  }
  void seal(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t ours,
            std::span<const std::uint64_t> table) override {
    seal_slot(slot, layout, key, ours, table);
  }
};

}  // namespace lmkv
