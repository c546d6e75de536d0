// A pool in a GPU's memory: one allocation, which other processes on the host open by its CUDA IPC
// handle. It is taken before its slots' size is known: engines measure what memory is left to them
// before they say how their KV lies.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "cuda/gpu.h"
#include "memory/pool.h"

namespace lmkv::cuda {

using IpcHandle = std::array<std::byte, sizeof(CUipcMemHandle)>;

// Memory of a GPU, this process's own or another's. Error: of the driver.
class SharedMemory {
 public:
  static constexpr std::size_t kMultiple = 2 << 20;  // less might share a handle with other memory

  // std::invalid_argument unless `bytes` are so many times kMultiple.
  SharedMemory(const Gpu& gpu, std::size_t bytes);
  // Another process's. std::runtime_error when it is not of `bytes` bytes: a kernel that reads
  // beyond them would end the engine.
  SharedMemory(const Gpu& gpu, const IpcHandle& handle, std::size_t bytes);
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { close(); }

  const Gpu& gpu() const { return gpu_; }
  std::byte* data() const { return reinterpret_cast<std::byte*>(std::uintptr_t(address_)); }
  std::size_t bytes() const { return bytes_; }
  IpcHandle handle() const;  // of one's own
  // Some bytes, and waits; std::invalid_argument beyond the end.
  void write(std::size_t offset, std::span<const std::byte> bytes);
  void read(std::size_t offset, std::span<std::byte> bytes) const;
  void close() noexcept;

 private:
  // Calls `work(stream)` and waits for the stream.
  template <class Work>
  void settle(const Work& work) const;
  CUdeviceptr at(std::size_t offset, std::size_t bytes) const;

  const Gpu& gpu_;
  std::size_t bytes_;
  bool opened_ = false;
  CUdeviceptr address_ = 0;
};

// Slots in it, all of one segment. Behind them the memory is free.
class GpuPool : public PoolRange {
 public:
  // std::invalid_argument when so many do not fit.
  GpuPool(SharedMemory& memory, std::uint64_t granule_bytes, std::uint64_t slots);

  SharedMemory& memory() const { return memory_; }
  // The memory goes too. No copy is under way.
  void close() noexcept;

 private:
  SharedMemory& memory_;
};

}  // namespace lmkv::cuda
