// Entry points and launches.
#include "kernels.h"

#include <cstring>

#include "../kernels/play.h"

namespace lmkv::fake {

namespace {

constexpr Kernel kKernels[] = {
    {"lmkv_gather_16", Does::gather, 16}, {"lmkv_gather_8", Does::gather, 8},
    {"lmkv_gather_4", Does::gather, 4},   {"lmkv_scatter_16", Does::scatter, 16},
    {"lmkv_scatter_8", Does::scatter, 8}, {"lmkv_scatter_4", Does::scatter, 4},
    {"lmkv_audit_16", Does::audit, 16},   {"lmkv_audit_8", Does::audit, 8},
    {"lmkv_audit_4", Does::audit, 4},     {"lmkv_verify_16", Does::verify, 16},
    {"lmkv_clear", Does::clear, 0},       {"lmkv_publish", Does::publish, 0},
    {"lmkv_hash_16", Does::hash, 16},     {"lmkv_hash_4", Does::hash, 4},
};

template <class T>
T copied(const void* from) {
  T to;
  std::memcpy(&to, from, sizeof(T));
  return to;
}

Copy copy_of(Does does) {
  if (does == Does::gather) return Copy::gather;
  if (does == Does::scatter) return Copy::scatter;
  return does == Does::verify ? Copy::verify : Copy::audit;
}

}  // namespace

const Kernel* find_kernel(std::string_view name) {
  for (const Kernel& kernel : kKernels) {
    if (name == kernel.name) return &kernel;
  }
  return nullptr;
}

Job job_of(const Kernel& kernel, const void* parameter) {
  if (kernel.does == Does::hash) return copied<HashJob>(parameter);
  if (kernel.does == Does::clear || kernel.does == Does::publish) {
    return copied<HeaderJob>(parameter);
  }
  return copied<CopyJob>(parameter);
}

bool launchable(const Kernel& kernel, const Job& job, const Grid& grid) {
  const auto* const headers = std::get_if<HeaderJob>(&job);
  const unsigned threads = kernel.does == Does::hash ? unsigned(kHashThreads)
                           : headers != nullptr      ? unsigned(kHeaderThreads)
                                                     : unsigned(kCopyThreads);
  if (grid.threads[0] != threads || grid.threads[1] != 1 || grid.threads[2] != 1) return false;
  if (grid.blocks[0] == 0 || grid.blocks[1] != 1 || grid.blocks[2] != 1) return false;
  if (grid.shared_bytes != 0) return false;
  return headers == nullptr || std::uint64_t(grid.blocks[0]) * threads >= headers->chunks;
}

std::uint64_t moved_bytes(const Job& job) {
  if (const auto* copy = std::get_if<CopyJob>(&job)) {
    return copy->segment_bytes * copy->chunks * copy->layers * copy->heads;
  }
  if (const auto* headers = std::get_if<HeaderJob>(&job)) {
    return sizeof(SlotHeader) * std::uint64_t(headers->chunks);
  }
  const auto& hash = std::get<HashJob>(job);
  return std::uint64_t(hash.count) * hash.blocks * blake3::BLOCK_BYTES;
}

void play(const Kernel& kernel, const Job& job, std::uint32_t blocks, std::uint64_t seed) {
  const Launch launch{blocks, 1, seed};
  if (const auto* copy = std::get_if<CopyJob>(&job)) {
    lmkv::play(copy_of(kernel.does), kernel.piece, *copy, launch);
  } else if (const auto* headers = std::get_if<HeaderJob>(&job)) {
    play_headers(*headers, launch, kernel.does == Does::publish);
  } else {
    play_hash(std::get<HashJob>(job), kernel.piece, launch);
  }
}

}  // namespace lmkv::fake
