// Registered memory for headers and tables of slots that are read in parts, of the same kind as the
// slots: one READ goes to one kind. A READ may land in it until it has ended, so it is never given
// back to the system.
#pragma once

#include <cstddef>
#include <unordered_map>
#include <vector>

#include "nixl/transport.h"
#include "slots/own_slots.h"

namespace lmkv {

// One thread's. As much as there are READs under way, and more only when they become more.
class HeaderRooms {
 public:
  HeaderRooms(Transport& transport, OwnSlots& slots, Tier tier)
      : transport_(transport), slots_(slots), tier_(tier) {}

  // `bytes` is a payload offset, so a multiple of a page. std::runtime_error when there is no
  // memory, or it cannot be registered.
  std::byte* take(std::size_t bytes) {
    std::vector<std::byte*>& free = free_[bytes];
    if (free.empty()) {
      std::byte* more = slots_.memory(kAtOnce * bytes);
      transport_.register_memory(reinterpret_cast<std::uint64_t>(more), kAtOnce * bytes, tier_);
      for (std::size_t n = 0; n < kAtOnce; ++n) free.push_back(more + n * bytes);
    }
    std::byte* room = free.back();
    free.pop_back();
    return room;
  }

  void give(std::byte* room, std::size_t bytes) { free_[bytes].push_back(room); }

 private:
  static constexpr std::size_t kAtOnce = 16;

  Transport& transport_;
  OwnSlots& slots_;
  Tier tier_;
  std::unordered_map<std::size_t, std::vector<std::byte*>> free_;
};

}  // namespace lmkv
