// Eight inputs at once. Called only where the processor has AVX2.
#if defined(__AVX2__)

#include <immintrin.h>

#include "lanes.h"

namespace lmkv::blake3 {
namespace {

struct Lanes8 {
  static constexpr size_t WIDTH = 8;
  __m256i v;

  static __m256i row(const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }

  // Rows of eight words become words of eight rows; its own inverse.
  static void transpose(__m256i (&r)[8]) {
    const __m256i a0 = _mm256_unpacklo_epi32(r[0], r[1]), a1 = _mm256_unpackhi_epi32(r[0], r[1]);
    const __m256i a2 = _mm256_unpacklo_epi32(r[2], r[3]), a3 = _mm256_unpackhi_epi32(r[2], r[3]);
    const __m256i a4 = _mm256_unpacklo_epi32(r[4], r[5]), a5 = _mm256_unpackhi_epi32(r[4], r[5]);
    const __m256i a6 = _mm256_unpacklo_epi32(r[6], r[7]), a7 = _mm256_unpackhi_epi32(r[6], r[7]);
    const __m256i b0 = _mm256_unpacklo_epi64(a0, a2), b1 = _mm256_unpackhi_epi64(a0, a2);
    const __m256i b2 = _mm256_unpacklo_epi64(a1, a3), b3 = _mm256_unpackhi_epi64(a1, a3);
    const __m256i b4 = _mm256_unpacklo_epi64(a4, a6), b5 = _mm256_unpackhi_epi64(a4, a6);
    const __m256i b6 = _mm256_unpacklo_epi64(a5, a7), b7 = _mm256_unpackhi_epi64(a5, a7);
    r[0] = _mm256_permute2x128_si256(b0, b4, 0x20);
    r[1] = _mm256_permute2x128_si256(b1, b5, 0x20);
    r[2] = _mm256_permute2x128_si256(b2, b6, 0x20);
    r[3] = _mm256_permute2x128_si256(b3, b7, 0x20);
    r[4] = _mm256_permute2x128_si256(b0, b4, 0x31);
    r[5] = _mm256_permute2x128_si256(b1, b5, 0x31);
    r[6] = _mm256_permute2x128_si256(b2, b6, 0x31);
    r[7] = _mm256_permute2x128_si256(b3, b7, 0x31);
  }

  static void load(Lanes8 (&m)[16], const uint8_t* const (&rows)[WIDTH], size_t offset) {
    for (int half = 0; half < 2; ++half) {
      __m256i r[8];
      for (int j = 0; j < 8; ++j) r[j] = row(rows[j] + offset + half * 32);
      transpose(r);
      for (int i = 0; i < 8; ++i) m[half * 8 + i].v = r[i];
    }
  }

  static void store(const Lanes8 (&h)[8], uint8_t* out) {
    __m256i r[8];
    for (int i = 0; i < 8; ++i) r[i] = h[i].v;
    transpose(r);
    for (int j = 0; j < 8; ++j) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j * HASH_BYTES), r[j]);
    }
  }

  static Lanes8 numbers(uint64_t first, uint64_t step, int shift) {
    alignas(32) uint32_t n[8];
    for (uint64_t j = 0; j < 8; ++j) n[j] = static_cast<uint32_t>((first + j * step) >> shift);
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(n))};
  }
};

inline Lanes8 operator+(Lanes8 a, Lanes8 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Lanes8 operator+(Lanes8 a, uint32_t b) {
  return {_mm256_add_epi32(a.v, _mm256_set1_epi32(static_cast<int>(b)))};
}
inline Lanes8 operator^(Lanes8 a, Lanes8 b) { return {_mm256_xor_si256(a.v, b.v)}; }

template <int N>
inline Lanes8 rotate_right(Lanes8 a) {
  if constexpr (N == 16) {
    return {_mm256_shuffle_epi8(
        a.v, _mm256_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2, 13, 12, 15, 14,
                             9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2))};
  } else if constexpr (N == 8) {
    return {_mm256_shuffle_epi8(
        a.v, _mm256_set_epi8(12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1, 12, 15, 14, 13,
                             8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1))};
  } else {
    return {_mm256_or_si256(_mm256_srli_epi32(a.v, N), _mm256_slli_epi32(a.v, 32 - N))};
  }
}

}  // namespace

size_t hash_many_avx2(const Batch& batch) { return hash_all<Lanes8>(batch, 3); }

size_t hash_beside_avx2(const Batch& batch, const Links& links) {
  return hash_lanes_beside<Lanes8>(batch, links);
}

}  // namespace lmkv::blake3

#endif
