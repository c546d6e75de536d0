#include "cuda/gpu_pool.h"

#include <cstring>

#include "check.h"
#include "layout.h"

namespace lmkv::cuda {

template <class Work>
void SharedMemory::settle(const Work& work) const {
  const auto entered = gpu_.enter();
  const Stream stream(gpu_, 0);
  Event done(gpu_);
  work(stream.get());
  done.record(stream.get());
  done.wait();
}

SharedMemory::SharedMemory(const Gpu& gpu, std::size_t bytes) : gpu_(gpu), bytes_(bytes) {
  REQUIRE(bytes != 0 && bytes % kMultiple == 0, "bytes: ", bytes, " is not a multiple of ",
          kMultiple);
  const auto entered = gpu_.enter();
  gpu_.driver().mem_alloc(&address_, bytes);
  try {  // others map all of it: they see nothing of what it held before
    settle([&](CUstream stream) { gpu_.driver().fill(address_, 0, bytes / 4, stream); });
  } catch (...) {
    close();
    throw;
  }
}

SharedMemory::SharedMemory(const Gpu& gpu, const IpcHandle& handle, std::size_t bytes)
    : gpu_(gpu), bytes_(bytes), opened_(true) {
  CUipcMemHandle theirs;
  std::memcpy(&theirs, handle.data(), sizeof theirs);
  const auto entered = gpu_.enter();
  gpu_.driver().ipc_open(&address_, theirs, IPC_LAZY_PEER_ACCESS);
  CUdeviceptr base = 0;
  std::size_t found = 0;
  try {
    gpu_.driver().mem_range(&base, &found, address_);
    if (base != address_ || found < bytes) {
      throw std::runtime_error(
          sentence("GPU memory of ", found, " bytes, ", bytes, " were announced"));
    }
  } catch (...) {
    close();
    throw;
  }
}

IpcHandle SharedMemory::handle() const {
  CUipcMemHandle made;
  const auto entered = gpu_.enter();
  gpu_.driver().ipc_export(&made, address_);
  IpcHandle handle;
  std::memcpy(handle.data(), &made, sizeof made);
  return handle;
}

CUdeviceptr SharedMemory::at(std::size_t offset, std::size_t bytes) const {
  REQUIRE(address_ != 0, "GPU memory: it is closed");
  REQUIRE(offset <= bytes_ && bytes <= bytes_ - offset, "offset: ", bytes, " bytes at ", offset,
          " of ", bytes_);
  return address_ + offset;
}

void SharedMemory::write(std::size_t offset, std::span<const std::byte> bytes) {
  const CUdeviceptr to = at(offset, bytes.size());
  const auto from = reinterpret_cast<CUdeviceptr>(bytes.data());
  settle([&](CUstream stream) { gpu_.driver().copy(to, from, bytes.size(), stream); });
}

void SharedMemory::read(std::size_t offset, std::span<std::byte> bytes) const {
  const CUdeviceptr from = at(offset, bytes.size());
  const auto to = reinterpret_cast<CUdeviceptr>(bytes.data());
  settle([&](CUstream stream) { gpu_.driver().copy(to, from, bytes.size(), stream); });
}

void SharedMemory::close() noexcept {
  if (address_ == 0) return;
  const auto entered = gpu_.enter_to_undo();
  if (opened_) {
    gpu_.driver().ipc_close.raw(address_);
  } else {
    gpu_.driver().mem_free.raw(address_);
  }
  address_ = 0;
}

GpuPool::GpuPool(SharedMemory& memory, std::uint64_t granule_bytes, std::uint64_t slots)
    : PoolRange(granule_bytes, slots, slots, Tier::device), memory_(memory) {
  REQUIRE(memory.data() != nullptr, "GPU memory: it is closed");
  REQUIRE(reinterpret_cast<std::uintptr_t>(memory.data()) % LMKV_SLOT_ALIGN == 0,
          "GPU memory: it begins at no multiple of ", LMKV_SLOT_ALIGN);
  REQUIRE(slots * slot_bytes() <= memory.bytes(), "slots: ", slots, " of ", slot_bytes(),
          " bytes do not fit into ", memory.bytes());
  base_ = memory.data();
  usable_ = 1;
}

void GpuPool::close() noexcept {
  usable_ = 0;
  base_ = nullptr;
  memory_.close();
}

}  // namespace lmkv::cuda
