#include "directory/slabs.h"

#include <sys/mman.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <new>
#include <system_error>

namespace lmkv {

namespace {

// Twice the size, cut to a slab that begins where a huge page can.
void* map() {
  void* raw = mmap(nullptr, 2 * Slabs::kBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t slab = (begin + Slabs::kBytes - 1) / Slabs::kBytes * Slabs::kBytes;
  if (slab > begin) munmap(raw, slab - begin);
  munmap(reinterpret_cast<void*>(slab + Slabs::kBytes), begin + Slabs::kBytes - slab);
  madvise(reinterpret_cast<void*>(slab), Slabs::kBytes, MADV_HUGEPAGE);  // a wish; may be refused
  return reinterpret_cast<void*>(slab);
}

// By writing: MADV_POPULATE_WRITE would hold up every other thread that maps something.
void touch(void* slab) {
  for (std::size_t at = 0; at < Slabs::kBytes; at += 4096)
    static_cast<volatile char*>(slab)[at] = 0;
}

}  // namespace

Slabs::~Slabs() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
  for (void* slab : taken_) munmap(slab, kBytes);
  for (void* slab : ready_) munmap(slab, kBytes);
}

void* Slabs::take() {
  taken_.reserve(taken_.size() + 1);
  void* slab = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (!ready_.empty()) {
      slab = ready_.back();
      ready_.pop_back();
    }
  }
  if (slab != nullptr) {
    changed_.notify_one();
  } else {
    slab = map();
    if (slab == nullptr) throw std::bad_alloc();
  }
  taken_.push_back(slab);
  return slab;
}

void Slabs::ready(std::size_t slabs) {
  std::vector<void*> surplus;
  {
    std::lock_guard lock(mutex_);
    wanted_ = std::min(slabs, std::max(kMostReady, taken_.size()));
    for (; ready_.size() > wanted_; ready_.pop_back()) surplus.push_back(ready_.back());
  }
  changed_.notify_one();
  for (void* slab : surplus) munmap(slab, kBytes);
  if (wanted_ == 0 || thread_.joinable()) return;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads that wait for them
  try {
    thread_ = std::thread(&Slabs::run, this);
  } catch (const std::system_error&) {  // none to be had: take() does without
    std::lock_guard lock(mutex_);
    wanted_ = 0;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

bool Slabs::lacking() {
  std::lock_guard lock(mutex_);
  return ready_.size() < std::min(wanted_, kEnough);
}

std::size_t Slabs::bytes() {
  std::lock_guard lock(mutex_);
  return (taken_.size() + ready_.size()) * kBytes;
}

void Slabs::run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (ready_.size() >= wanted_) {
      changed_.wait(lock);
      continue;
    }
    lock.unlock();
    void* slab = map();
    if (slab != nullptr) touch(slab);
    lock.lock();
    if (slab == nullptr) {
      wanted_ = 0;  // no memory: whoever takes one finds out
    } else {
      ready_.push_back(slab);
    }
  }
}

}  // namespace lmkv
