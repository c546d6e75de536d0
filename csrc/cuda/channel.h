// Where copies of one direction run: streams, and room for what launches are told, what they
// answer, and slots on their way. A channel has two lanes, used in turn, so that one launch's slots
// cross the link while another's are copied.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>

#include "cuda/gpu.h"

namespace lmkv::cuda {

// Page-locked memory of this process.
class PinnedMemory {
 public:
  PinnedMemory(Gpu& gpu, std::size_t bytes);
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory();
  std::byte* at(std::size_t offset) const { return data_ + offset; }

 private:
  Gpu& gpu_;
  std::byte* data_;
  std::size_t bytes_;
};

// One stream with its room; one launch at a time.
class Lane {
 public:
  Lane(Gpu& gpu, int urgency, std::size_t staging_bytes);

  CUstream stream() const { return stream_.get(); }
  // While nothing runs here. The host's room begins as the GPU's does; the GPU's goes on.
  void make_room(std::size_t host_bytes, std::size_t device_bytes);
  std::byte* host(std::size_t offset) const { return host_->at(offset); }
  CUdeviceptr device(std::size_t offset) const { return device_->at(offset); }
  void to_device(std::size_t from, std::size_t to);
  void to_host(std::size_t from, std::size_t to);
  CUdeviceptr staging(std::size_t offset) const { return staging_.at(offset); }

  // All that was given to the stream until here; `await` returns when that has ended.
  void mark() { done_.record(stream()); }
  void await() const { done_.wait(); }
  void settle() noexcept { done_.settle(stream()); }

 private:
  Gpu& gpu_;
  Stream stream_;
  Event done_;
  DeviceMemory staging_;
  std::size_t host_bytes_ = 0, device_bytes_ = 0;
  std::unique_ptr<PinnedMemory> host_;
  std::unique_ptr<DeviceMemory> device_;
};

class Channel {
 public:
  static constexpr std::size_t kLanes = 2;

  // `staging_bytes` of the GPU's memory, of which each lane has its part. `urgency` as a stream's.
  Channel(Gpu& gpu, int urgency, std::size_t staging_bytes);
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  ~Channel();

  Lane& lane(std::size_t n) { return *lanes_[n % kLanes]; }
  std::size_t lane_staging() const { return lane_staging_; }
  std::mutex& busy() { return busy_; }  // held through a copy
  // After an error: what was launched has ended, if it ever will.
  void settle() noexcept;

 private:
  Gpu& gpu_;
  std::size_t lane_staging_;
  std::unique_ptr<Lane> lanes_[kLanes];
  std::mutex busy_;
};

}  // namespace lmkv::cuda
