#include "codec/planes_loops.h"

#if defined(__x86_64__)

namespace lmkv {

void split_planes_avx2(std::size_t width, std::byte* to, const std::byte* from, std::size_t bytes) {
  split_loops(width, to, from, bytes);
}

void join_planes_avx2(std::size_t width, std::byte* to, const Planes& planes, std::size_t bytes) {
  join_loops(width, to, planes, bytes);
}

}  // namespace lmkv

#endif
