// The loops of planes.h, for a compiler to vectorise: each file that includes this has its own.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "codec/planes.h"

namespace lmkv {
namespace {

template <class Word>
void split_words(std::byte* to, const std::byte* from, std::size_t words) {
  for (std::size_t i = 0; i < words; ++i) {
    Word word;
    std::memcpy(&word, from + i * sizeof(Word), sizeof(Word));
    word = std::rotl(word, 1);
    for (std::size_t plane = 0; plane < sizeof(Word); ++plane)
      to[plane * words + i] = std::byte(word >> (8 * plane));
  }
}

template <class Word>
void join_words(std::byte* __restrict to, const Planes& planes, std::size_t words) {
  const std::byte *a = planes[0], *b = planes[1], *c = planes[2], *d = planes[3];
  for (std::size_t i = 0; i < words; ++i) {
    Word word = Word(Word(a[i]) | Word(b[i]) << 8);
    if constexpr (sizeof(Word) == 4) word |= Word(c[i]) << 16 | Word(d[i]) << 24;
    word = std::rotr(word, 1);
    std::memcpy(to + i * sizeof(Word), &word, sizeof(Word));
  }
}

void split_loops(std::size_t width, std::byte* to, const std::byte* from, std::size_t bytes) {
  if (width == 2)
    split_words<std::uint16_t>(to, from, bytes / 2);
  else if (width == 4)
    split_words<std::uint32_t>(to, from, bytes / 4);
  else
    std::memcpy(to, from, bytes);
}

void join_loops(std::size_t width, std::byte* to, const Planes& planes, std::size_t bytes) {
  if (width == 2)
    join_words<std::uint16_t>(to, planes, bytes / 2);
  else if (width == 4)
    join_words<std::uint32_t>(to, planes, bytes / 4);
  else
    std::memcpy(to, planes[0], bytes);
}

}  // namespace
}  // namespace lmkv
