// Gather, scatter, verify and audit of many chunks in one launch, the digests in the same pass.
//
// One team copies one segment (chunk, layer, head) at a time, and takes the next one a grid further
// on, so that the number of blocks launched limits the multiprocessors used. Thread t copies every
// 256th unit of 16 bytes from t on, some loads ahead of as many stores. The segment's digest is the
// team's sum. The team that finishes a chunk's last segment ends the chunk (slot_ends.h).
//
// Write path: clear (a launch before) -> gather: payload, table, and the header to `headers` -> the
// host sees the stream's event -> header into the slot, word 0 last: by the host for a pool in host
// memory, by `publish` for one in GPU memory -> admit, announce.
// Read path: scatter or verify judges a slot's header before it touches anything, and header, table
// and digests after the last byte. A verdict of SLOT_DIGEST is asked once more by another launch.
#pragma once

#include "access.h"
#include "jobs.h"
#include "slot_ends.h"
#include "team.h"

namespace lmkv {

enum class Copy {
  gather,   // pages to slot
  scatter,  // slot to pages
  verify,   // slot alone
  audit,    // pages alone, against the slot's table
};

template <Copy kCopy>
constexpr bool kReadsPages = kCopy == Copy::gather || kCopy == Copy::audit;

// Units in flight in a thread; narrow accesses are many to a unit.
template <int kPiece>
constexpr int kDepth = kPiece / 2;

constexpr uint32_t kMaxPages = 256;  // addresses kept at once; a multiple of 16, so that they hold
                                     // whole units whatever the run's length

template <class Team>
struct CopyShared {
  uint8_t* page[kMaxPages];
  Lmx64 sums[Team::kWarps];
  ChunkEnd<Team> end;
};

// Some (plane, block) pages of one segment, whose addresses the team has put into `page`.
template <int kPiece>
struct PageRuns {
  const PagedKv& pages;
  uint8_t* const* page;
  uint32_t pieces;  // in these pages

  static constexpr uint32_t kPieces = 16 / kPiece;  // of a unit, each wherever it lies

  struct Place {
    uint8_t* page;
    uint32_t offset;
  };
  LMKV_BODY Place place(uint32_t n) const {
    const uint32_t run = pages.run_pieces.quotient(n);
    const uint32_t in_run = n - run * pages.run_pieces.divisor;
    const uint32_t which = pages.page_runs.quotient(run);
    const uint32_t token = run - which * pages.page_runs.divisor;
    return {page[which], token * pages.token_stride + in_run * kPiece};
  }

  // Zeros behind the last piece. `kWhole`: the unit has all its pieces in these pages.
  template <bool kWhole>
  LMKV_BODY void load(uint32_t unit, uint32_t (&words)[4]) const {
    LMKV_UNROLL
    for (uint32_t i = 0; i < kPieces; ++i) {
      uint32_t* const to = words + i * (kPiece / 4);
      if (kWhole || unit * kPieces + i < pieces) {
        const Place from = place(unit * kPieces + i);
        load_piece<kPiece>(to, from.page + from.offset);
      } else {
        for (int word = 0; word < kPiece / 4; ++word) to[word] = 0;
      }
    }
  }

  template <bool kWhole>
  LMKV_BODY void store(uint32_t unit, const uint32_t (&words)[4]) const {
    LMKV_UNROLL
    for (uint32_t i = 0; i < kPieces; ++i) {
      if (!kWhole && unit * kPieces + i >= pieces) return;
      const Place to = place(unit * kPieces + i);
      if (to.page != nullptr) store_piece<kPiece>(to.page + to.offset, words + i * (kPiece / 4));
    }
  }
};

// One turn of one thread: units first, first + kSize, .. before `units`, all loaded before any is
// stored. `kWhole`: there are kDepth, and all are whole.
template <Copy kCopy, bool kWhole, int kStep, int kPiece>
LMKV_BODY void copy_turn(const PageRuns<kPiece>& runs, uint8_t* slot, uint32_t first,
                         uint32_t units, uint32_t before, Lmx64& sums) {
  Unit held[kDepth<kPiece>];
  LMKV_UNROLL
  for (int i = 0; i < kDepth<kPiece>; ++i) {
    const uint32_t n = first + uint32_t(i * kStep);
    if (!kWhole && n >= units) break;
    if constexpr (kReadsPages<kCopy>) {
      runs.template load<kWhole>(n, held[i].word);
    } else {
      load_piece<16>(held[i].word, slot + uint64_t(n) * 16);
    }
  }
  LMKV_UNROLL
  for (int i = 0; i < kDepth<kPiece>; ++i) {
    const uint32_t n = first + uint32_t(i * kStep);
    if (!kWhole && n >= units) break;
    const uint32_t(&w)[4] = held[i].word;
    if constexpr (kCopy == Copy::gather) store_piece<16>(slot + uint64_t(n) * 16, w);
    if constexpr (kCopy == Copy::scatter) runs.template store<kWhole>(n, w);
    lmx64_unit(sums, w[0], w[1], w[2], w[3], before + n + 1);
  }
}

// Units [0, units) of one stretch of a segment: `slot` is its first byte there, and `before` the
// number of units before it.
template <Copy kCopy, int kPiece, class Team>
LMKV_BODY void copy_units(Team& team, const PageRuns<kPiece>& runs, uint8_t* slot, uint32_t before,
                          uint32_t units, typename Team::template Local<Lmx64>& sums) {
  constexpr int kStep = Team::kSize;
  constexpr uint32_t kTurn = kDepth<kPiece> * kStep;
  const uint32_t whole = kCopy == Copy::verify ? units : runs.pieces / runs.kPieces;
  team.phase([&](int thread) {
    Lmx64 sum = sums[thread];
    uint32_t first = uint32_t(thread);
    for (; first + (kTurn - kStep) < whole; first += kTurn) {
      copy_turn<kCopy, true, kStep>(runs, slot, first, units, before, sum);
    }
    for (; first < units; first += kTurn) {
      copy_turn<kCopy, false, kStep>(runs, slot, first, units, before, sum);
    }
    sums[thread] = sum;
  });
}

// One segment of a chunk, page by page; its sums.
template <Copy kCopy, int kPiece, class Team>
LMKV_BODY Lmx64 copy_segment(Team& team, const CopyJob& job, CopyShared<Team>& shared,
                             uint32_t chunk, uint32_t layer, uint32_t head, uint8_t* slot) {
  const PagedKv& pages = job.pages;
  const uint32_t units = uint32_t(job.segment_bytes / 16);
  typename Team::template Local<Lmx64> sums;
  team.phase([&](int thread) { sums[thread] = Lmx64{}; });
  if constexpr (kCopy == Copy::verify) {
    copy_units<kCopy>(team, PageRuns<kPiece>{pages, shared.page, 0}, slot, 0, units, sums);
    return team_sum(team, sums, shared.sums);
  }
  const uint32_t page_pieces = pages.run_pieces.divisor * pages.page_runs.divisor;
  const uint32_t all = pages.planes * pages.blocks;
  const uint32_t* const blocks = job.chunk_blocks + uint64_t(chunk) * pages.blocks;
  uint8_t* const base = pages.layers[layer] + job.head_offset + int64_t(head) * pages.head_stride;
  uint32_t before = 0;
  for (uint32_t first = 0; first < all; first += kMaxPages) {
    const uint32_t count = all - first < kMaxPages ? all - first : kMaxPages;
    team.phase([&](int thread) {
      for (uint32_t n = uint32_t(thread); n < count; n += Team::kSize) {
        const uint32_t plane = (first + n) / pages.blocks;
        const uint32_t block = blocks[first + n - plane * pages.blocks];
        shared.page[n] = block == LMKV_SKIPPED_BLOCK ? nullptr
                                                     : base + int64_t(plane) * pages.plane_stride +
                                                           int64_t(block) * pages.block_stride;
      }
    });
    // The last stretch has the segment's padding too.
    const uint32_t pieces = count * page_pieces;
    const uint32_t stretch = first + count == all ? units - before : pieces / (16 / kPiece);
    copy_units<kCopy>(team, PageRuns<kPiece>{pages, shared.page, pieces}, slot, before, stretch,
                      sums);
    slot += uint64_t(stretch) * 16;
    before += stretch;
  }
  return team_sum(team, sums, shared.sums);
}

// The kernel: all that falls to this team.
template <Copy kCopy, int kPiece, class Team>
LMKV_BODY void copy_chunks(Team& team, const CopyJob& job, CopyShared<Team>& shared) {
  const uint32_t per_chunk = job.layers * job.heads;
  const uint32_t items = job.chunks * per_chunk;
  uint32_t opened = job.chunks, verdict = SLOT_GOOD;  // of which chunk, none yet, and its header's
  for (uint32_t item = team.block(); item < items; item += team.blocks()) {
    const uint32_t chunk = item / per_chunk, in_chunk = item - chunk * per_chunk;
    const uint32_t layer = in_chunk / job.heads, head = in_chunk - layer * job.heads;
    const uint32_t segment = job.first_segment + layer * job.slot_heads + head;
    if (kCopy != Copy::gather && chunk != opened) {
      verdict = open_chunk(team, job, shared.end, chunk);
      opened = chunk;
    }
    const bool refused = verdict != SLOT_GOOD;
    Lmx64 sums;
    if (!refused) {
      uint8_t* const payload = job.slots[chunk] + slot_payload_offset(job.shape.segments);
      sums = copy_segment<kCopy, kPiece>(team, job, shared, chunk, layer, head,
                                         payload + segment * job.segment_bytes);
    }
    if (!arrive(team, job, shared.end, item, lmx64_finish(sums, job.segment_bytes, segment),
                refused)) {
      continue;
    }
    if constexpr (kCopy == Copy::gather) {
      seal_chunk(team, job, shared.end, chunk);
    } else {
      close_chunk(team, job, shared.end, chunk);
    }
  }
}

}  // namespace lmkv
