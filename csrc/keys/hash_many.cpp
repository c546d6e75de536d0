#include "hash_many.h"

#include <bit>
#include <cstring>

#include "chunk_hash.h"
#include "isa.h"

namespace lmkv::blake3 {

static_assert(std::endian::native == std::endian::little, "words are read as they lie");

size_t hash_many_scalar(const Batch& batch) {
  for (size_t i = 0; i < batch.count; ++i) {
    const uint8_t* input = batch.inputs + i * batch.stride;
    const uint64_t counter = batch.counter + i * batch.counter_step;
    uint32_t h[8];
    std::memcpy(h, batch.key, sizeof h);
    hash_blocks(h, batch.blocks, batch.last_length, static_cast<uint32_t>(counter),
                static_cast<uint32_t>(counter >> 32), batch.flags, batch.first, batch.last,
                [&](int b, uint32_t(&m)[16]) {
                  std::memcpy(m, input + static_cast<size_t>(b) * BLOCK_BYTES, BLOCK_BYTES);
                });
    std::memcpy(batch.out + i * HASH_BYTES, h, HASH_BYTES);
  }
  return batch.count;
}

void hash_many(const Batch& batch) {
  Batch rest = batch;
  [[maybe_unused]] const auto skip = [&](size_t done) {
    rest.inputs += done * rest.stride;
    rest.count -= done;
    rest.counter += done * rest.counter_step;
    rest.out += done * HASH_BYTES;
  };
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx512) skip(hash_many_avx512(rest));
  if (active_isa() >= Isa::avx2) skip(hash_many_avx2(rest));
#endif
  hash_many_scalar(rest);
}

size_t lanes() {
  constexpr size_t widths[] = {1, 8, 16};
  return widths[static_cast<int>(active_isa())];
}

void hash_many_beside(const Batch& batch, const Links& links) {
  size_t made = 0;
  bool hashed = false;
#if defined(__x86_64__)
  if (batch.count == lanes() && batch.counter_step == 0 && links.count > 0) {
    if (active_isa() == Isa::avx512) made = hash_beside_avx512(batch, links);
    if (active_isa() == Isa::avx2) made = hash_beside_avx2(batch, links);
    hashed = made > 0;
  }
#endif
  if (!hashed) hash_many(batch);
  const uint8_t* before = made == 0 ? links.before : links.out + (made - 1) * HASH_BYTES;
  for (; made < links.count; ++made) {
    uint32_t h[8], m[16];
    std::memcpy(h, links.key, sizeof h);
    std::memcpy(m, before, HASH_BYTES);
    std::memcpy(m + 8, links.digests + made * HASH_BYTES, HASH_BYTES);
    compress(h, m, 0u, 0u, uint32_t{BLOCK_BYTES}, links.flags | CHUNK_START | CHUNK_END | ROOT);
    before = links.out + made * HASH_BYTES;
    std::memcpy(links.out + made * HASH_BYTES, h, HASH_BYTES);
  }
}

}  // namespace lmkv::blake3
