// A chunk's key: 16 bytes (DESIGN.md 4).
#pragma once

#include <cstdint>

namespace lmkv {

struct Key {
  std::uint64_t lo = 0, hi = 0;  // the bytes as they lie in memory
  bool operator==(const Key&) const = default;
};
static_assert(sizeof(Key) == 16);

}  // namespace lmkv
