#include "cuda/gpu_slots.h"

#include <algorithm>
#include <cstddef>

#include "cuda/offsets.h"
#include "jobs.h"

namespace lmkv::cuda {
namespace {

constexpr std::uint32_t kBlocksAMultiprocessor = 2;
constexpr std::size_t kNoStaging = 256;  // slots are used where they are

}  // namespace

GpuSlots::GpuSlots(Gpu& gpu, std::uint32_t multiprocessors)
    : gpu_(gpu),
      grid_(std::min(multiprocessors, std::uint32_t(gpu.multiprocessors())) *
            kBlocksAMultiprocessor) {
  const auto entered = gpu.enter();
  verify_ = gpu.kernel("lmkv_verify_16");
  lane_ = std::make_unique<Lane>(gpu, 0, kNoStaging);
}

GpuSlots::~GpuSlots() {
  const auto entered = gpu_.enter_to_undo();
  lane_->settle();
  lane_.reset();
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
  reseal(slot, header);
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
void GpuSlots::reseal(std::byte* slot, SlotHeader header) {
  constexpr std::size_t kWord = sizeof header.word0;
  auto* const from = array<SlotHeader>(*lane_, 0);
  *from = header;
  settle([&] {
    const Driver& driver = gpu_.driver();
    clear_word(slot);
    driver.copy(as_address(slot + kWord), as_address(from) + kWord, sizeof header - kWord,
                lane_->stream());
    driver.copy(as_address(slot), as_address(from), kWord, lane_->stream());
  });
}

}  // namespace lmkv::cuda
