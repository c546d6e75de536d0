// Under the sanitizers: every instruction set, from exactly as many bytes as a chain may read,
// gives the scalar keys; for whole and partly idle registers, short blocks, trees and split tokens.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "isa.h"
#include "keys/keys.h"

namespace {

std::string keys(size_t chunk_tokens, size_t chunks, size_t split) {
  const auto hasher = std::make_shared<lmkv::KeyHasher>(
      "n=1\n", std::vector<std::string>{"g=1\n", std::string(1100, 'g')}, chunk_tokens);
  const size_t tokens = chunks * chunk_tokens;
  // An odd address, and nothing behind the last token.
  const auto room = std::make_unique<uint8_t[]>(tokens * 4 + 1);
  uint8_t* data = room.get() + 1;
  for (size_t i = 0; i < tokens * 4; ++i) data[i] = static_cast<uint8_t>(i * 131 >> 3);
  lmkv::KeyChain chain(hasher, {});
  const uint8_t items[] = {3, 1, 0, 0, 0, 'x'};
  chain.set_extra(5, items);
  chain.append(data, std::min(split, tokens));
  chain.append(data + std::min(split, tokens) * 4, tokens - std::min(split, tokens));
  std::string out;
  for (size_t group = 0; group < 2; ++group) {
    const auto found = chain.keys(group);
    out.append(reinterpret_cast<const char*>(found.data()), found.size_bytes());
  }
  return out;
}

}  // namespace

int main() {
  int failures = 0;
  for (const size_t chunk_tokens : {3u, 16u, 100u, 256u, 544u}) {
    for (size_t chunks = 0; chunks < 50; ++chunks) {
      lmkv::set_isa("scalar");
      const std::string expected = keys(chunk_tokens, chunks, 0);
      for (const lmkv::Isa isa : lmkv::available_isas()) {
        lmkv::set_isa(lmkv::name(isa));
        for (const size_t split : {0u, 1u, 300u, 5000u}) {
          if (keys(chunk_tokens, chunks, split) == expected) continue;
          std::printf("%s: chunks of %zu tokens, %zu of them, split at %zu: other keys\n",
                      std::string(lmkv::name(isa)).c_str(), chunk_tokens, chunks, split);
          ++failures;
        }
      }
    }
  }
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
