// A place names a slot in a pool: 8 bytes on the wire, the same in every rank (DESIGN.md 3).
#pragma once

#include <bit>
#include <cstdint>

#include "key.h"

namespace lmkv {

enum class Tier : std::uint8_t { host = 0, device = 1, disk = 2 };

struct Place {
  std::uint32_t first = 0;    // first granule of the slot
  std::uint8_t granules = 0;  // how many; a full slot has 16
  std::uint8_t tier = 0;
  std::uint16_t reserved = 0;

  bool operator==(const Place& other) const {  // in one comparison
    return std::bit_cast<std::uint64_t>(*this) == std::bit_cast<std::uint64_t>(other);
  }
};
static_assert(sizeof(Place) == 8);

inline constexpr int kGranulesPerSlot = 16;

// The term of one readable slot in a heartbeat's two sums (DESIGN.md 7); used by the slot table and
// by the directory, so that any drift between them shows. Sums are of these, modulo 2^64.
struct Sums {
  std::uint64_t count = 0, first = 0, second = 0;
  bool operator==(const Sums&) const = default;
};

inline std::uint64_t mix64(std::uint64_t z) {  // splitmix64's finaliser
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

inline Sums term(const Key& key, const Place& place, std::uint32_t counter) {
  const std::uint64_t where =
      std::uint64_t{place.first} << 32 | std::uint64_t{place.granules} << 8 | place.tier;
  const std::uint64_t a = mix64(key.lo + mix64(key.hi + mix64(where) + counter));
  return {1, a, mix64(a ^ 0x9E3779B97F4A7C15ull)};
}

inline Sums& operator+=(Sums& sums, const Sums& other) {
  sums.count += other.count, sums.first += other.first, sums.second += other.second;
  return sums;
}
inline Sums& operator-=(Sums& sums, const Sums& other) {
  sums.count -= other.count, sums.first -= other.first, sums.second -= other.second;
  return sums;
}

}  // namespace lmkv
