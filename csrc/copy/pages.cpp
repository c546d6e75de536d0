#include "copy/pages.h"

#include "check.h"
#include "layout.h"

namespace lmkv {

void Pages::check(std::uint32_t piece) const {
  REQUIRE(!layers.empty(), "layers: there are none");
  REQUIRE(blocks >= 1 && blocks <= 0xFFFFFFFFull, "blocks: ", blocks, " is not in 1 .. 2^32 - 1");
  REQUIRE(heads >= 1 && heads < (1u << 24), "heads: ", heads, " is not in 1 .. 2^24 - 1");
  REQUIRE(tokens >= 1 && tokens < (1u << 24), "tokens: ", tokens, " is not in 1 .. 2^24 - 1");
  REQUIRE(planes >= 1 && planes <= 16, "planes: ", planes, " is not in 1 .. 16");
  REQUIRE(run_bytes >= piece && run_bytes % piece == 0 && run_bytes < (1ull << 36),
          "run_bytes: ", run_bytes, " is not a multiple of ", piece, " below 2^36");
  const auto aligned = [piece](const char* name, std::int64_t stride) {
    REQUIRE(stride % std::int64_t(piece) == 0, name, ": ", stride, " is not a multiple of ", piece);
  };
  aligned("block_stride", block_stride);
  aligned("head_stride", head_stride);
  aligned("token_stride", token_stride);
  aligned("plane_stride", plane_stride);
  for (const std::byte* layer : layers) {
    REQUIRE(layer != nullptr && reinterpret_cast<std::uintptr_t>(layer) % piece == 0,
            "layers: address ", static_cast<const void*>(layer), " is not a multiple of ", piece);
  }
}

std::uint64_t Pages::content_bytes(std::uint64_t blocks_per_chunk) const {
  return planes * blocks_per_chunk * tokens * run_bytes;
}

std::uint64_t Pages::segment_bytes(std::uint64_t blocks_per_chunk) const {
  return round_up(content_bytes(blocks_per_chunk), 64);
}

void check_chunk(const Pages& pages, std::uint64_t blocks_per_chunk, const SlotLayout& layout) {
  REQUIRE(blocks_per_chunk >= 1 && blocks_per_chunk < (1u << 24),
          "blocks_per_chunk: ", blocks_per_chunk, " is not in 1 .. 2^24 - 1");
  const std::uint64_t segments = pages.layers.size() * pages.heads;
  REQUIRE(segments == layout.segments, "layout: ", layout.segments, " segments, the pages have ",
          pages.layers.size(), " layers of ", pages.heads, " heads");
  const std::uint64_t bytes = pages.segment_bytes(blocks_per_chunk);
  REQUIRE(bytes == layout.segment_bytes, "layout: segments of ", layout.segment_bytes,
          " bytes, a chunk of the pages has ", bytes);
}

void check_blocks(std::span<const std::uint32_t> blocks, std::uint64_t count, std::uint64_t below,
                  bool may_skip) {
  REQUIRE(blocks.size() == count, "blocks: ", blocks.size(), ", a chunk has ", count);
  for (const std::uint32_t block : blocks) {
    REQUIRE(block < below || (may_skip && block == kSkippedBlock), "blocks: ", block, " of ",
            below);
  }
}

void segment_runs(const Pages& pages, std::uint32_t segment, std::span<const std::uint32_t> blocks,
                  std::vector<Run>& runs) {
  runs.clear();
  std::byte* base =
      pages.layers[segment / pages.heads] + std::int64_t(segment % pages.heads) * pages.head_stride;
  const bool whole = pages.token_stride == std::int64_t(pages.run_bytes);
  const std::uint64_t tokens = whole ? 1 : pages.tokens;
  const std::size_t bytes = pages.run_bytes * (whole ? pages.tokens : 1);
  for (std::uint64_t plane = 0; plane < pages.planes; ++plane) {
    for (const std::uint32_t block : blocks) {
      if (block == kSkippedBlock) {
        runs.push_back({nullptr, pages.run_bytes * pages.tokens});
        continue;
      }
      std::byte* at = base + std::int64_t(plane) * pages.plane_stride +
                      std::int64_t(block) * pages.block_stride;
      for (std::uint64_t token = 0; token < tokens; ++token, at += pages.token_stride) {
        if (!runs.empty() && runs.back().at != nullptr &&
            runs.back().at + runs.back().bytes == at) {
          runs.back().bytes += bytes;
        } else {
          runs.push_back({at, bytes});
        }
      }
    }
  }
}

}  // namespace lmkv
