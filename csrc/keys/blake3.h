// BLAKE3 of any length, plain or in derive_key mode. Input that is one chunk never allocates.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace lmkv::blake3 {

using Hash = std::array<uint8_t, 32>;

// What begins every chaining value: the IV, or the key of a derive_key context; `flags` go to all.
struct Mode {
  uint32_t key[8];
  uint32_t flags;

  static Mode plain();
  static Mode derive_key(std::string_view context);
};

Hash hash(std::span<const uint8_t> data, const Mode& mode);

}  // namespace lmkv::blake3
