#include "cuda/gpu_copier.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "check.h"
#include "cuda/link_copies.h"
#include "cuda/offsets.h"

namespace lmkv::cuda {
namespace {

constexpr std::size_t kMaxChunks = 256;  // of a launch
constexpr std::uint32_t kBlocksAMultiprocessor = 2;

}  // namespace

// Some chunks of a copy, all in one launch.
struct GpuCopier::Round {
  Kind kind;
  Lane& lane;
  std::span<const GpuChunk> chunks;
  std::size_t first;        // of all the copy's chunks
  std::size_t turn;         // which round
  const SlotLayout& slots;  // theirs, of a part
  const SlotPart* part;
  bool staged, registered, device;
  std::size_t slot_stride;  // of staged slots
  std::uint32_t heads;      // that are copied

  // In the lane's room: what the launch is told, what it answers, and what it works with.
  std::size_t layers_at = 0, slots_at = 0, names_at = 0, blocks_at = 0, told = 0;
  std::size_t headers_at = 0, verdicts_at = 0, answered = 0;
  std::size_t arrived_at = 0, digests_at = 0;

  CUdeviceptr staged_slot(std::size_t n) const { return lane.staging(n * slot_stride); }
};

GpuCopier::GpuCopier(Gpu& gpu, const SlotLayout& layout, Pages pages,
                     std::uint64_t blocks_per_chunk, std::uint64_t kernel_blocks,
                     std::uint32_t multiprocessors)
    : gpu_(gpu),
      layout_(layout),
      pages_(std::move(pages)),
      blocks_per_chunk_(blocks_per_chunk),
      kernel_blocks_(kernel_blocks) {
  pages_.check(kLeastPiece);
  REQUIRE(kernel_blocks >= 1 && pages_.blocks % kernel_blocks == 0,
          "kernel_blocks: ", kernel_blocks, " do not divide ", pages_.blocks, " blocks");
  REQUIRE(multiprocessors >= 1, "multiprocessors: ", multiprocessors, " is not at least 1");
  check_chunk(pages_, blocks_per_chunk * kernel_blocks, layout);
  REQUIRE(layout.segment_bytes <= (1ull << 31) - 64, "segment_bytes: ", layout.segment_bytes,
          " is above 2^31 - 64");
  if (pages_.tokens == 1) pages_.token_stride = std::int64_t(pages_.run_bytes);
  REQUIRE(pages_.token_stride >= 0 &&
              std::uint64_t(pages_.token_stride) * pages_.tokens <= 0xFFFFFFFFull,
          "token_stride: ", pages_.token_stride, " for ", pages_.tokens, " tokens is too wide");
  std::uint64_t bits = pages_.run_bytes;
  for (const std::byte* layer : pages_.layers) bits |= reinterpret_cast<std::uintptr_t>(layer);
  for (const std::int64_t stride :
       {pages_.block_stride, pages_.head_stride, pages_.token_stride, pages_.plane_stride}) {
    bits |= std::uint64_t(stride);
  }
  piece_ = widest_piece(bits);
  REQUIRE(piece_ != 0, "pages: addresses and strides are no multiples of 4 bytes");
  grid_ = std::min(multiprocessors, std::uint32_t(gpu.multiprocessors())) * kBlocksAMultiprocessor;
  gpu.use();
  const std::string suffix = "_" + std::to_string(piece_);
  gather_ = gpu.kernel("lmkv_gather" + suffix);
  scatter_ = gpu.kernel("lmkv_scatter" + suffix);
  audit_ = gpu.kernel("lmkv_audit" + suffix);
  verify_ = gpu.kernel("lmkv_verify_16");
  clear_ = gpu.kernel("lmkv_clear");
  publish_ = gpu.kernel("lmkv_publish");
}

void GpuCopier::check_blocks(std::span<const std::uint32_t> blocks, bool may_skip) const {
  lmkv::check_blocks(blocks, blocks_per_chunk_, pages_.blocks / kernel_blocks_, may_skip);
}

CUfunction GpuCopier::function(Kind kind) const {
  switch (kind) {
    case Kind::gather:
      return gather_;
    case Kind::scatter:
      return scatter_;
    case Kind::audit:
      return audit_;
    case Kind::verify:
      return verify_;
    case Kind::clear:
      return clear_;
  }
  return nullptr;
}

void GpuCopier::gather(Channel& channel, std::span<const GpuChunk> chunks, const Event* after,
                       CopyPath path, Fence* fence) const {
  copy(Kind::gather, channel, chunks, nullptr, after, path, fence);
}

std::vector<SlotStatus> GpuCopier::audit(Channel& channel, std::span<const GpuChunk> chunks) const {
  return copy(Kind::audit, channel, chunks, nullptr, nullptr, CopyPath::direct);
}

std::vector<SlotStatus> GpuCopier::verify(Channel& channel,
                                          std::span<const GpuChunk> chunks) const {
  return copy(Kind::verify, channel, chunks, nullptr, nullptr, CopyPath::direct);
}

void GpuCopier::clear(Channel& channel, std::span<const GpuChunk> chunks) const {
  copy(Kind::clear, channel, chunks, nullptr, nullptr, CopyPath::direct);
}

std::vector<SlotStatus> GpuCopier::scatter(Channel& channel, std::span<const GpuChunk> chunks,
                                           const SlotPart* part, const Event* after,
                                           CopyPath path) const {
  REQUIRE(!part || part->ours() == layout_,
          "part: of slots of another layout than these pages have");
  std::vector<SlotStatus> statuses = copy(Kind::scatter, channel, chunks, part, after, path);
  // A slot that was overwritten meanwhile has another header by now; else it is read once more
  // before it counts as corrupt.
  std::vector<GpuChunk> again;
  for (std::size_t n = 0; n < chunks.size(); ++n) {
    if (statuses[n] == SlotStatus::digest) again.push_back(chunks[n]);
  }
  if (again.empty()) return statuses;
  const std::vector<SlotStatus> second = copy(Kind::scatter, channel, again, part, after, path);
  for (std::size_t n = 0, of = 0; n < chunks.size(); ++n) {
    if (statuses[n] == SlotStatus::digest) statuses[n] = second[of++];
  }
  return statuses;
}

std::vector<SlotStatus> GpuCopier::copy(Kind kind, Channel& channel,
                                        std::span<const GpuChunk> chunks, const SlotPart* part,
                                        const Event* after, CopyPath path, Fence* fence) const {
  std::lock_guard lock(channel.busy());
  const auto entered = gpu_.enter();
  const SlotLayout& slots = part ? part->theirs() : layout_;
  const bool device = !chunks.empty() && chunks.front().device;
  for (const GpuChunk& chunk : chunks) {
    REQUIRE(chunk.device == device, "chunks: some are in a GPU's memory, and some are not");
  }
  REQUIRE(device || (kind != Kind::verify && kind != Kind::clear),
          "chunks: they are not in a GPU's memory");
  const bool registered = device || std::ranges::all_of(chunks, [&](const GpuChunk& chunk) {
                            return gpu_.on_device(chunk.slot, slots.used_bytes()).has_value();
                          });
  const bool staged = !device && (path == CopyPath::staged || !registered);
  const std::size_t stride = round_up(slots.used_bytes(), 256);
  const auto heads = std::uint32_t(part ? part->heads() : pages_.heads);
  REQUIRE(!staged || stride <= channel.lane_staging(), "staging: ", channel.lane_staging(),
          " bytes a lane, a slot has ", stride);
  std::size_t most = std::min<std::size_t>(kMaxChunks, 0x7FFFFFFF / layout_.segments);
  if (staged) most = std::min(most, channel.lane_staging() / stride);

  std::vector<SlotStatus> statuses(chunks.size(), SlotStatus::gone);
  std::optional<Round> running[Channel::kLanes];
  try {
    std::size_t turn = 0;
    for (std::size_t first = 0; first < chunks.size(); first += most, ++turn) {
      auto& round = running[turn % Channel::kLanes];
      if (round) end(*round, statuses);
      const std::size_t count = std::min(most, chunks.size() - first);
      round.emplace(Round{kind, channel.lane(turn), chunks.subspan(first, count), first, turn,
                          slots, part, staged, registered, device, stride, heads});
      launch(*round, after, fence);
    }
    if (fence) fence->launched();
    for (std::size_t n = 0; n < Channel::kLanes; ++n) {
      auto& round = running[(turn + n) % Channel::kLanes];
      if (round) end(*round, statuses);
    }
  } catch (...) {
    channel.settle();
    throw;
  }
  return statuses;
}

void GpuCopier::launch(Round& round, const Event* after, Fence* fence) const {
  const Lane& lane = round.lane;
  lay_out(round);
  tell(round);
  if (round.kind == Kind::gather && !round.device) {
    for (const GpuChunk& chunk : round.chunks) clear_slot(chunk.slot);
  }
  round.lane.to_device(0, round.told);
  gpu_.driver().fill(lane.device(round.arrived_at), 0, round.chunks.size(), lane.stream());
  if (round.staged && round.kind != Kind::gather) bring_in(round);
  if (after) gpu_.driver().stream_wait(lane.stream(), after->get(), 0);
  if (round.device && (round.kind == Kind::gather || round.kind == Kind::clear)) {
    launch_headers(round, clear_);
  }
  if (round.kind == Kind::clear) {
    round.lane.mark();
    return;
  }
  CopyJob job = job_of(round);
  const std::uint32_t grid = std::min(grid_, job.chunks * job.layers * job.heads);
  void* parameters[] = {&job};
  gpu_.driver().launch(function(round.kind), grid, 1, 1, kCopyThreads, 1, 1, 0, lane.stream(),
                       parameters, nullptr);
  if (fence) fence->passed(round.turn, lane.stream());
  if (round.staged && round.kind == Kind::gather) bring_out(round);
  if (round.device && round.kind == Kind::gather) launch_headers(round, publish_);
  round.lane.to_host(round.headers_at, round.answered);
  round.lane.mark();
}

void GpuCopier::launch_headers(const Round& round, CUfunction function) const {
  HeaderJob job{on_gpu<std::uint8_t* const>(round.lane.device(round.slots_at)),
                on_gpu<const SlotHeader>(round.lane.device(round.headers_at)),
                std::uint32_t(round.chunks.size())};
  const std::uint32_t grid = (job.chunks + kHeaderThreads - 1) / kHeaderThreads;
  void* parameters[] = {&job};
  gpu_.driver().launch(function, grid, 1, 1, kHeaderThreads, 1, 1, 0, round.lane.stream(),
                       parameters, nullptr);
}

void GpuCopier::lay_out(Round& round) const {
  const std::size_t count = round.chunks.size(), layers = pages_.layers.size();
  Offsets room;
  round.layers_at = room.take<CUdeviceptr>(layers);
  round.slots_at = room.take<CUdeviceptr>(count);
  round.names_at = room.take<SlotName>(count);
  round.blocks_at = room.take<std::uint32_t>(count * blocks_per_chunk_ * kernel_blocks_);
  round.told = room.end();
  round.headers_at = room.take<SlotHeader>(count);
  round.verdicts_at = room.take<std::uint32_t>(count);
  round.answered = room.end();
  round.arrived_at = room.take<std::uint32_t>(count);
  round.digests_at = room.take<std::uint64_t>(count * layers * round.heads);
  round.lane.make_room(round.answered, room.end());
}

void GpuCopier::tell(const Round& round) const {
  const Lane& lane = round.lane;
  std::ranges::transform(pages_.layers, array<CUdeviceptr>(lane, round.layers_at), as_address);
  auto* blocks = array<std::uint32_t>(lane, round.blocks_at);
  for (std::size_t n = 0; n < round.chunks.size(); ++n) {
    const GpuChunk& chunk = round.chunks[n];
    array<CUdeviceptr>(lane, round.slots_at)[n] =
        round.staged   ? round.staged_slot(n)
        : round.device ? as_address(chunk.slot)
                       : gpu_.on_device(chunk.slot, round.slots.used_bytes()).value_or(0);
    array<SlotName>(lane, round.names_at)[n] = {chunk.key.lo, chunk.key.hi, chunk.generation};
    for (const std::uint32_t block : chunk.blocks) {
      for (std::uint32_t k = 0; k < kernel_blocks_; ++k) {
        *blocks++ = block == kSkippedBlock ? block : std::uint32_t(block * kernel_blocks_ + k);
      }
    }
  }
}

CopyJob GpuCopier::job_of(const Round& round) const {
  const auto at = [&](std::size_t offset) { return round.lane.device(offset); };
  const SlotPart* const part = round.part;
  return {.pages = paged_kv(
              on_gpu<std::uint8_t* const>(at(round.layers_at)), std::uint32_t(pages_.planes),
              std::uint32_t(blocks_per_chunk_ * kernel_blocks_), std::uint32_t(pages_.tokens),
              std::uint32_t(pages_.run_bytes), pages_.block_stride, pages_.head_stride,
              std::uint32_t(pages_.token_stride), pages_.plane_stride, piece_),
          .chunk_blocks = on_gpu<const std::uint32_t>(at(round.blocks_at)),
          .slots = on_gpu<std::uint8_t* const>(at(round.slots_at)),
          .names = on_gpu<const SlotName>(at(round.names_at)),
          .shape = shape_of(round.slots),
          .segment_bytes = round.slots.segment_bytes,
          .head_offset = part ? std::int64_t(part->our_first()) * pages_.head_stride : 0,
          .chunks = std::uint32_t(round.chunks.size()),
          .layers = std::uint32_t(pages_.layers.size()),
          .heads = round.heads,
          .slot_heads = part ? part->their_heads() : round.heads,
          .first_segment = part ? part->their_first() : 0,
          .digests = on_gpu<std::uint64_t>(at(round.digests_at)),
          .arrived = on_gpu<std::uint32_t>(at(round.arrived_at)),
          .headers = on_gpu<SlotHeader>(at(round.headers_at)),
          .verdicts = on_gpu<std::uint32_t>(at(round.verdicts_at))};
}

// Slots to the lane's staging: what the kernel reads of them.
void GpuCopier::bring_in(const Round& round) const {
  const SlotLayout& slots = round.slots;
  const std::size_t table_end = sizeof(SlotHeader) + slot_table_bytes(slots.segments);
  LinkCopies copies;
  for (std::size_t n = 0; n < round.chunks.size(); ++n) {
    const CUdeviceptr to = round.staged_slot(n);
    const CUdeviceptr from = as_address(round.chunks[n].slot);
    if (round.kind == Kind::scatter && !round.part) {
      copies.add(to, from, slots.used_bytes());
      continue;
    }
    copies.add(to, from, table_end);
    for (std::uint32_t layer = 0; round.part && layer < round.part->layers(); ++layer) {
      const std::uint64_t at = round.part->their_offset(layer);
      copies.add(to + at, from + at, round.part->run_bytes());
    }
  }
  copies.run(gpu_.driver(), round.lane.stream(), round.registered);
}

// Gathered slots to the pool: tables and payloads.
void GpuCopier::bring_out(const Round& round) const {
  const SlotLayout& slots = round.slots;
  const std::size_t table = sizeof(SlotHeader), payload = slots.payload_offset();
  LinkCopies copies;
  for (std::size_t n = 0; n < round.chunks.size(); ++n) {
    const CUdeviceptr from = round.staged_slot(n);
    const CUdeviceptr to = as_address(round.chunks[n].slot);
    copies.add(to + table, from + table, slot_table_bytes(slots.segments));
    copies.add(to + payload, from + payload, slots.payload_bytes());
  }
  copies.run(gpu_.driver(), round.lane.stream(), round.registered);
}

// Waits for the round, then publishes what it gathered, or takes its verdicts.
void GpuCopier::end(Round& round, std::vector<SlotStatus>& statuses) const {
  round.lane.await();
  for (std::size_t n = 0; n < round.chunks.size(); ++n) {
    SlotStatus& status = statuses[round.first + n];
    if (round.kind == Kind::gather || round.kind == Kind::clear) {
      if (!round.device) {
        publish(round.chunks[n].slot, array<SlotHeader>(round.lane, round.headers_at)[n]);
      }
      status = SlotStatus::good;
    } else {
      status = SlotStatus(array<std::uint32_t>(round.lane, round.verdicts_at)[n]);
    }
  }
}

}  // namespace lmkv::cuda
