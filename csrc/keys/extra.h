// The items of extra_i (DESIGN's keys): tag u8, length u32 little-endian, bytes; in canonical
// order, by tag and then by bytes. Items are checked and sorted here, whoever made them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace lmkv {

// All items of the parts as one canonical sequence. std::invalid_argument for a torn one.
std::string canonical_extra(std::initializer_list<std::span<const uint8_t>> parts);

}  // namespace lmkv
