// Key -> slot number, for the slot table: open addressing at a load of at most 1/2.
//
// The index holds slot numbers and hashes; the keys themselves are in the slots, so the
// caller passes a function that compares. Deletion shifts back, so there are no tombstones.
#pragma once

#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

#include "slots/place.h"

namespace lmkv {

class KeyIndex {
 public:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

  explicit KeyIndex(std::uint32_t capacity)
      : cells_(std::bit_ceil(std::uint64_t{capacity} * 2)), mask_(cells_.size() - 1) {}

  static std::uint64_t hash(const Key& key) { return mix64(key.lo + mix64(key.hi)); }

  void prefetch(std::uint64_t hash) const { __builtin_prefetch(&cells_[hash & mask_]); }

  // The slot at the hash's home, which is most often the right one: worth a prefetch, no more.
  std::uint32_t guess(std::uint64_t hash) const { return cells_[hash & mask_].slot; }

  // `is(slot)` says whether the slot has the key.
  template <class Is>
  std::uint32_t find(std::uint64_t hash, const Is& is) const {
    for (std::uint64_t at = hash & mask_;; at = (at + 1) & mask_) {
      const Cell& cell = cells_[at];
      if (cell.slot == kNone) return kNone;
      if (cell.hash == hash && is(cell.slot)) return cell.slot;
    }
  }

  void insert(std::uint64_t hash, std::uint32_t slot) {
    std::uint64_t at = hash & mask_;
    while (cells_[at].slot != kNone) at = (at + 1) & mask_;
    cells_[at] = {hash, slot};
  }

  void erase(std::uint64_t hash, std::uint32_t slot) {
    std::uint64_t hole = hash & mask_;
    while (cells_[hole].slot != slot) hole = (hole + 1) & mask_;
    for (std::uint64_t at = hole;;) {
      at = (at + 1) & mask_;
      if (cells_[at].slot == kNone) break;
      // A cell may fill the hole unless its home lies after the hole.
      if (((at - cells_[at].hash) & mask_) >= ((at - hole) & mask_)) {
        cells_[hole] = cells_[at];
        hole = at;
      }
    }
    cells_[hole] = {};
  }

  // Room for so many slots; O(all) when it grows.
  void grow(std::uint32_t slots) {
    if (std::uint64_t{slots} * 2 <= cells_.size()) return;
    const std::vector<Cell> old =
        std::exchange(cells_, std::vector<Cell>(std::bit_ceil(std::uint64_t{slots} * 2)));
    mask_ = cells_.size() - 1;
    for (const Cell& cell : old)
      if (cell.slot != kNone) insert(cell.hash, cell.slot);
  }

  void clear() { cells_.assign(cells_.size(), {}); }

 private:
  struct Cell {
    std::uint64_t hash = 0;
    std::uint32_t slot = kNone;
  };

  std::vector<Cell> cells_;
  std::uint64_t mask_;
};

}  // namespace lmkv
