#include "codec/segment_codec.h"

#include <cstring>

#include "codec/planes.h"
#include "codec/zstd.h"
#include "layout.h"

namespace lmkv {
namespace {

constexpr std::size_t kWorth = 16;  // a plane that shrinks by less is not worth its decoding

}  // namespace

void compress_segment(std::uint32_t codec, std::span<const std::byte> raw,
                      std::vector<std::byte>& out) {
  const std::size_t width = codec_width(codec), plane = raw.size() / width;
  thread_local std::vector<std::byte> planes;
  planes.resize(raw.size());
  split_planes(width, planes.data(), raw.data(), raw.size());
  const std::size_t begin = out.size();
  std::size_t end = begin + 4 * width;
  out.resize(round_up(end + raw.size(), 64));
  for (std::size_t n = 0; n < width; ++n) {
    const std::span<const std::byte> one(planes.data() + n * plane, plane);
    const std::size_t most = plane - plane / kWorth;
    std::size_t bytes = plane > most ? zstd_compress({out.data() + end, most}, one) : 0;
    if (bytes == 0) {
      bytes = plane;
      std::memcpy(out.data() + end, one.data(), plane);
    }
    const auto length = std::uint32_t(bytes);
    std::memcpy(out.data() + begin + 4 * n, &length, 4);
    end += bytes;
  }
  const std::size_t padded = round_up(end, 64);
  if (padded > out.size()) out.resize(padded);
  std::memset(out.data() + end, 0, padded - end);
  out.resize(padded);
}

bool SegmentDecoder::decode(std::uint32_t codec, std::span<const std::byte> stored,
                            std::span<std::byte> raw) {
  const std::size_t width = codec_width(codec);
  if (width == 0 || stored.size() < 4 * width) return false;
  const std::size_t plane = raw.size() / width;
  planes_.resize(raw.size());
  Planes planes = {};
  std::size_t at = 4 * width;
  for (std::size_t n = 0; n < width; ++n) {
    std::uint32_t bytes;
    std::memcpy(&bytes, stored.data() + 4 * n, 4);
    if (bytes > stored.size() - at) return false;
    const std::span<const std::byte> one = stored.subspan(at, bytes);
    if (bytes == plane) {
      planes[n] = one.data();
    } else {
      const std::span<std::byte> room(planes_.data() + n * plane, plane);
      if (!zstd_decompress(room, one)) return false;
      planes[n] = room.data();
    }
    at += bytes;
  }
  join_planes(width, raw.data(), planes, raw.size());
  return true;
}

}  // namespace lmkv
