// One GPU as a worker uses it: torch's own context, the kernels, registered host memory, streams
// and events. Thread-safe; whoever calls the driver beside a capture holds what enter() gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cuda/driver.h"

namespace lmkv::cuda {

inline constexpr int kOldestCard = 80;  // compute capability, times ten

class Gpu {
 public:
  // Error: no driver, no such GPU, or one that is too old.
  Gpu(const std::string& library, int ordinal);
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;
  ~Gpu();

  const Driver& driver() const { return driver_; }
  int ordinal() const { return ordinal_; }
  const std::string& name() const { return name_; }
  const std::string& bus_id() const { return bus_id_; }
  int capability() const { return capability_; }  // 90: sm_90
  int multiprocessors() const { return multiprocessors_; }
  // The kernels, as fatbin, cubin or PTX; once. Error: they do not run on this GPU.
  void load(std::span<const std::byte> image);
  CUfunction kernel(const std::string& name) const;
  std::span<const std::byte> image() const { return image_; }  // what was loaded

  // Makes the context this thread's, and lets it go on while another thread captures a CUDA graph:
  // else its calls would fail, and end that capture. The thread may be vLLM's own, which is left as
  // it was found.
  class Entered {
   public:
    explicit Entered(const Driver& driver);
    Entered(const Driver& driver, std::nothrow_t) noexcept;
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;
    ~Entered() { driver_.capture_mode.raw(&mode_); }

   private:
    const Driver& driver_;
    CUstreamCaptureMode mode_ = CAPTURE_RELAXED;  // then what it was
  };
  [[nodiscard]] Entered enter() const;
  // The same for what undoes things, whose errors nobody hears.
  [[nodiscard]] Entered enter_to_undo() const noexcept;
  // Free bytes of its memory, and all.
  std::pair<std::size_t, std::size_t> memory() const;
  // Makes the context this thread's.
  void use() const { driver_.set_current(context_); }

  // Pins host memory, so that kernels reach it, and copies go at the link's speed; `readonly` for
  // a mapping that is. Error; nothing overlaps what is registered.
  void register_host(void* address, std::size_t bytes, bool readonly);
  void unregister_host(void* address) noexcept;
  // Where kernels find these bytes; nothing when they are not registered as a whole.
  std::optional<CUdeviceptr> on_device(const void* address, std::size_t bytes) const;

 private:
  int attribute(CUdevice_attribute attribute) const;

  struct Range {
    std::size_t bytes;
    CUdeviceptr device;
  };

  const Driver& driver_;
  int ordinal_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  CUmodule module_ = nullptr;
  std::vector<std::byte> image_;
  std::string name_, bus_id_;
  int capability_ = 0, multiprocessors_ = 0;
  mutable std::mutex mutex_;
  std::map<std::uintptr_t, Range> registered_;  // by host address
};

// In the order of a stream, or of the engine's.
class Event {
 public:
  explicit Event(const Gpu& gpu);
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();  // on any thread: Python's collector may run on one that has no context
  CUevent get() const { return event_; }
  void record(CUstream stream) { gpu_.driver().event_record(event_, stream); }
  bool done() const;  // Error when the context is lost
  // Until it is. That is after the engine's own work which the stream waits for, so it has no
  // deadline: a scatter that was given up would write into blocks of another request. It ends with
  // that work, or by an Error when the context is lost.
  void wait() const;
  // What the stream has been given has ended, or its context is lost and nothing runs any more.
  void settle(CUstream stream) noexcept;

 private:
  const Gpu& gpu_;
  CUevent event_ = nullptr;
};

class Stream {
 public:
  // 0: the least urgent; 1: the most.
  Stream(const Gpu& gpu, int urgency);
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { gpu_.driver().stream_destroy.raw(stream_); }
  CUstream get() const { return stream_; }

 private:
  const Gpu& gpu_;
  CUstream stream_ = nullptr;
};

// Memory of the GPU.
class DeviceMemory {
 public:
  DeviceMemory(const Gpu& gpu, std::size_t bytes);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { gpu_.driver().mem_free.raw(address_); }
  CUdeviceptr at(std::size_t offset) const { return address_ + offset; }

 private:
  const Gpu& gpu_;
  CUdeviceptr address_ = 0;
};

}  // namespace lmkv::cuda
