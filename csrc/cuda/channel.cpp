#include "cuda/channel.h"

#include <sys/mman.h>

#include "check.h"

namespace lmkv::cuda {

PinnedMemory::PinnedMemory(Gpu& gpu, std::size_t bytes) : gpu_(gpu), bytes_(bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (data == MAP_FAILED) throw SystemError("mmap");
  data_ = static_cast<std::byte*>(data);
  try {
    gpu_.register_host(data, bytes, false);
  } catch (...) {
    munmap(data, bytes);
    throw;
  }
}

PinnedMemory::~PinnedMemory() {
  gpu_.unregister_host(data_);
  munmap(data_, bytes_);
}

Lane::Lane(Gpu& gpu, int urgency, std::size_t staging_bytes)
    : gpu_(gpu), stream_(gpu, urgency), done_(gpu), staging_(gpu, staging_bytes) {}

void Lane::make_room(std::size_t host_bytes, std::size_t device_bytes) {
  if (host_bytes > host_bytes_) {
    host_.reset();
    host_bytes_ = 0;
    host_ = std::make_unique<PinnedMemory>(gpu_, host_bytes);
    host_bytes_ = host_bytes;
  }
  if (device_bytes > device_bytes_) {
    device_.reset();
    device_bytes_ = 0;
    device_ = std::make_unique<DeviceMemory>(gpu_, device_bytes);
    device_bytes_ = device_bytes;
  }
}

void Lane::to_device(std::size_t from, std::size_t to) {
  const auto host = reinterpret_cast<CUdeviceptr>(host_->at(from));
  gpu_.driver().copy(device(from), host, to - from, stream());
}

void Lane::to_host(std::size_t from, std::size_t to) {
  const auto host = reinterpret_cast<CUdeviceptr>(host_->at(from));
  gpu_.driver().copy(host, device(from), to - from, stream());
}

Channel::Channel(Gpu& gpu, int urgency, std::size_t staging_bytes)
    : gpu_(gpu), lane_staging_(staging_bytes / kLanes) {
  const auto entered = gpu_.enter();
  for (auto& lane : lanes_) lane = std::make_unique<Lane>(gpu, urgency, lane_staging_);
}

Channel::~Channel() {
  settle();
  const auto entered = gpu_.enter_to_undo();
  for (auto& lane : lanes_) lane.reset();
}

void Channel::settle() noexcept {
  const auto entered = gpu_.enter_to_undo();
  for (auto& lane : lanes_) lane->settle();
}

}  // namespace lmkv::cuda
