#include "cuda/fence.h"

#include <chrono>

namespace lmkv::cuda {

static_assert(Channel::kLanes == 2, "events_ has one for each lane");

Fence::Fence(const Gpu& gpu, std::size_t gathers, const Gpu::Entered&)
    : gpu_(gpu), events_{Event(gpu), Event(gpu)}, left_(gathers) {}

void Fence::passed(std::size_t n, CUstream stream) {
  std::lock_guard lock(mutex_);
  events_[n % Channel::kLanes].record(stream);
  used_[n % Channel::kLanes] = true;
}

void Fence::launched() {
  std::lock_guard lock(mutex_);
  if (left_ != 0) --left_;
  changed_.notify_all();
}

void Fence::end() {
  std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

bool Fence::hold(CUstream stream, double seconds) {
  std::unique_lock lock(mutex_);
  const std::chrono::duration<double> patience(seconds);
  if (!changed_.wait_for(lock, patience, [this] { return ended_ || left_ == 0; })) return false;
  if (ended_) return true;
  const auto entered = gpu_.enter();
  for (std::size_t n = 0; n < Channel::kLanes; ++n) {
    if (used_[n]) gpu_.driver().stream_wait(stream, events_[n].get(), 0);
  }
  return true;
}

}  // namespace lmkv::cuda
