// A puller's slots in a GPU's memory: cleared, judged to the last byte and resealed there, by the
// driver's copies and lmkv_verify; parts of them by lmkv_audit. No host thread reads or writes
// them.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cuda/channel.h"
#include "slots/own_slots.h"

namespace lmkv::cuda {

// Calls wait for the GPU, one at a time; the calling thread keeps its context. Error: of the
// driver.
class GpuSlots final : public OwnSlots {
 public:
  // `gpu` has its kernels; at most `multiprocessors` are taken from whoever computes there.
  GpuSlots(Gpu& gpu, std::uint32_t multiprocessors);
  ~GpuSlots() override;

  void clear(std::span<std::byte* const> slots) override;
  SlotStatus adopt(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t theirs,
                   std::uint64_t ours, std::uint64_t room) override;
  std::byte* memory(std::size_t bytes) override;
  SlotStatus check(const std::byte* header, std::byte* own, const SlotPart& part, const Key& key,
                   std::uint64_t theirs, std::span<std::uint64_t> table) override;
  void seal(std::byte* slot, const SlotLayout& layout, const Key& key, std::uint64_t ours,
            std::span<const std::uint64_t> table) override;

 private:
  SlotStatus verify(std::byte* slot, const SlotLayout& layout, const Key& key,
                    std::uint64_t generation, SlotHeader& header);
  // The lane's room begins with header and table, `bytes` in all.
  void publish(std::byte* slot, std::size_t bytes);
  void clear_word(std::byte* slot);
  // Calls `work()`, and waits for what that has put into the stream.
  template <class Work>
  void settle(const Work& work);

  Gpu& gpu_;
  std::uint32_t grid_;
  CUfunction verify_ = nullptr, audit_ = nullptr;
  std::mutex busy_;
  std::unique_ptr<Lane> lane_;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
};

}  // namespace lmkv::cuda
