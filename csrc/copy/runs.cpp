#include "copy/runs.h"

#include <atomic>
#include <cstring>

#include "isa.h"

namespace lmkv {
namespace {

// One load each, so that the compiler cannot read a word again after it has been digested.
std::uint64_t load(const std::byte* from) {
  return __atomic_load_n(reinterpret_cast<const std::uint64_t*>(from), __ATOMIC_RELAXED);
}

template <bool kStore>
void run(std::byte* to, const std::byte* from, std::size_t bytes, std::uint32_t unit, Lmx64& sums) {
  for (std::size_t at = 0; at < bytes; at += 16) {
    const std::uint64_t words[2] = {load(from + at), load(from + at + 8)};
    if constexpr (kStore) std::memcpy(to + at, words, 16);
    lmx64_unit(sums, words[0], words[1], ++unit);
  }
}

void copy(std::byte* to, const std::byte* from, std::size_t bytes, std::uint32_t unit,
          const std::byte*, Lmx64& sums) {
  run<true>(to, from, bytes, unit, sums);
}

void read(const std::byte* from, std::size_t bytes, std::uint32_t unit, const std::byte*,
          Lmx64& sums) {
  run<false>(nullptr, from, bytes, unit, sums);
}

void fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

}  // namespace

const RunKernels kScalarRuns{copy, read, fence};

const RunKernels& active_runs() {
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx2) return kAvx2Runs;  // AVX-512 gains nothing here
#endif
  return kScalarRuns;
}

std::uint64_t lmx64(const std::byte* data, std::size_t bytes, std::uint32_t segment) {
  Lmx64 sums;
  active_runs().read(data, bytes, 0, data, sums);
  return lmx64_finish(sums, bytes, segment);
}

}  // namespace lmkv
