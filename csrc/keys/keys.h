// Keys of chunks (docs/keys.md):
//
//   root = BLAKE3_root(namespace); digest_i = BLAKE3(tokens of chunk i)
//   link_i = BLAKE3_link(link_(i-1) || digest_i || extra_i)
//   key_(i,g) = first 16 bytes of BLAKE3_key(link_i || group spec g)
//
// A KeyHasher holds what is common to an engine; a KeyChain is one request's and grows with it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "blake3.h"
#include "hash_many.h"
#include "key.h"

namespace lmkv {

struct KeyHasher {
  KeyHasher(std::string_view name_space, std::vector<std::string> group_specs, size_t chunk_tokens);

  // digest_i of `count` chunks that lie one behind the other.
  void digests(const uint8_t* tokens, size_t count, blake3::Hash* out) const;
  // The same, and the links of `links` chunks whose digests are at hand and which have no extra.
  void digests_beside(const uint8_t* tokens, size_t count, blake3::Hash* out,
                      const blake3::Hash& before, const blake3::Hash* linked_digests, size_t links,
                      blake3::Hash* links_out) const;
  blake3::Hash link(const blake3::Hash& before, const blake3::Hash& digest,
                    std::string_view extra) const;
  // key_(i,g) of `count` links.
  void keys(const blake3::Hash* links, size_t count, size_t group, Key* out) const;

  std::vector<std::string> group_specs;
  size_t chunk_tokens;
  blake3::Hash root;

 private:
  bool one_chunk() const;
  blake3::Batch batch(const uint8_t* tokens, size_t count, blake3::Hash* out) const;

  blake3::Mode plain_, link_mode_, key_mode_;
};

class KeyChain {
 public:
  KeyChain(std::shared_ptr<const KeyHasher> hasher, std::span<const uint8_t> common);

  // The items of a chunk; they replace what was given for it before. They are remembered, so that
  // a chunk which later tokens complete has them too. No effect on a chunk already whole.
  void set_extra(size_t chunk, std::span<const uint8_t> items);
  // The next tokens, little-endian u32 anywhere in memory.
  void append(const uint8_t* tokens, size_t count);
  // Keeps `tokens` tokens, or fewer: back to the last whole chunk if it cuts one.
  void truncate(size_t tokens);

  size_t tokens() const { return links_.size() * hasher_->chunk_tokens + tail_.size() / 4; }
  size_t chunks() const { return links_.size(); }
  std::span<const Key> keys(size_t group) const { return keys_[group]; }
  const KeyHasher& hasher() const { return *hasher_; }

 private:
  void absorb(const uint8_t* tokens, size_t chunks);
  std::string_view extra(size_t chunk) const;
  bool any_extra(size_t first, size_t last) const;
  const blake3::Hash& before(size_t chunk) const;

  std::shared_ptr<const KeyHasher> hasher_;
  std::string common_;                    // canonical, for chunk 0
  std::map<size_t, std::string> extras_;  // canonical, for chunk 0 with the common ones
  std::vector<uint8_t> tail_;             // tokens behind the last whole chunk
  std::vector<blake3::Hash> links_;
  std::vector<std::vector<Key>> keys_;  // by group
};

}  // namespace lmkv
