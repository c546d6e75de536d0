// Sixteen inputs at once. Called only where the processor has AVX-512 F.
#if defined(__AVX512F__)

#include <immintrin.h>

#include "lanes.h"

namespace lmkv::blake3 {
namespace {

struct Lanes16 {
  static constexpr size_t WIDTH = 16;
  __m512i v;

  // Rows of sixteen words become words of sixteen rows; its own inverse.
  static void transpose(__m512i (&r)[16]) {
    __m512i a[16];
    for (int i = 0; i < 16; i += 2) {  // words of two rows side by side
      a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    __m512i b[16];
    for (int i = 0; i < 16; i += 4) {  // of four rows: each 128 bits hold one word of them
      b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
      b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
      b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
      b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {  // b[4g + i] holds words i, 4 + i, 8 + i, 12 + i of rows 4g..4g+3
      const __m512i low01 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x44);
      const __m512i high01 = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xEE);
      const __m512i low23 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x44);
      const __m512i high23 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xEE);
      r[i] = _mm512_shuffle_i32x4(low01, low23, 0x88);
      r[4 + i] = _mm512_shuffle_i32x4(low01, low23, 0xDD);
      r[8 + i] = _mm512_shuffle_i32x4(high01, high23, 0x88);
      r[12 + i] = _mm512_shuffle_i32x4(high01, high23, 0xDD);
    }
  }

  static void load(Lanes16 (&m)[16], const uint8_t* const (&rows)[WIDTH], size_t offset) {
    __m512i r[16];
    for (int j = 0; j < 16; ++j) r[j] = _mm512_loadu_si512(rows[j] + offset);
    transpose(r);
    for (int i = 0; i < 16; ++i) m[i].v = r[i];
  }

  static void store(const Lanes16 (&h)[8], uint8_t* out) {
    __m512i r[16];
    for (int i = 0; i < 8; ++i) r[i] = h[i].v;
    for (int i = 8; i < 16; ++i) r[i] = _mm512_setzero_si512();
    transpose(r);
    for (int j = 0; j < 16; ++j) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j * HASH_BYTES),
                          _mm512_castsi512_si256(r[j]));
    }
  }

  static Lanes16 numbers(uint64_t first, uint64_t step, int shift) {
    alignas(64) uint32_t n[16];
    for (uint64_t j = 0; j < 16; ++j) n[j] = static_cast<uint32_t>((first + j * step) >> shift);
    return {_mm512_load_si512(n)};
  }
};

inline Lanes16 operator+(Lanes16 a, Lanes16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Lanes16 operator+(Lanes16 a, uint32_t b) {
  return {_mm512_add_epi32(a.v, _mm512_set1_epi32(static_cast<int>(b)))};
}
inline Lanes16 operator^(Lanes16 a, Lanes16 b) { return {_mm512_xor_si512(a.v, b.v)}; }

template <int N>
inline Lanes16 rotate_right(Lanes16 a) {
  return {_mm512_ror_epi32(a.v, N)};
}

}  // namespace

size_t hash_many_avx512(const Batch& batch) { return hash_all<Lanes16>(batch, 6); }

size_t hash_beside_avx512(const Batch& batch, const Links& links) {
  return hash_lanes_beside<Lanes16>(batch, links);
}

}  // namespace lmkv::blake3

#endif
