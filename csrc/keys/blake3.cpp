#include "blake3.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "chunk_hash.h"
#include "hash_many.h"

namespace lmkv::blake3 {
namespace {

// A chunk of at most 1,024 bytes, possibly none, whose last block may be short.
void hash_chunk(std::span<const uint8_t> data, uint64_t counter, const Mode& mode, uint32_t last,
                uint8_t* out) {
  const size_t blocks = std::max<size_t>(1, (data.size() + BLOCK_BYTES - 1) / BLOCK_BYTES);
  const size_t last_length = data.size() - (blocks - 1) * BLOCK_BYTES;
  uint32_t h[8];
  std::memcpy(h, mode.key, sizeof h);
  hash_blocks(h, static_cast<int>(blocks), static_cast<uint32_t>(last_length),
              static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), mode.flags,
              CHUNK_START, last, [&](int b, uint32_t(&m)[16]) {
                const size_t at = static_cast<size_t>(b) * BLOCK_BYTES;
                const size_t length = std::min<size_t>(BLOCK_BYTES, data.size() - at);
                if (length < BLOCK_BYTES) std::memset(m, 0, BLOCK_BYTES);
                if (length > 0) std::memcpy(m, data.data() + at, length);
              });
  std::memcpy(out, h, sizeof h);
}

// Neighbours in pairs become parents; an odd one at the end moves up as it is. That is the paper's
// tree, whose left side is always a full one.
size_t join(std::vector<uint8_t>& values, size_t count, const Mode& mode, uint32_t root) {
  std::vector<uint8_t> parents((count + 1) / 2 * HASH_BYTES);
  hash_many({.inputs = values.data(),
             .stride = BLOCK_BYTES,
             .count = count / 2,
             .blocks = 1,
             .last_length = BLOCK_BYTES,
             .counter = 0,
             .counter_step = 0,
             .flags = mode.flags | PARENT | root,
             .first = 0,
             .last = 0,
             .key = mode.key,
             .out = parents.data()});
  if (count % 2 == 1) {
    std::memcpy(parents.data() + count / 2 * HASH_BYTES, values.data() + (count - 1) * HASH_BYTES,
                HASH_BYTES);
  }
  values.swap(parents);
  return (count + 1) / 2;
}

}  // namespace

Mode Mode::plain() {
  Mode mode{};
  for (int i = 0; i < 8; ++i) mode.key[i] = iv(i);
  return mode;
}

Mode Mode::derive_key(std::string_view context) {
  Mode mode = plain();
  mode.flags = DERIVE_KEY_CONTEXT;
  const Hash key = hash({reinterpret_cast<const uint8_t*>(context.data()), context.size()}, mode);
  std::memcpy(mode.key, key.data(), sizeof mode.key);
  mode.flags = DERIVE_KEY_MATERIAL;
  return mode;
}

Hash hash(std::span<const uint8_t> data, const Mode& mode) {
  Hash out;
  if (data.size() <= CHUNK_BYTES) {
    hash_chunk(data, 0, mode, CHUNK_END | ROOT, out.data());
    return out;
  }
  size_t count = (data.size() + CHUNK_BYTES - 1) / CHUNK_BYTES;
  const size_t whole = data.size() / CHUNK_BYTES;
  std::vector<uint8_t> values(count * HASH_BYTES);
  hash_many({.inputs = data.data(),
             .stride = CHUNK_BYTES,
             .count = whole,
             .blocks = CHUNK_BYTES / BLOCK_BYTES,
             .last_length = BLOCK_BYTES,
             .counter = 0,
             .counter_step = 1,
             .flags = mode.flags,
             .first = CHUNK_START,
             .last = CHUNK_END,
             .key = mode.key,
             .out = values.data()});
  if (whole < count) {
    hash_chunk(data.subspan(whole * CHUNK_BYTES), whole, mode, CHUNK_END,
               values.data() + whole * HASH_BYTES);
  }
  while (count > 2) count = join(values, count, mode, 0);
  join(values, count, mode, ROOT);
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

}  // namespace lmkv::blake3
