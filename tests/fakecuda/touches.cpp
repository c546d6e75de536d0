// Which memory a launch touches, run by run, judged before it is played: the first range that is
// not the device's loses the context, as it does on a GPU.
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "say.h"

namespace lmkv::fake {

namespace {

constexpr int kMisaligned = 716;  // cuda.h's CUDA_ERROR_MISALIGNED_ADDRESS

class Judge {
 public:
  Judge(const Kernel& kernel, const Memory& memory) : kernel_(kernel), memory_(memory) {}

  // These say whether the launch goes on. `what` is made into text only when it does not.
  template <class... Part>
  bool reads(Address at, std::uint64_t bytes, std::uint32_t align, const Part&... what) {
    return touches(false, at, bytes, align, what...);
  }
  template <class... Part>
  bool writes(Address at, std::uint64_t bytes, std::uint32_t align, const Part&... what) {
    return touches(true, at, bytes, align, what...);
  }
  bool allowed(Address at, std::uint64_t bytes, bool write) const {
    return memory_.fault(at, bytes, write).empty();
  }

  template <class T, class... Part>
  bool reads_array(const T* array, std::uint64_t count, const Part&... what) {
    return reads(Address(array), count * sizeof(T), alignof(T), what...);
  }
  template <class T, class... Part>
  bool writes_array(const T* array, std::uint64_t count, const Part&... what) {
    return writes(Address(array), count * sizeof(T), alignof(T), what...);
  }

  // Scratch that kernels count in, or read again and again.
  void on_device(const void* at, const char* what) {
    const Range* const range = memory_.find(Address(at));
    if (range == nullptr || range->kind != Kind::registered) return;
    complain(say("its ", what, " are in the host's memory"));
  }
  void complain(const std::string& what) { to.complaints.push_back(say(kernel_.name, ": ", what)); }

  Judgement to;

 private:
  template <class... Part>
  bool touches(bool write, Address at, std::uint64_t bytes, std::uint32_t align,
               const Part&... what) {
    std::string why = memory_.fault(at, bytes, write);
    if (why.empty() && (align == 0 || at % align == 0)) return true;
    to.error = why.empty() ? kMisaligned : int(cuda::ILLEGAL_ADDRESS);
    if (why.empty()) why = say(hex(at), ", which is no multiple of ", align);
    to.why = say(kernel_.name, write ? " writes " : " reads ", bytes, " bytes of its ",
                 say(what...), ": there is ", why);
    return false;
  }

  const Kernel& kernel_;
  const Memory& memory_;
};

// One (layer, head, plane, block) of a chunk: its runs.
bool page(Judge& judge, const Kernel& kernel, const CopyJob& job, std::uint32_t layer,
          std::uint32_t block, Address at) {
  const PagedKv& pages = job.pages;
  const bool write = kernel.does == Does::scatter;
  const std::uint64_t run = std::uint64_t(pages.run_pieces.divisor) * kernel.piece;
  const std::uint32_t runs = pages.page_runs.divisor;
  const std::uint64_t span = std::uint64_t(runs - 1) * pages.token_stride + run;
  const bool even = at % kernel.piece == 0 && (runs == 1 || pages.token_stride % kernel.piece == 0);
  if (even && judge.allowed(at, span, write)) return true;
  for (std::uint32_t n = 0; n < runs; ++n, at += pages.token_stride) {
    const bool fine =
        write ? judge.writes(at, run, kernel.piece, "page, layer ", layer, ", block ", block)
              : judge.reads(at, run, kernel.piece, "page, layer ", layer, ", block ", block);
    if (!fine) return false;
  }
  return true;
}

bool pages_of_chunk(Judge& judge, const Kernel& kernel, const CopyJob& job, std::uint32_t chunk) {
  const PagedKv& pages = job.pages;
  const std::uint32_t* const blocks = job.chunk_blocks + std::uint64_t(chunk) * pages.blocks;
  for (std::uint32_t layer = 0; layer < job.layers; ++layer) {
    for (std::uint32_t head = 0; head < job.heads; ++head) {
      for (std::uint32_t n = 0; n < pages.planes * pages.blocks; ++n) {
        const std::uint32_t block = blocks[n % pages.blocks];
        if (block == LMKV_SKIPPED_BLOCK && kernel.does == Does::scatter) continue;
        const std::int64_t offset = job.head_offset + std::int64_t(head) * pages.head_stride +
                                    std::int64_t(n / pages.blocks) * pages.plane_stride +
                                    std::int64_t(block) * pages.block_stride;
        const Address at = Address(pages.layers[layer]) + Address(offset);
        if (!page(judge, kernel, job, layer, block, at)) return false;
      }
    }
  }
  return true;
}

bool slot_of_chunk(Judge& judge, const Kernel& kernel, const CopyJob& job, std::uint32_t chunk) {
  const Address slot = Address(job.slots[chunk]), table = slot + sizeof(SlotHeader);
  const std::uint64_t table_bytes = slot_table_bytes(job.shape.segments);
  const bool write = kernel.does == Does::gather;
  if (write ? !judge.writes(table, table_bytes, 16, "slot's table, chunk ", chunk)
            : !judge.reads(slot, sizeof(SlotHeader) + table_bytes, 16, "slot, chunk ", chunk)) {
    return false;
  }
  if (kernel.does == Does::audit) return true;
  const Address payload = slot + slot_payload_offset(job.shape.segments);
  for (std::uint32_t n = 0; n < job.layers * job.heads; ++n) {
    const std::uint32_t number = job.first_segment + n / job.heads * job.slot_heads + n % job.heads;
    const Address at = payload + number * job.segment_bytes;
    if (write ? !judge.writes(at, job.segment_bytes, 16, "slot's payload, chunk ", chunk)
              : !judge.reads(at, job.segment_bytes, 16, "slot's payload, chunk ", chunk)) {
      return false;
    }
  }
  return true;
}

bool copy(Judge& judge, const Kernel& kernel, const CopyJob& job) {
  const std::uint64_t items = std::uint64_t(job.chunks) * job.layers * job.heads;
  const bool paged = kernel.does != Does::verify, gathers = kernel.does == Does::gather;
  if (items >= 1u << 31) judge.complain(say(items, " segments in one launch"));
  if (job.segment_bytes > (1u << 31) - 64) judge.complain("a segment of more than 2^31 - 64 bytes");
  bool fine = judge.reads_array(job.slots, job.chunks, "slots") &&
              judge.reads_array(job.names, job.chunks, "names") &&
              judge.writes_array(job.digests, items, "digests") &&
              judge.writes_array(job.arrived, job.chunks, "arrived") &&
              (gathers ? judge.writes_array(job.headers, job.chunks, "headers")
                       : judge.writes_array(job.verdicts, job.chunks, "verdicts"));
  if (paged) {
    fine = fine && judge.reads_array(job.pages.layers, job.layers, "layers") &&
           judge.reads_array(job.chunk_blocks, std::uint64_t(job.chunks) * job.pages.blocks,
                             "chunk_blocks");
  }
  for (std::uint32_t chunk = 0; fine && chunk < job.chunks; ++chunk) {
    fine = slot_of_chunk(judge, kernel, job, chunk) &&
           (!paged || pages_of_chunk(judge, kernel, job, chunk));
  }
  if (!fine) return false;
  judge.on_device(job.digests, "digests"), judge.on_device(job.arrived, "arrived");
  if (paged) judge.on_device(job.chunk_blocks, "chunk_blocks");
  const auto zero = [](std::uint32_t count) { return count == 0; };
  if (!std::all_of(job.arrived, job.arrived + job.chunks, zero)) {
    judge.complain("its arrived are not zero before the launch");
  }
  return true;
}

bool headers(Judge& judge, const Kernel& kernel, const HeaderJob& job) {
  const bool publish = kernel.does == Does::publish;
  bool fine = judge.reads_array(job.slots, job.chunks, "slots") &&
              (!publish || judge.reads_array(job.headers, job.chunks, "headers"));
  for (std::uint32_t n = 0; fine && n < job.chunks; ++n) {
    fine = judge.writes(Address(job.slots[n]), publish ? sizeof(SlotHeader) : 8, 16,
                        "slot's header, chunk ", n);
  }
  return fine;
}

bool hash(Judge& judge, const Kernel& kernel, const HashJob& job) {
  if (job.blocks < 1 || job.blocks > 16) judge.complain(say(job.blocks, " blocks in a chunk"));
  bool fine = judge.reads_array(job.chunks, job.count, "chunks") &&
              judge.writes(Address(job.digests), 32ull * job.count, 16, "digests");
  for (std::uint32_t n = 0; fine && n < job.count; ++n) {
    fine = judge.reads(Address(job.chunks[n]), 64ull * job.blocks, kernel.piece, "chunk ", n);
  }
  return fine;
}

}  // namespace

Judgement judge(const Kernel& kernel, const Job& job, const Memory& memory) {
  Judge judge(kernel, memory);
  if (const auto* const copying = std::get_if<CopyJob>(&job)) {
    copy(judge, kernel, *copying);
  } else if (const auto* const header = std::get_if<HeaderJob>(&job)) {
    headers(judge, kernel, *header);
  } else {
    hash(judge, kernel, std::get<HashJob>(job));
  }
  return judge.to;
}

}  // namespace lmkv::fake
