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

constexpr size_t kMaxLanes = 16;

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

// A chunk's tokens are whole blocks of a single BLAKE3 chunk: 16, 32, .. 256 tokens.
bool KeyHasher::one_chunk() const {
  return chunk_tokens * 4 <= blake3::CHUNK_BYTES && chunk_tokens * 4 % blake3::BLOCK_BYTES == 0;
}

blake3::Batch KeyHasher::batch(const uint8_t* tokens, size_t count, Hash* out) const {
  return {.inputs = tokens,
          .stride = chunk_tokens * 4,
          .count = count,
          .blocks = static_cast<int>(chunk_tokens * 4 / blake3::BLOCK_BYTES),
          .last_length = blake3::BLOCK_BYTES,
          .counter = 0,
          .counter_step = 0,
          .flags = 0,
          .first = blake3::CHUNK_START,
          .last = blake3::CHUNK_END | blake3::ROOT,
          .key = plain_.key,
          .out = out->data()};
}

void KeyHasher::digests(const uint8_t* tokens, size_t count, Hash* out) const {
  if (one_chunk()) return blake3::hash_many(batch(tokens, count, out));
  const size_t bytes = chunk_tokens * 4;
  for (size_t i = 0; i < count; ++i) out[i] = blake3::hash({tokens + i * bytes, bytes}, plain_);
}

void KeyHasher::digests_beside(const uint8_t* tokens, size_t count, Hash* out, const Hash& before,
                               const Hash* linked_digests, size_t links, Hash* links_out) const {
  const blake3::Links chain{link_mode_.key, link_mode_.flags, before.data(), linked_digests->data(),
                            links,          links_out->data()};
  blake3::hash_many_beside(batch(tokens, one_chunk() ? count : 0, out), chain);
  if (!one_chunk()) digests(tokens, count, out);
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
  const size_t blocks = (length + blake3::BLOCK_BYTES - 1) / blake3::BLOCK_BYTES;
  const size_t stride = blocks * blake3::BLOCK_BYTES;
  const size_t width = std::min(blake3::lanes(), count);
  std::vector<uint8_t> messages(stride * width);  // link || spec, padded; the specs stay
  for (size_t j = 0; j < width; ++j) {
    std::memcpy(messages.data() + j * stride + 32, spec.data(), spec.size());
  }
  Hash hashes[kMaxLanes];
  for (size_t done = 0; done < count; done += width) {
    const size_t n = std::min(width, count - done);
    for (size_t j = 0; j < n; ++j) {
      std::memcpy(messages.data() + j * stride, links[done + j].data(), 32);
    }
    if (length <= blake3::CHUNK_BYTES) {
      blake3::hash_many(
          {.inputs = messages.data(),
           .stride = stride,
           .count = n,
           .blocks = static_cast<int>(blocks),
           .last_length = static_cast<uint32_t>(length - (blocks - 1) * blake3::BLOCK_BYTES),
           .counter = 0,
           .counter_step = 0,
           .flags = key_mode_.flags,
           .first = blake3::CHUNK_START,
           .last = blake3::CHUNK_END | blake3::ROOT,
           .key = key_mode_.key,
           .out = hashes->data()});
    } else {
      for (size_t j = 0; j < n; ++j) {
        hashes[j] = blake3::hash({messages.data() + j * stride, length}, key_mode_);
      }
    }
    for (size_t j = 0; j < n; ++j) {
      std::memcpy(&out[done + j], hashes[j].data(), sizeof(Key));
    }
  }
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

bool KeyChain::any_extra(size_t first, size_t last) const {
  if (first == 0 && !common_.empty()) return true;
  const auto found = extras_.lower_bound(first);
  return found != extras_.end() && found->first < last;
}

const Hash& KeyChain::before(size_t chunk) const {
  return chunk == 0 ? hasher_->root : links_[chunk - 1];
}

// Digests in batches; the links of one batch are made beside the digests of the next.
void KeyChain::absorb(const uint8_t* tokens, size_t chunks) {
  if (chunks == 0) return;
  const size_t begin = links_.size(), end = begin + chunks;
  const size_t width = blake3::lanes(), chunk_bytes = hasher_->chunk_tokens * 4;
  links_.resize(end);
  Hash buffers[2][kMaxLanes];
  Hash *digests = buffers[0], *ahead = buffers[1];
  size_t n = std::min(width, chunks);
  hasher_->digests(tokens, n, digests);
  for (size_t at = begin; at < end;) {
    tokens += n * chunk_bytes;
    const size_t next = std::min(width, end - at - n);
    if (next > 0 && !any_extra(at, at + n)) {
      hasher_->digests_beside(tokens, next, ahead, before(at), digests, n, &links_[at]);
    } else {
      hasher_->digests(tokens, next, ahead);
      for (size_t i = 0; i < n; ++i) {
        links_[at + i] = hasher_->link(before(at + i), digests[i], extra(at + i));
      }
    }
    at += n;
    n = next;
    std::swap(digests, ahead);
  }
  for (size_t g = 0; g < keys_.size(); ++g) {
    keys_[g].resize(end);
    hasher_->keys(&links_[begin], chunks, g, &keys_[g][begin]);
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
