// The kernels' bodies on a CPU for Python's tests (tests/kernels/bodies.py): a plain description
// in, a launch played in shuffled order. Built by the tests themselves, under the undefined
// sanitizer.
#include <cstdint>

#include "play.h"

namespace {

using namespace lmkv;

// tests/kernels/bodies.py has the same fields.
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
  play_hash({chunks, digests, count, blocks}, piece, *launch);
}

std::uint32_t lmkv_test_quotient(std::uint32_t n, std::uint32_t divisor) {
  return Divider::by(divisor).quotient(n);
}

std::uint32_t lmkv_test_widest_piece(std::uint64_t bits) { return widest_piece(bits); }
}
