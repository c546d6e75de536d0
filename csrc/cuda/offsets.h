// Arrays one behind another, in a lane's room: what a launch is told, and what it answers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/channel.h"
#include "layout.h"

namespace lmkv::cuda {

// Each array begins at a multiple of 256.
class Offsets {
 public:
  template <class T>
  std::size_t take(std::size_t count) {
    const std::size_t at = end_;
    end_ = round_up(end_ + count * sizeof(T), 256);
    return at;
  }
  std::size_t end() const { return end_; }

 private:
  std::size_t end_ = 0;
};

template <class T>
T* array(const Lane& lane, std::size_t offset) {
  return reinterpret_cast<T*>(lane.host(offset));
}

template <class T>
T* on_gpu(CUdeviceptr address) {
  return reinterpret_cast<T*>(std::uintptr_t(address));
}

inline CUdeviceptr as_address(const void* host) { return reinterpret_cast<CUdeviceptr>(host); }

}  // namespace lmkv::cuda
