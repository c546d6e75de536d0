#include "slots/slot_part.h"

#include "check.h"
#include "copy/runs.h"

namespace lmkv {

SlotPart::SlotPart(const SlotLayout& ours, const SlotLayout& theirs, std::uint64_t layers,
                   std::uint64_t their_first, std::uint64_t our_first, std::uint64_t heads)
    : ours_(ours), theirs_(theirs) {
  REQUIRE(layers >= 1 && ours.segments % layers == 0 && theirs.segments % layers == 0,
          "layers: ", layers, " do not divide ", ours.segments, " and ", theirs.segments,
          " segments");
  REQUIRE(ours.segment_bytes == theirs.segment_bytes, "segments of ", theirs.segment_bytes,
          " bytes, ours have ", ours.segment_bytes);
  const std::uint64_t our_heads = ours.segments / layers, their_heads = theirs.segments / layers;
  const auto within = [heads](const char* whose, std::uint64_t first, std::uint64_t of) {
    REQUIRE(heads >= 1 && first < of && heads <= of - first, whose, " heads ", first,
            " on: ", heads, " of ", of);
  };
  within("their", their_first, their_heads);
  within("our", our_first, our_heads);
  layers_ = std::uint32_t(layers);
  their_heads_ = std::uint32_t(their_heads), our_heads_ = std::uint32_t(our_heads);
  their_first_ = std::uint32_t(their_first), our_first_ = std::uint32_t(our_first);
  heads_ = std::uint32_t(heads);
  for (std::uint32_t layer = 0; layer < layers_; ++layer)
    for (std::uint32_t head = 0; head < heads_; ++head)
      segments_.push_back(layer * their_heads_ + their_first_ + head);
}

std::uint64_t SlotPart::their_offset(std::uint32_t layer) const {
  return theirs_.payload_offset() +
         (std::uint64_t{layer} * their_heads_ + their_first_) * theirs_.segment_bytes;
}

std::uint64_t SlotPart::our_offset(std::uint32_t layer) const {
  return ours_.payload_offset() +
         (std::uint64_t{layer} * our_heads_ + our_first_) * ours_.segment_bytes;
}

std::uint32_t SlotPart::our_segment(std::uint32_t theirs) const {
  return theirs / their_heads_ * our_heads_ + theirs % their_heads_ - their_first_ + our_first_;
}

SlotStatus check_part(const std::byte* header, const std::byte* own, const SlotPart& part,
                      const Key& key, std::uint64_t theirs, std::span<std::uint64_t> table) {
  const SlotHeader found = load_header(header);
  const SlotStatus status = check_header(found, part.theirs(), key, theirs);
  if (status != SlotStatus::good) return status;
  const std::vector<std::uint64_t> digests = load_table(header, found);
  if (digests.empty()) return SlotStatus::digest;
  const std::uint64_t bytes = part.ours().segment_bytes;
  for (const std::uint32_t segment : part.segments()) {
    const std::uint32_t ours = part.our_segment(segment);
    const std::byte* at = own + part.ours().payload_offset() + ours * bytes;
    Lmx64 sums;
    active_runs().read(at, bytes, 0, at + bytes, sums);
    if (lmx64_finish(sums, bytes, segment) != digests[segment]) return SlotStatus::digest;
    table[ours] = lmx64_finish(sums, bytes, ours);  // another number, the same sums
  }
  return SlotStatus::good;
}

}  // namespace lmkv
