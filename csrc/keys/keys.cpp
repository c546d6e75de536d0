#include "keys.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "chunk_hash.h"
#include "extra.h"
#include "hash_many.h"

namespace lmkv {
namespace {

using blake3::Hash;

constexpr size_t kBatch = 64;  // chunks between digests and keys: 2 KiB of each on the stack

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

}  // namespace

KeyHasher::KeyHasher(std::string_view name_space, std::vector<std::string> specs, size_t tokens)
    : group_specs(std::move(specs)),
      chunk_tokens(tokens),
      plain_(blake3::Mode::plain()),
      link_mode_(blake3::Mode::derive_key("lmkv 1 link")),
      key_mode_(blake3::Mode::derive_key("lmkv 1 key")) {
  REQUIRE(chunk_tokens >= 1 && chunk_tokens <= 1u << 20, "chunk_tokens ", chunk_tokens,
          " is outside 1..", 1u << 20);
  REQUIRE(!group_specs.empty(), "group_specs: at least one cache group is needed");
  root = blake3::hash(bytes_of(name_space), blake3::Mode::derive_key("lmkv 1 root"));
}

void KeyHasher::digests(const uint8_t* tokens, size_t count, Hash* out) const {
  const size_t bytes = chunk_tokens * 4;
  if (bytes > blake3::CHUNK_BYTES || bytes % blake3::BLOCK_BYTES != 0) {
    for (size_t i = 0; i < count; ++i) out[i] = blake3::hash({tokens + i * bytes, bytes}, plain_);
    return;
  }
  blake3::hash_many({.inputs = tokens,
             .stride = bytes,
             .count = count,
             .blocks = static_cast<int>(bytes / blake3::BLOCK_BYTES),
             .last_length = blake3::BLOCK_BYTES,
             .counter = 0,
             .counter_step = 0,
             .flags = 0,
             .first = blake3::CHUNK_START,
             .last = blake3::CHUNK_END | blake3::ROOT,
             .key = plain_.key,
             .out = out->data()});
}

Hash KeyHasher::link(const Hash& before, const Hash& digest, std::string_view extra) const {
  if (extra.empty()) {  // one block
    uint8_t message[blake3::BLOCK_BYTES];
    std::memcpy(message, before.data(), 32);
    std::memcpy(message + 32, digest.data(), 32);
    return blake3::hash(message, link_mode_);
  }
  std::vector<uint8_t> message(64 + extra.size());
  std::memcpy(message.data(), before.data(), 32);
  std::memcpy(message.data() + 32, digest.data(), 32);
  std::memcpy(message.data() + 64, extra.data(), extra.size());
  return blake3::hash(message, link_mode_);
}

void KeyHasher::keys(const Hash* links, size_t count, size_t group, Key* out) const {
  const std::string& spec = group_specs[group];
  const size_t length = 32 + spec.size();
  const size_t stride = (length + blake3::BLOCK_BYTES - 1) / blake3::BLOCK_BYTES * 64;
  std::vector<uint8_t> messages(stride * count);
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(messages.data() + i * stride, links[i].data(), 32);
    std::memcpy(messages.data() + i * stride + 32, spec.data(), spec.size());
  }
  std::vector<Hash> hashes(count);
  if (length <= blake3::CHUNK_BYTES) {
    blake3::hash_many({.inputs = messages.data(),
               .stride = stride,
               .count = count,
               .blocks = static_cast<int>(stride / blake3::BLOCK_BYTES),
               .last_length = static_cast<uint32_t>(length - (stride - blake3::BLOCK_BYTES)),
               .counter = 0,
               .counter_step = 0,
               .flags = key_mode_.flags,
               .first = blake3::CHUNK_START,
               .last = blake3::CHUNK_END | blake3::ROOT,
               .key = key_mode_.key,
               .out = hashes.data()->data()});
  } else {
    for (size_t i = 0; i < count; ++i) {
      hashes[i] = blake3::hash({messages.data() + i * stride, length}, key_mode_);
    }
  }
  for (size_t i = 0; i < count; ++i) std::memcpy(out[i].bytes, hashes[i].data(), sizeof(Key));
}

KeyChain::KeyChain(std::shared_ptr<const KeyHasher> hasher, std::span<const uint8_t> common)
    : hasher_(std::move(hasher)),
      common_(canonical_extra({common})),
      keys_(hasher_->group_specs.size()) {}

void KeyChain::set_extra(size_t chunk, std::span<const uint8_t> items) {
  extras_[chunk] =
      chunk == 0 ? canonical_extra({bytes_of(common_), items}) : canonical_extra({items});
}

std::string_view KeyChain::extra(size_t chunk) const {
  const auto found = extras_.find(chunk);
  if (found != extras_.end()) return found->second;
  return chunk == 0 ? std::string_view(common_) : std::string_view();
}

void KeyChain::append(const uint8_t* tokens, size_t count) {
  const size_t chunk_bytes = hasher_->chunk_tokens * 4;
  size_t bytes = count * 4;
  if (!tail_.empty()) {
    const size_t fill = std::min(bytes, chunk_bytes - tail_.size());
    tail_.insert(tail_.end(), tokens, tokens + fill);
    tokens += fill;
    bytes -= fill;
    if (tail_.size() < chunk_bytes) return;
    absorb(tail_.data(), 1);
    tail_.clear();
  }
  const size_t whole = bytes / chunk_bytes;
  absorb(tokens, whole);
  tail_.assign(tokens + whole * chunk_bytes, tokens + bytes);
}

void KeyChain::absorb(const uint8_t* tokens, size_t chunks) {
  const size_t before = links_.size();
  links_.resize(before + chunks);
  for (auto& keys : keys_) keys.resize(before + chunks);
  Hash digests[kBatch];
  for (size_t done = 0; done < chunks;) {
    const size_t n = std::min(kBatch, chunks - done);
    hasher_->digests(tokens + done * hasher_->chunk_tokens * 4, n, digests);
    for (size_t i = 0; i < n; ++i) {
      const size_t at = before + done + i;
      links_[at] =
          hasher_->link(at == 0 ? hasher_->root : links_[at - 1], digests[i], extra(at));
    }
    for (size_t g = 0; g < keys_.size(); ++g) {
      hasher_->keys(&links_[before + done], n, g, &keys_[g][before + done]);
    }
    done += n;
  }
}

void KeyChain::truncate(size_t tokens) {
  if (tokens >= this->tokens()) return;
  const size_t whole = tokens / hasher_->chunk_tokens;
  // The tokens of a whole chunk are not kept: what is left of one that is cut must come again.
  const size_t rest = whole == links_.size() ? tokens % hasher_->chunk_tokens : 0;
  tail_.resize(rest * 4);
  links_.resize(whole);
  for (auto& keys : keys_) keys.resize(whole);
  const size_t begun = (tokens + hasher_->chunk_tokens - 1) / hasher_->chunk_tokens;
  extras_.erase(extras_.lower_bound(begun), extras_.end());
}

}  // namespace lmkv
