#include "copy/copier.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "check.h"
#include "copy/runs.h"

namespace lmkv {
namespace {

alignas(64) constexpr std::byte kZeros[64] = {};

// The runs of segments in order, one segment ahead of the copy, so that a prefetch can cross from
// the end of a segment to the start of the next.
class SegmentWalk {
 public:
  SegmentWalk(const Pages& pages, std::uint32_t segments, std::span<const std::uint32_t> blocks)
      : pages_(pages), segments_(segments), blocks_(blocks) {
    segment_runs(pages_, 0, blocks_, next_);
  }

  // Must be called with 0, 1, 2, ...
  const std::vector<Run>& runs(std::uint32_t segment) {
    std::swap(current_, next_);
    next_.clear();
    if (segment + 1 < segments_) segment_runs(pages_, segment + 1, blocks_, next_);
    return current_;
  }

  // Where reads go on after run n of the current segment: far enough ahead for short runs.
  const std::byte* after(std::size_t n) const {
    const std::size_t short_by = kPrefetchAhead / current_[n].bytes;
    std::size_t then = n + std::max<std::size_t>(short_by, 1);
    if (then < current_.size()) return current_[then].at;
    then -= current_.size();
    return then < next_.size() ? next_[then].at : current_[n].at;
  }

 private:
  const Pages& pages_;
  std::uint32_t segments_;
  std::span<const std::uint32_t> blocks_;
  std::vector<Run> current_, next_;
};

}  // namespace

Copier::Copier(const SlotLayout& layout, Pages pages, std::uint64_t blocks_per_chunk)
    : layout_(layout), pages_(std::move(pages)), blocks_per_chunk_(blocks_per_chunk) {
  pages_.check(kHostPiece);
  check_chunk(pages_, blocks_per_chunk, layout);
  padding_ = layout.segment_bytes - pages_.content_bytes(blocks_per_chunk);
}

void Copier::check_blocks(std::span<const std::uint32_t> blocks, bool may_skip) const {
  lmkv::check_blocks(blocks, blocks_per_chunk_, pages_.blocks, may_skip);
}

void Copier::gather(std::byte* slot, const Key& key, std::uint64_t generation,
                    std::span<const std::uint32_t> blocks) const {
  const RunKernels& kernels = active_runs();
  SegmentWalk walk(pages_, layout_.segments, blocks);
  std::vector<std::uint64_t> table = empty_table(layout_);
  std::byte* to = slot + layout_.payload_offset();
  clear_slot(slot);
  for (std::uint32_t segment = 0; segment < layout_.segments; ++segment) {
    const std::vector<Run>& runs = walk.runs(segment);
    Lmx64 sums;
    std::uint32_t unit = 0;
    for (std::size_t n = 0; n < runs.size(); ++n) {
      kernels.copy(to, runs[n].at, runs[n].bytes, unit, walk.after(n), sums);
      to += runs[n].bytes;
      unit += std::uint32_t(runs[n].bytes / 16);
    }
    kernels.copy(to, kZeros, padding_, unit, kZeros, sums);
    to += padding_;
    table[segment] = lmx64_finish(sums, layout_.segment_bytes, segment);
  }
  seal_slot(slot, layout_, key, generation, table);
}

bool Copier::audit(const std::byte* slot, std::span<const std::uint32_t> blocks) const {
  const RunKernels& kernels = active_runs();
  SegmentWalk walk(pages_, layout_.segments, blocks);
  const SlotHeader header = load_header(slot);
  if (header.segments != layout_.segments) return false;
  const std::vector<std::uint64_t> table = load_table(slot, header);
  if (table.empty()) return false;
  for (std::uint32_t segment = 0; segment < layout_.segments; ++segment) {
    const std::vector<Run>& runs = walk.runs(segment);
    Lmx64 sums;
    std::uint32_t unit = 0;
    for (std::size_t n = 0; n < runs.size(); ++n) {
      kernels.read(runs[n].at, runs[n].bytes, unit, walk.after(n), sums);
      unit += std::uint32_t(runs[n].bytes / 16);
    }
    kernels.read(kZeros, padding_, unit, kZeros, sums);
    if (table[segment] != lmx64_finish(sums, layout_.segment_bytes, segment)) return false;
  }
  return true;
}

Lmx64 Copier::scatter_segment(std::uint32_t segment, const std::byte* from,
                              std::span<const std::uint32_t> blocks, std::vector<Run>& runs,
                              const RunKernels& kernels) const {
  segment_runs(pages_, segment, blocks, runs);
  Lmx64 sums;
  std::uint32_t unit = 0;
  for (const Run& run : runs) {
    // Short runs prefetch the same offset of what lies 2 KiB ahead; long ones go on at their end.
    const auto* next = reinterpret_cast<const std::byte*>(reinterpret_cast<std::uintptr_t>(from) +
                                                          std::max(run.bytes, kPrefetchAhead));
    if (run.at == nullptr) {
      kernels.read(from, run.bytes, unit, next, sums);
    } else {
      kernels.copy(run.at, from, run.bytes, unit, next, sums);
    }
    from += run.bytes;
    unit += std::uint32_t(run.bytes / 16);
  }
  kernels.read(from, padding_, unit, from, sums);
  return sums;
}

SlotStatus Copier::scatter(const std::byte* slot, const Key& key, std::uint64_t generation,
                           std::span<const std::uint32_t> blocks, std::uint64_t room) const {
  const RunKernels& kernels = active_runs();
  std::vector<Run> runs;
  const auto segment = [&](std::uint32_t number, const std::byte* from) {
    const Lmx64 sums = scatter_segment(number, from, blocks, runs, kernels);
    return lmx64_finish(sums, layout_.segment_bytes, number);
  };
  const SlotStatus status = read_slot(slot, layout_, key, generation, room, segment);
  kernels.fence();
  return status;
}

SlotStatus Copier::scatter_part(const std::byte* slot, const SlotPart& part, const Key& key,
                                std::uint64_t generation, std::span<const std::uint32_t> blocks,
                                std::uint64_t room) const {
  REQUIRE(part.ours() == layout_, "part: of slots of another layout than these pages have");
  const RunKernels& kernels = active_runs();
  std::vector<Run> runs;
  const auto segment = [&](std::uint32_t theirs, const std::byte* from) {
    const Lmx64 sums = scatter_segment(part.our_segment(theirs), from, blocks, runs, kernels);
    return lmx64_finish(sums, layout_.segment_bytes, theirs);  // as the peer has sealed it
  };
  const SlotStatus status =
      read_segments(slot, part.theirs(), key, generation, room, part.segments(), segment);
  kernels.fence();
  return status;
}

}  // namespace lmkv
