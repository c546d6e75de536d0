// lmx64, the payload digest of a slot (docs/slots.md): host and device share this definition.
//
// Two 64-bit sums over the 16-byte units of a segment; a unit's term depends on its position, and
// sums may be taken in any order and split over any threads. `lmx64_finish` closes them.
#pragma once

#include "words.h"

namespace lmkv {

// The four odd constants of a unit's words; position n adds n times its word's constant.
#define LMKV_LMX64_G0 0x9E3779B1u
#define LMKV_LMX64_G1 0x85EBCA77u
#define LMKV_LMX64_G2 0xC2B2AE3Du
#define LMKV_LMX64_G3 0x27D4EB2Fu

// Segment numbers of what is not a segment.
#define LMKV_TABLE_SEGMENT 0xFFFFFFu
#define LMKV_HEADER_SEGMENT 0xFFFFFEu

struct Lmx64 {
  uint64_t t0 = 0, t1 = 0;
};

LMKV_HOST_DEVICE Lmx64 operator+(const Lmx64& a, const Lmx64& b) {
  return {a.t0 + b.t0, a.t1 + b.t1};
}

// Add the unit of words w0..w3 at position n, counted from 1.
LMKV_HOST_DEVICE void lmx64_unit(Lmx64& sums, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3,
                                 uint32_t n) {
  const uint64_t a = uint32_t(w0 + n * LMKV_LMX64_G0), b = uint32_t(w1 + n * LMKV_LMX64_G1);
  const uint64_t c = uint32_t(w2 + n * LMKV_LMX64_G2), d = uint32_t(w3 + n * LMKV_LMX64_G3);
  const uint64_t x = (b << 32 | a) + c * d;
  const uint64_t y = (d << 32 | c) + a * b;
  sums.t0 += uint64_t(uint32_t(x)) * (x >> 32) + y;
  sums.t1 += uint64_t(uint32_t(y)) * (y >> 32) + x;
}

// The same unit as two little-endian 64-bit words.
LMKV_HOST_DEVICE void lmx64_unit(Lmx64& sums, uint64_t low, uint64_t high, uint32_t n) {
  lmx64_unit(sums, uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32), n);
}

LMKV_HOST_DEVICE uint64_t lmx64_mix(uint64_t z) {  // splitmix64's finaliser
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// `bytes` is the segment's length, a multiple of 16 below 2^36; `segment` is below 2^24.
LMKV_HOST_DEVICE uint64_t lmx64_finish(const Lmx64& sums, uint64_t bytes, uint32_t segment) {
  const uint64_t length = bytes + (uint64_t(segment) << 40);
  return lmx64_mix(lmx64_mix(lmx64_mix(length) + sums.t0) + sums.t1);
}

}  // namespace lmkv
