// Memory as the kernels touch it: units of 16 bytes in accesses of 16, 8 or 4, each word loaded
// once, so that what is stored is what was digested even while another process overwrites it.
//
// On a GPU the accesses are PTX by name, which a compiler may not split, widen or repeat.
#pragma once

#include "words.h"

namespace lmkv {

struct alignas(16) Unit {
  uint32_t word[4];
};

#if defined(__CUDACC__)

template <int kBytes>
LMKV_BODY void load_piece(uint32_t* to, const uint8_t* from) {
  if constexpr (kBytes == 16) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "l"(from));
  } else if constexpr (kBytes == 8) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
  } else {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(to[0]) : "l"(from));
  }
}

template <int kBytes>
LMKV_BODY void store_piece(uint8_t* to, const uint32_t* from) {
  if constexpr (kBytes == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
  } else if constexpr (kBytes == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};"
                 :
                 : "l"(to), "r"(from[0]), "r"(from[1])
                 : "memory");
  } else {
    asm volatile("st.global.u32 [%0], %1;" : : "l"(to), "r"(from[0]) : "memory");
  }
}

LMKV_BODY uint64_t load_word(const uint64_t* from) {
  return *static_cast<const volatile uint64_t*>(from);
}
LMKV_BODY void store_word(uint64_t* to, uint64_t value) {
  *static_cast<volatile uint64_t*>(to) = value;
}

// What this thread has written is seen by this GPU's other threads, by everybody, before what it
// writes next.
LMKV_BODY void fence_gpu() { __threadfence(); }
LMKV_BODY void fence_system() { __threadfence_system(); }

LMKV_BODY uint32_t count_up(uint32_t* counter) { return atomicAdd(counter, 1u); }
LMKV_BODY void set_bits(uint32_t* word, uint32_t bits) { atomicOr(word, bits); }

#else

template <int kBytes>
struct alignas(kBytes) [[gnu::may_alias]] Piece {
  uint32_t word[kBytes / 4];
};

template <int kBytes>
LMKV_BODY void load_piece(uint32_t* to, const uint8_t* from) {
  const Piece<kBytes> piece = *reinterpret_cast<const Piece<kBytes>*>(from);
  for (int i = 0; i < kBytes / 4; ++i) to[i] = piece.word[i];
}

template <int kBytes>
LMKV_BODY void store_piece(uint8_t* to, const uint32_t* from) {
  Piece<kBytes> piece;
  for (int i = 0; i < kBytes / 4; ++i) piece.word[i] = from[i];
  *reinterpret_cast<Piece<kBytes>*>(to) = piece;
}

LMKV_BODY uint64_t load_word(const uint64_t* from) {
  return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
LMKV_BODY void store_word(uint64_t* to, uint64_t value) {
  __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
LMKV_BODY void fence_gpu() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
LMKV_BODY void fence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
LMKV_BODY uint32_t count_up(uint32_t* counter) {
  return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL);
}
LMKV_BODY void set_bits(uint32_t* word, uint32_t bits) {
  __atomic_fetch_or(word, bits, __ATOMIC_ACQ_REL);
}

#endif

}  // namespace lmkv
