// Memory for the directory's table: slabs of 2 MiB, made ready beside it.
//
// The system clears a huge page in 0.1 ms, and in a virtual machine that must first ask its host
// for it in 6 ms: no locate should wait for that. So a thread touches the next slabs ahead of need;
// it begins with the first call of ready(), and while it is behind take() maps a slab by itself.
// Who can wait asks lacking() first.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace lmkv {

class Slabs {
 public:
  static constexpr std::size_t kBytes = std::size_t{2} << 20;
  static constexpr std::size_t kMostReady = 128;
  static constexpr std::size_t kEnough = 64;  // for all sub-tables that begin with one message

  Slabs() = default;
  ~Slabs();
  Slabs(const Slabs&) = delete;
  Slabs& operator=(const Slabs&) = delete;

  // A slab of zeros, aligned to its size; it is freed with this. Raises std::bad_alloc.
  void* take();
  // So many are to be ready, at most kMostReady or as many as are taken; what is beyond that goes
  // back to the system.
  void ready(std::size_t slabs);
  // Fewer are ready than the next few calls of take() may need, and they are being made.
  bool lacking();

  std::size_t taken() const { return taken_.size(); }
  std::size_t bytes();  // those that are ready too

 private:
  void run();

  std::vector<void*> taken_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::vector<void*> ready_;
  std::size_t wanted_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace lmkv
