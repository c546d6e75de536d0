// Registered memory for headers and tables of slots that are read in parts. A READ may land in it
// until it has ended, so it is never given back to the system.
#pragma once

#include <cstddef>
#include <unordered_map>
#include <vector>

#include "nixl/transport.h"

namespace lmkv {

// One thread's. As much as there are READs under way, and more only when they become more.
class HeaderRooms {
 public:
  explicit HeaderRooms(Transport& transport) : transport_(transport) {}

  // `bytes` is a payload offset, so a multiple of a page. std::runtime_error when it cannot be
  // registered.
  std::byte* take(std::size_t bytes) {
    std::vector<std::byte*>& free = free_[bytes];
    if (free.empty()) {
      std::byte* more = pages_for_good(kAtOnce * bytes);
      transport_.register_memory(reinterpret_cast<std::uint64_t>(more), kAtOnce * bytes);
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
  std::unordered_map<std::size_t, std::vector<std::byte*>> free_;
};

}  // namespace lmkv
