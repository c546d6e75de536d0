// 128 bytes a turn: prefetch 2 KiB ahead (across runs), 4 loads, 4 non-temporal stores, 4 digest
// steps of 32 bytes. A step takes two units: with x the words plus their positions,
//   x += swap(lo(x) * hi(x));  S += lo(x) * hi(x);  R += x
// in 64-bit lanes, even lanes holding x and odd lanes y of lmx64; t0 = S.even + R.odd, t1 the rest.
#include "copy/runs.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace lmkv {
namespace {

__m256i times(std::uint32_t n) {  // n times the constants, both units alike
  const __m256i g = _mm256_set_epi32(int(LMKV_LMX64_G3), int(LMKV_LMX64_G2), int(LMKV_LMX64_G1),
                                     int(LMKV_LMX64_G0), int(LMKV_LMX64_G3), int(LMKV_LMX64_G2),
                                     int(LMKV_LMX64_G1), int(LMKV_LMX64_G0));
  return _mm256_mullo_epi32(g, _mm256_set1_epi32(int(n)));
}

struct Digest {
  __m256i position;  // of the next two units
  const __m256i step = times(2);
  __m256i squares = _mm256_setzero_si256(), rest = _mm256_setzero_si256();

  explicit Digest(std::uint32_t unit)
      : position(_mm256_blend_epi32(times(unit + 1), times(unit + 2), 0xF0)) {}

  __attribute__((always_inline)) void add(__m256i words) {
    __m256i x = _mm256_add_epi32(words, position);
    const __m256i product = _mm256_mul_epu32(x, _mm256_srli_epi64(x, 32));
    x = _mm256_add_epi64(x, _mm256_shuffle_epi32(product, 0x4E));
    squares = _mm256_add_epi64(squares, _mm256_mul_epu32(x, _mm256_srli_epi64(x, 32)));
    rest = _mm256_add_epi64(rest, x);
    position = _mm256_add_epi32(position, step);
  }

  void into(Lmx64& sums) const {
    alignas(32) std::uint64_t s[4], r[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(s), squares);
    _mm256_store_si256(reinterpret_cast<__m256i*>(r), rest);
    sums.t0 += s[0] + s[2] + r[1] + r[3];
    sums.t1 += s[1] + s[3] + r[0] + r[2];
  }
};

enum class Store { none, plain, streaming };

template <Store kStore>
__attribute__((always_inline)) inline void put(std::byte* to, __m256i words) {
  if constexpr (kStore == Store::streaming) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), words);
  } else if constexpr (kStore == Store::plain) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
  }
}

// Whole turns of [at, end); `ahead` is where offset 0 of the run prefetches.
template <Store kStore>
std::size_t turns(std::byte* to, const std::byte* from, std::size_t at, std::size_t end,
                  std::uintptr_t ahead, Digest& digest) {
  for (; at + 128 <= end; at += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(ahead + at + 64), _MM_HINT_T0);
    const auto* source = reinterpret_cast<const __m256i*>(from + at);
    const __m256i a = _mm256_loadu_si256(source), b = _mm256_loadu_si256(source + 1);
    const __m256i c = _mm256_loadu_si256(source + 2), d = _mm256_loadu_si256(source + 3);
    put<kStore>(to + at, a);
    put<kStore>(to + at + 32, b);
    put<kStore>(to + at + 64, c);
    put<kStore>(to + at + 96, d);
    digest.add(a);
    digest.add(b);
    digest.add(c);
    digest.add(d);
  }
  return at;
}

template <Store kStore>
void run(std::byte* to, const std::byte* from, std::size_t bytes, std::uint32_t unit,
         const std::byte* next, Lmx64& sums) {
  Digest digest(unit);
  const auto here = reinterpret_cast<std::uintptr_t>(from);
  const auto there = reinterpret_cast<std::uintptr_t>(next);
  std::size_t at = 0;
  if (bytes >= kPrefetchAhead) {
    const std::size_t inside = (bytes - kPrefetchAhead) / 128 * 128;
    at = turns<kStore>(to, from, 0, inside, here + kPrefetchAhead, digest);
    at = turns<kStore>(to, from, at, bytes, there + kPrefetchAhead - bytes, digest);
  } else {
    at = turns<kStore>(to, from, 0, bytes, there, digest);
  }
  for (; at + 32 <= bytes; at += 32) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at));
    put<kStore>(to + at, words);
    digest.add(words);
  }
  digest.into(sums);
  if (at < bytes) {  // a missing unit is not a zero unit: the odd last one alone
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
    if constexpr (kStore != Store::none) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + at), words);
    }
    lmx64_unit(sums, std::uint64_t(_mm_cvtsi128_si64(words)),
               std::uint64_t(_mm_extract_epi64(words, 1)), unit + std::uint32_t(at / 16) + 1);
  }
}

void copy(std::byte* to, const std::byte* from, std::size_t bytes, std::uint32_t unit,
          const std::byte* next, Lmx64& sums) {
  if (reinterpret_cast<std::uintptr_t>(to) % 32 == 0) {
    run<Store::streaming>(to, from, bytes, unit, next, sums);
  } else {
    run<Store::plain>(to, from, bytes, unit, next, sums);
  }
}

void read(const std::byte* from, std::size_t bytes, std::uint32_t unit, const std::byte* next,
          Lmx64& sums) {
  run<Store::none>(nullptr, from, bytes, unit, next, sums);
}

void fence() { _mm_sfence(); }

}  // namespace

const RunKernels kAvx2Runs{copy, read, fence};

}  // namespace lmkv

#endif
