// Words of 1, 2 or 4 bytes as planes: all their first bytes, then all their second ones, and so on.
//
// Words of 2 and 4 bytes are rotated left by one bit first, so that of floating-point numbers the
// last plane is the exponent (of bfloat16 all of it) and the sign, which no codec shrinks, is in
// the first.
#pragma once

#include <array>
#include <cstddef>

namespace lmkv {

inline constexpr std::size_t kMaxPlanes = 4;

using Planes = std::array<const std::byte*, kMaxPlanes>;  // those of a word's width

// `bytes` is a multiple of `width`; `to` gets the planes one behind the other.
void split_planes(std::size_t width, std::byte* to, const std::byte* from, std::size_t bytes);

// What was split; `bytes` is that of all planes.
void join_planes(std::size_t width, std::byte* to, const Planes& planes, std::size_t bytes);

}  // namespace lmkv
