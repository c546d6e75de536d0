// Where a copy's reads of the engine's blocks end: so that a stream can be made to come after them,
// and no host thread waits until they are done.
//
//   Fence fence(gpu, gathers); copier.gather(.., &fence) ..; fence.end()     the copy's thread
//   fence.hold(stream, seconds)                                               the engine's
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>

#include "cuda/channel.h"

namespace lmkv::cuda {

class Fence {
 public:
  // Of so many gathers on one channel, one after another; by any thread.
  Fence(const Gpu& gpu, std::size_t gathers) : Fence(gpu, gathers, gpu.enter()) {}
  Fence(const Fence&) = delete;
  Fence& operator=(const Fence&) = delete;

  // A gather's thread: what lane `n` has been given until here reads blocks; no more is given.
  void passed(std::size_t n, CUstream stream);
  void launched();
  // It has ended, or failed: nothing of it runs any more.
  void end();

  // The stream's further work comes after the copy's reads. False: in so many seconds not all of
  // them were launched. Error: of the driver.
  bool hold(CUstream stream, double seconds);

 private:
  Fence(const Gpu& gpu, std::size_t gathers, const Gpu::Entered& entered);

  const Gpu& gpu_;
  Event events_[Channel::kLanes];
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  bool used_[Channel::kLanes] = {};
  std::size_t left_;
  bool ended_ = false;
};

}  // namespace lmkv::cuda
