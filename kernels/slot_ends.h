// How a chunk's copy begins and ends: the header is judged before a slot is read; the team that has
// copied a chunk's last segment writes its table and header, or judges header, table and digests.
//
// The chain is header -> table -> segments: the table's digest is the header's, each segment's that
// of the table. Data that changed in between fails in one of the two, whatever came in what order.
#pragma once

#include "access.h"
#include "jobs.h"
#include "team.h"

namespace lmkv {

template <class Team>
struct ChunkEnd {
  uint64_t header[sizeof(SlotHeader) / 8];
  Lmx64 sums[Team::kWarps];
  uint64_t wrong[Team::kWarps];
  uint32_t verdict;  // of the header
  uint32_t last;     // this team ends the chunk
  uint32_t refused;  // a team of this chunk found a header it does not read
};

#define LMKV_REFUSED 0x80000000u  // in `arrived`, beside the count

constexpr int kHeaderWords = sizeof(SlotHeader) / 8;

LMKV_BODY SlotHeader as_header(const uint64_t (&w)[kHeaderWords]) {
  return {w[0], w[1], w[2], w[3], w[4], uint32_t(w[5]), uint32_t(w[5] >> 32), w[6], w[7]};
}

LMKV_BODY uint64_t* slot_words(const CopyJob& job, uint32_t chunk) {
  return reinterpret_cast<uint64_t*>(job.slots[chunk]);
}

// end.header and its verdict, from the slot as it is now.
template <class Team>
LMKV_BODY uint32_t open_chunk(Team& team, const CopyJob& job, ChunkEnd<Team>& end, uint32_t chunk) {
  const uint64_t* const slot = slot_words(job, chunk);
  team.phase([&](int thread) {
    if (thread < kHeaderWords) end.header[thread] = load_word(slot + thread);
  });
  team.phase([&](int thread) {
    if (thread == 0) end.verdict = judge_header(as_header(end.header), job.shape, job.names[chunk]);
  });
  return team_read(team, end.verdict);
}

// This item's segment is done; true in the team for which it was the chunk's last one.
template <class Team>
LMKV_BODY bool arrive(Team& team, const CopyJob& job, ChunkEnd<Team>& end, uint32_t item,
                      uint64_t digest, bool refused) {
  const uint32_t per_chunk = job.layers * job.heads;
  uint32_t* const arrived = job.arrived + item / per_chunk;
  team.phase([&](int thread) {
    if (thread != 0) return;
    store_word(job.digests + item, digest);
    if (refused) set_bits(arrived, LMKV_REFUSED);
    fence_gpu();
    const uint32_t before = count_up(arrived);
    fence_gpu();
    end.last = (before & ~LMKV_REFUSED) == per_chunk - 1;
    end.refused = before & LMKV_REFUSED;
    if (end.last) *arrived = 0;
  });
  return team_read(team, end.last) != 0;
}

// The digests of a gathered chunk: table into the slot, header to job.headers.
template <class Team>
LMKV_BODY void seal_chunk(Team& team, const CopyJob& job, ChunkEnd<Team>& end, uint32_t chunk) {
  const uint32_t segments = job.shape.segments;
  const uint64_t* const digests = job.digests + uint64_t(chunk) * segments;
  uint64_t* const table = slot_words(job, chunk) + kHeaderWords;
  typename Team::template Local<Lmx64> parts;
  team.phase([&](int thread) {
    Lmx64 sums;
    for (uint32_t n = uint32_t(thread); n < (segments + 1) / 2; n += Team::kSize) {
      const uint64_t low = load_word(digests + 2 * n);
      const uint64_t high = 2 * n + 1 < segments ? load_word(digests + 2 * n + 1) : 0;
      const uint32_t words[4] = {uint32_t(low), uint32_t(low >> 32), uint32_t(high),
                                 uint32_t(high >> 32)};
      store_piece<16>(reinterpret_cast<uint8_t*>(table + 2 * n), words);
      lmx64_unit(sums, low, high, n + 1);
    }
    parts[thread] = sums;
  });
  const Lmx64 sums = team_sum(team, parts, end.sums);
  team.phase([&](int thread) {
    if (thread != 0) return;
    const uint64_t digest = lmx64_finish(sums, slot_table_bytes(segments), LMKV_TABLE_SEGMENT);
    job.headers[chunk] = sealed_header(job.shape, job.names[chunk], digest);
  });
}

// The verdict on a chunk whose segments have all been read.
template <class Team>
LMKV_BODY void close_chunk(Team& team, const CopyJob& job, ChunkEnd<Team>& end, uint32_t chunk) {
  const uint32_t segments = job.shape.segments, per_chunk = job.layers * job.heads;
  const uint64_t* const digests = job.digests + uint64_t(chunk) * per_chunk;
  const uint64_t* const table = slot_words(job, chunk) + kHeaderWords;
  typename Team::template Local<Lmx64> parts;
  typename Team::template Local<uint64_t> wrong;
  open_chunk(team, job, end, chunk);
  team.phase([&](int thread) {
    Lmx64 sums;
    uint64_t differ = 0;
    // Segment `number` of the slot is digest (layer, head) of this job, if it is in it at all.
    const auto check = [&](uint32_t number, uint64_t entry) {
      if (number < job.first_segment) return;
      const uint32_t layer = (number - job.first_segment) / job.slot_heads;
      const uint32_t head = number - job.first_segment - layer * job.slot_heads;
      if (layer >= job.layers || head >= job.heads) return;
      differ += load_word(digests + layer * job.heads + head) != entry;
    };
    for (uint32_t n = uint32_t(thread); n < (segments + 1) / 2; n += Team::kSize) {
      const uint64_t low = load_word(table + 2 * n), high = load_word(table + 2 * n + 1);
      check(2 * n, low);
      if (2 * n + 1 < segments) check(2 * n + 1, high);
      lmx64_unit(sums, low, high, n + 1);
    }
    parts[thread] = sums;
    wrong[thread] = differ;
  });
  const Lmx64 sums = team_sum(team, parts, end.sums);
  const uint64_t differ = team_sum(team, wrong, end.wrong);
  team.phase([&](int thread) {
    if (thread != 0) return;
    const SlotHeader header = as_header(end.header);
    const uint64_t digest = lmx64_finish(sums, slot_table_bytes(segments), LMKV_TABLE_SEGMENT);
    uint32_t verdict = end.verdict;
    if (verdict == SLOT_GOOD && (digest != header.table_digest || differ != 0)) {
      verdict = SLOT_DIGEST;
    }
    // Not all segments were read: it was another slot then.
    if (verdict == SLOT_GOOD && end.refused != 0) verdict = SLOT_GONE;
    job.verdicts[chunk] = verdict;
  });
}

// The launches around a gather; thread `n` of all has chunk n.
LMKV_BODY void clear_slot(const HeaderJob& job, uint32_t n) {
  if (n >= job.chunks) return;
  store_word(reinterpret_cast<uint64_t*>(job.slots[n]), 0);
  fence_system();
}

LMKV_BODY void publish_slot(const HeaderJob& job, uint32_t n) {
  if (n >= job.chunks) return;
  uint64_t* const slot = reinterpret_cast<uint64_t*>(job.slots[n]);
  const uint64_t* const header = reinterpret_cast<const uint64_t*>(job.headers + n);
  for (int word = 1; word < kHeaderWords; ++word) store_word(slot + word, header[word]);
  fence_system();
  store_word(slot, header[0]);
}

}  // namespace lmkv
