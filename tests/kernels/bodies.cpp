// The kernels' bodies on a CPU for Python's tests (tests/kernels/bodies.py): a plain description
// in, a launch played in shuffled order. Built by the tests themselves, under the undefined
// sanitizer.
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu_team.h"
#include "gather_scatter.h"
#include "hash_chunks.h"

namespace {

using namespace lmkv;

// tests/kernels/bodies.py has the same fields.
struct Launch {
  std::uint32_t teams, threads;  // teams of two warps, real threads
  std::uint64_t seed;
};

using Team = CpuTeam<64>;

struct Copying {
  std::uint32_t copy;   // Copy
  std::uint32_t piece;  // 16, 8, 4
  std::uint8_t* const* layers;
  std::uint32_t planes, blocks, tokens, run_bytes;
  std::int64_t block_stride, head_stride, plane_stride;
  std::uint32_t token_stride;
  const std::uint32_t* chunk_blocks;
  std::uint8_t* const* slots;
  const SlotName* names;
  SlotShape shape;
  std::uint64_t segment_bytes;
  std::int64_t head_offset;
  std::uint32_t chunks, layer_count, heads, slot_heads, first_segment;
  SlotHeader* headers;
  std::uint32_t* verdicts;
};

template <Copy kCopy, int kPiece>
void play(const CopyJob& job, const Launch& launch) {
  run_grid<Team, CopyShared<Team>>(
      launch.teams, launch.seed, launch.threads,
      [&](Team& team, CopyShared<Team>& shared) { copy_chunks<kCopy, kPiece>(team, job, shared); });
}

template <Copy kCopy>
bool play(std::uint32_t piece, const CopyJob& job, const Launch& launch) {
  if (piece == 16) return play<kCopy, 16>(job, launch), true;
  if constexpr (kCopy != Copy::verify) {
    if (piece == 8) return play<kCopy, 8>(job, launch), true;
    if (piece == 4) return play<kCopy, 4>(job, launch), true;
  }
  return false;
}

bool play(Copy copy, std::uint32_t piece, const CopyJob& job, const Launch& launch) {
  switch (copy) {
    case Copy::gather:
      return play<Copy::gather>(piece, job, launch);
    case Copy::scatter:
      return play<Copy::scatter>(piece, job, launch);
    case Copy::verify:
      return play<Copy::verify>(16, job, launch);
    case Copy::audit:
      return play<Copy::audit>(piece, job, launch);
  }
  return false;
}

void play_headers(const HeaderJob& job, const Launch& launch, bool publish) {
  struct Nothing {};
  run_grid<Team, Nothing>((job.chunks + Team::kSize - 1) / Team::kSize, launch.seed, launch.threads,
                          [&](Team& team, Nothing&) {
                            team.phase([&](int thread) {
                              const std::uint32_t n =
                                  team.block() * Team::kSize + std::uint32_t(thread);
                              publish ? publish_slot(job, n) : clear_slot(job, n);
                            });
                          });
}

}  // namespace

extern "C" {

// False: there is no such kernel. `digests` and `arrived` are the caller's, as a driver's would be.
bool lmkv_test_copy(const Copying* c, const Launch* launch, std::uint64_t* digests,
                    std::uint32_t* arrived) {
  const CopyJob job{
      paged_kv(c->layers, c->planes, c->blocks, c->tokens, c->run_bytes, c->block_stride,
               c->head_stride, c->token_stride, c->plane_stride, c->piece),
      c->chunk_blocks,
      c->slots,
      c->names,
      c->shape,
      c->segment_bytes,
      c->head_offset,
      c->chunks,
      c->layer_count,
      c->heads,
      c->slot_heads,
      c->first_segment,
      digests,
      arrived,
      c->headers,
      c->verdicts};
  return play(Copy(c->copy), c->piece, job, *launch);
}

void lmkv_test_headers(std::uint8_t* const* slots, const SlotHeader* headers, std::uint32_t chunks,
                       bool publish, const Launch* launch) {
  play_headers({slots, headers, chunks}, *launch, publish);
}

void lmkv_test_hash(const std::uint8_t* const* chunks, std::uint8_t* digests, std::uint32_t count,
                    std::uint32_t blocks, std::uint32_t piece, const Launch* launch) {
  const HashJob job{chunks, digests, count, blocks};
  run_grid<Team, HashShared<Team>>(
      launch->teams, launch->seed, launch->threads, [&](Team& team, HashShared<Team>& shared) {
        piece == 16 ? hash_chunks<16>(team, job, shared) : hash_chunks<4>(team, job, shared);
      });
}

std::uint32_t lmkv_test_quotient(std::uint32_t n, std::uint32_t divisor) {
  return Divider::by(divisor).quotient(n);
}

std::uint32_t lmkv_test_widest_piece(std::uint64_t bits) { return widest_piece(bits); }
}
