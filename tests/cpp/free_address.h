// An address that a pool may be given: the thread sanitizer does not have the range in which pools
// are put at random.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

inline std::uintptr_t free_address(std::size_t bytes) {
  void* there = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(there, bytes);
  return reinterpret_cast<std::uintptr_t>(there);
}
