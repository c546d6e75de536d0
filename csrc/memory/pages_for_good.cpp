#include "memory/pages_for_good.h"

#include <sys/mman.h>

#include "check.h"

namespace lmkv {

std::byte* pages_for_good(std::size_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw SystemError("mmap");
  return static_cast<std::byte*>(pages);
}

}  // namespace lmkv
