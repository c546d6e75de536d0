// One segment in its compressed form: for each plane (planes.h) a u32 with the number of its bytes,
// then the planes, then zeros to a multiple of 64. A plane of as many bytes as it has words is as
// it is; any other is one zstd frame.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lmkv {

// The codec of a slot's header names the width of its words.
inline constexpr std::uint8_t kCodecs = 3;  // 1, 2, 3: words of 1, 2, 4 bytes

// 0 for no codec of ours.
constexpr std::size_t codec_width(std::uint32_t codec) {
  return codec == 0 || codec > kCodecs ? 0 : std::size_t{1} << (codec - 1);
}

// Appends the compressed segment to `out`, a multiple of 64 bytes; a zstd library is loaded. `raw`
// is a multiple of 64.
void compress_segment(std::uint32_t codec, std::span<const std::byte> raw,
                      std::vector<std::byte>& out);

// Room to work in, from segment to segment.
class SegmentDecoder {
 public:
  // Whether `stored` is a segment of this codec of exactly `raw`'s bytes, which are there then.
  bool decode(std::uint32_t codec, std::span<const std::byte> stored, std::span<std::byte> raw);

 private:
  std::vector<std::byte> planes_;
};

}  // namespace lmkv
