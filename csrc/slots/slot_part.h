// A part of a peer's slots that is read into ours: the same heads, of all layers, where a rank of
// the peer has other heads than we (DESIGN.md 5, "Layer outermost").
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "slots/slot_format.h"

namespace lmkv {

// Heads [their_first, their_first + heads) of each layer of their slots are heads [our_first, ..)
// of ours. Segments are numbered layer outermost on both sides, so a layer is one run.
class SlotPart {
 public:
  // std::invalid_argument unless both slots are `layers` times their heads, in equal segments.
  SlotPart(const SlotLayout& ours, const SlotLayout& theirs, std::uint64_t layers,
           std::uint64_t their_first, std::uint64_t our_first, std::uint64_t heads);

  const SlotLayout& ours() const { return ours_; }
  const SlotLayout& theirs() const { return theirs_; }
  std::uint32_t layers() const { return layers_; }
  std::uint32_t heads() const { return heads_; }
  std::uint32_t our_first() const { return our_first_; }
  std::uint32_t their_first() const { return their_first_; }
  std::uint32_t their_heads() const { return their_heads_; }  // of a layer of their slots
  std::uint32_t our_heads() const { return our_heads_; }
  std::uint64_t run_bytes() const { return heads_ * theirs_.segment_bytes; }
  // Header, table and the segments that are read.
  std::uint64_t read_bytes() const { return theirs_.payload_offset() + layers_ * run_bytes(); }
  // Offsets of a layer's run in their slot and in ours.
  std::uint64_t their_offset(std::uint32_t layer) const;
  std::uint64_t our_offset(std::uint32_t layer) const;

  // The segments that are read, by their numbers, and the number of each with us.
  std::span<const std::uint32_t> segments() const { return segments_; }
  std::uint32_t our_segment(std::uint32_t theirs) const;

 private:
  SlotLayout ours_, theirs_;
  std::uint32_t layers_, their_heads_, our_heads_, their_first_, our_first_, heads_;
  std::vector<std::uint32_t> segments_;
};

// What a puller does after its READs of a part: their header and table lie at `header`, the
// segments at their places in our slot. Each digest that holds is put in `table`, as that of our
// segment.
SlotStatus check_part(const std::byte* header, const std::byte* own, const SlotPart& part,
                      const Key& key, std::uint64_t theirs, std::span<std::uint64_t> table);

}  // namespace lmkv
