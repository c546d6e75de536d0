#include "codec/planes.h"

#include "codec/planes_loops.h"
#include "isa.h"

namespace lmkv {

#if defined(__x86_64__)
void split_planes_avx2(std::size_t width, std::byte* to, const std::byte* from, std::size_t bytes);
void join_planes_avx2(std::size_t width, std::byte* to, const Planes& planes, std::size_t bytes);
#endif

void split_planes(std::size_t width, std::byte* to, const std::byte* from, std::size_t bytes) {
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx2) return split_planes_avx2(width, to, from, bytes);
#endif
  split_loops(width, to, from, bytes);
}

void join_planes(std::size_t width, std::byte* to, const Planes& planes, std::size_t bytes) {
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx2) return join_planes_avx2(width, to, planes, bytes);
#endif
  join_loops(width, to, planes, bytes);
}

}  // namespace lmkv
