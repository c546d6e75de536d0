// The copy loop: one run of bytes, its digest taken on the way. Scalar and AVX2, chosen by isa.h.
//
// Addresses and lengths are multiples of 16. Stores of a copy may be non-temporal: call `fence`
// before anything says that the copy is done. A source is loaded once, so that what is stored is
// what was digested, even while another process overwrites it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "digest.h"

namespace lmkv {

inline constexpr std::size_t kPrefetchAhead = 2048;  // bytes

// `unit` counts the 16-byte units of the segment before this run. `next` is where the reads go on
// after the run: its last 2 KiB prefetch there (it may be any address, it is only prefetched). A
// run shorter than 2 KiB prefetches the same offset of `next`.
struct RunKernels {
  void (*copy)(std::byte* to, const std::byte* from, std::size_t bytes, std::uint32_t unit,
               const std::byte* next, Lmx64& sums);
  void (*read)(const std::byte* from, std::size_t bytes, std::uint32_t unit, const std::byte* next,
               Lmx64& sums);
  void (*fence)();
};

extern const RunKernels kScalarRuns;
#if defined(__x86_64__)
extern const RunKernels kAvx2Runs;
#endif

const RunKernels& active_runs();  // of isa.h's active_isa()

// lmx64 of adjacent bytes.
std::uint64_t lmx64(const std::byte* data, std::size_t bytes, std::uint32_t segment);

}  // namespace lmkv
