#include "cuda/gpu_slots.h"

#include <algorithm>
#include <cstddef>

#include "cuda/gpu_pool.h"
#include "cuda/offsets.h"
#include "jobs.h"

namespace lmkv::cuda {
namespace {

constexpr std::uint32_t kBlocksAMultiprocessor = 2;
constexpr std::size_t kNoStaging = 256;  // slots are used where they are
constexpr std::uint32_t kPiece = 16;     // segments are multiples of it

}  // namespace

GpuSlots::GpuSlots(Gpu& gpu, std::uint32_t multiprocessors)
    : gpu_(gpu),
      grid_(std::min(multiprocessors, std::uint32_t(gpu.multiprocessors())) *
            kBlocksAMultiprocessor) {
  const auto entered = gpu.enter();
  verify_ = gpu.kernel("lmkv_verify_16");
  audit_ = gpu.kernel("lmkv_audit_16");
  lane_ = std::make_unique<Lane>(gpu, 0, kNoStaging);
}

GpuSlots::~GpuSlots() {
  const auto entered = gpu_.enter_to_undo();
  lane_->settle();
  lane_.reset();
  memory_.clear();
}

template <class Work>
void GpuSlots::settle(const Work& work) {
  try {
    work();
    lane_->mark();
    lane_->await();
  } catch (...) {
    lane_->settle();
    throw;
  }
}

void GpuSlots::clear_word(std::byte* slot) {
  constexpr std::size_t kWords = sizeof(std::uint64_t) / sizeof(std::uint32_t);
  gpu_.driver().fill(as_address(slot), 0, kWords, lane_->stream());
}

void GpuSlots::clear(std::span<std::byte* const> slots) {
  std::lock_guard lock(busy_);
  const auto entered = gpu_.enter();
  settle([&] {
    for (std::byte* slot : slots) clear_word(slot);
  });
}

// Its room is a full slot's.
SlotStatus GpuSlots::adopt(std::byte* slot, const SlotLayout& layout, const Key& key,
                           std::uint64_t theirs, std::uint64_t ours, std::uint64_t) {
  std::lock_guard lock(busy_);
  const auto entered = gpu_.enter();
  SlotHeader header;
  SlotStatus status = verify(slot, layout, key, theirs, header);
  // A header that has changed since it was judged is nobody's.
  if (status == SlotStatus::good) status = check_header(header, layout, key, theirs);
  if (status != SlotStatus::good) {
    settle([&] { clear_word(slot); });
    return status;
  }
  header.generation = ours;
  header.checksum = header_checksum(header);
  *array<SlotHeader>(*lane_, 0) = header;
  publish(slot, sizeof header);
  return status;
}

// Judges the whole slot where it is, and brings its header.
SlotStatus GpuSlots::verify(std::byte* slot, const SlotLayout& layout, const Key& key,
                            std::uint64_t generation, SlotHeader& header) {
  Offsets room;
  const std::size_t slots_at = room.take<CUdeviceptr>(1), names_at = room.take<SlotName>(1);
  const std::size_t told = room.end();
  const std::size_t verdicts_at = room.take<std::uint32_t>(1), answered = room.end();
  const std::size_t header_at = room.take<SlotHeader>(1), host_end = room.end();
  const std::size_t arrived_at = room.take<std::uint32_t>(1);
  const std::size_t digests_at = room.take<std::uint64_t>(layout.segments);
  lane_->make_room(host_end, room.end());
  *array<CUdeviceptr>(*lane_, slots_at) = as_address(slot);
  *array<SlotName>(*lane_, names_at) = {key.lo, key.hi, generation};
  const auto at = [this](std::size_t offset) { return lane_->device(offset); };
  CopyJob job{.pages = {},
              .chunk_blocks = nullptr,
              .slots = on_gpu<std::uint8_t* const>(at(slots_at)),
              .names = on_gpu<const SlotName>(at(names_at)),
              .shape = shape_of(layout),
              .segment_bytes = layout.segment_bytes,
              .head_offset = 0,
              .chunks = 1,
              .layers = 1,
              .heads = layout.segments,
              .slot_heads = layout.segments,
              .first_segment = 0,
              .digests = on_gpu<std::uint64_t>(at(digests_at)),
              .arrived = on_gpu<std::uint32_t>(at(arrived_at)),
              .headers = on_gpu<SlotHeader>(at(header_at)),
              .verdicts = on_gpu<std::uint32_t>(at(verdicts_at))};
  settle([&] {
    const Driver& driver = gpu_.driver();
    lane_->to_device(0, told);
    driver.fill(at(arrived_at), 0, 1, lane_->stream());
    void* parameters[] = {&job};
    driver.launch(verify_, std::min(grid_, layout.segments), 1, 1, kCopyThreads, 1, 1, 0,
                  lane_->stream(), parameters, nullptr);
    lane_->to_host(verdicts_at, answered);
    driver.copy(as_address(lane_->host(header_at)), as_address(slot), sizeof header,
                lane_->stream());
  });
  header = *array<SlotHeader>(*lane_, header_at);
  return SlotStatus(*array<std::uint32_t>(*lane_, verdicts_at));
}

// Word 0 is gone before the rest changes, and comes last.
void GpuSlots::publish(std::byte* slot, std::size_t bytes) {
  constexpr std::size_t kWord = sizeof(SlotHeader::word0);
  const CUdeviceptr from = as_address(lane_->host(0));
  settle([&] {
    const Driver& driver = gpu_.driver();
    clear_word(slot);
    driver.copy(as_address(slot + kWord), from + kWord, bytes - kWord, lane_->stream());
    driver.copy(as_address(slot), from, kWord, lane_->stream());
  });
}

std::byte* GpuSlots::memory(std::size_t bytes) {
  std::lock_guard lock(busy_);
  const auto entered = gpu_.enter();
  const std::size_t whole = round_up(bytes, SharedMemory::kMultiple);
  memory_.push_back(std::make_unique<DeviceMemory>(gpu_, whole));
  return reinterpret_cast<std::byte*>(std::uintptr_t(memory_.back()->at(0)));
}

// The segments, as pages of one run each, are audited by the table that came with them. Before
// that they get their digests with our numbers: what changes in between fails in one of the two.
SlotStatus GpuSlots::check(const std::byte* header, std::byte* own, const SlotPart& part,
                           const Key& key, std::uint64_t theirs, std::span<std::uint64_t> table) {
  std::lock_guard lock(busy_);
  const auto entered = gpu_.enter();
  const SlotLayout& slots = part.theirs();
  const std::size_t count = std::size_t{part.layers()} * part.heads();
  Offsets room;
  const std::size_t slots_at = room.take<CUdeviceptr>(1), names_at = room.take<SlotName>(1);
  const std::size_t layers_at = room.take<CUdeviceptr>(part.layers());
  const std::size_t blocks_at = room.take<std::uint32_t>(1), told = room.end();
  const std::size_t verdicts_at = room.take<std::uint32_t>(1);
  const std::size_t ours_at = room.take<std::uint64_t>(count), answered = room.end();
  const std::size_t arrived_at = room.take<std::uint32_t>(1);
  const std::size_t theirs_at = room.take<std::uint64_t>(count);
  lane_->make_room(answered, room.end());
  *array<CUdeviceptr>(*lane_, slots_at) = as_address(header);
  *array<SlotName>(*lane_, names_at) = {key.lo, key.hi, theirs};
  *array<std::uint32_t>(*lane_, blocks_at) = 0;
  for (std::uint32_t layer = 0; layer < part.layers(); ++layer)
    array<CUdeviceptr>(*lane_, layers_at)[layer] = as_address(own + part.our_offset(layer));
  const auto at = [this](std::size_t offset) { return lane_->device(offset); };
  const auto run = std::uint32_t(slots.segment_bytes);
  CopyJob job{.pages = paged_kv(on_gpu<std::uint8_t* const>(at(layers_at)), 1, 1, 1, run, 0,
                                std::int64_t(slots.segment_bytes), run, 0, kPiece),
              .chunk_blocks = on_gpu<const std::uint32_t>(at(blocks_at)),
              .slots = on_gpu<std::uint8_t* const>(at(slots_at)),
              .names = on_gpu<const SlotName>(at(names_at)),
              .shape = shape_of(slots),
              .segment_bytes = slots.segment_bytes,
              .head_offset = 0,
              .chunks = 1,
              .layers = part.layers(),
              .heads = part.heads(),
              .slot_heads = part.our_heads(),
              .first_segment = part.our_first(),
              .digests = on_gpu<std::uint64_t>(at(ours_at)),
              .arrived = on_gpu<std::uint32_t>(at(arrived_at)),
              .headers = nullptr,
              .verdicts = on_gpu<std::uint32_t>(at(verdicts_at))};
  CopyJob judging = job;
  judging.slot_heads = part.their_heads();
  judging.first_segment = part.their_first();
  judging.digests = on_gpu<std::uint64_t>(at(theirs_at));
  settle([&] {
    const Driver& driver = gpu_.driver();
    lane_->to_device(0, told);
    driver.fill(at(arrived_at), 0, 1, lane_->stream());
    for (CopyJob* each : {&job, &judging}) {
      void* parameters[] = {each};
      driver.launch(audit_, std::min(grid_, std::uint32_t(count)), 1, 1, kCopyThreads, 1, 1, 0,
                    lane_->stream(), parameters, nullptr);
    }
    lane_->to_host(verdicts_at, answered);
  });
  const auto status = SlotStatus(*array<std::uint32_t>(*lane_, verdicts_at));
  if (status != SlotStatus::good) return status;
  const std::uint64_t* const digests = array<std::uint64_t>(*lane_, ours_at);
  for (std::size_t n = 0; n < count; ++n) table[part.our_segment(part.segments()[n])] = digests[n];
  return status;
}

void GpuSlots::seal(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t ours,
                    std::span<const std::uint64_t> table) {
  std::lock_guard lock(busy_);
  const auto entered = gpu_.enter();
  const std::size_t bytes = sizeof(SlotHeader) + table.size_bytes();
  lane_->make_room(bytes, 0);
  seal_slot(lane_->host(0), layout, key, ours, table);
  publish(slot, bytes);
}

}  // namespace lmkv::cuda
