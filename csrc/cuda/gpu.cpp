#include "cuda/gpu.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "check.h"

namespace lmkv::cuda {
namespace {

// A driver's own wait spins, or sleeps for longer.
template <class Done>
void poll(Done&& done) {
  auto pause = std::chrono::microseconds(5);
  while (!done()) {
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::microseconds(100));
  }
}

}  // namespace

Gpu::Gpu(const std::string& library, int ordinal)
    : driver_(Driver::load(library)), ordinal_(ordinal) {
  driver_.init(0);
  int count = 0;
  driver_.device_count(&count);
  if (ordinal < 0 || ordinal >= count) {
    throw Error(sentence("gpu: ", ordinal, ", the driver has ", count), SUCCESS);
  }
  driver_.device(&device_, ordinal);
  char text[256] = {};
  driver_.device_name(text, sizeof text - 1, device_);
  name_ = text;
  driver_.device_bus_id(text, sizeof text - 1, device_);
  bus_id_ = text;
  capability_ = 10 * attribute(COMPUTE_CAPABILITY_MAJOR) + attribute(COMPUTE_CAPABILITY_MINOR);
  multiprocessors_ = attribute(MULTIPROCESSOR_COUNT);
  if (capability_ < kOldestCard) {
    throw Error(sentence("GPU ", ordinal, ", ", name_, ", has compute capability ",
                         capability_ / 10, ".", capability_ % 10, ", lmkv needs ", kOldestCard / 10,
                         ".", kOldestCard % 10, " or newer"),
                SUCCESS);
  }
  driver_.primary_retain(&context_, device_);
}

Gpu::~Gpu() {
  const auto entered = enter_to_undo();
  for (const auto& [address, range] : registered_) {
    driver_.host_unregister.raw(reinterpret_cast<void*>(address));
  }
  if (module_) driver_.module_unload.raw(module_);
  driver_.primary_release.raw(device_);
}

Gpu::Entered::Entered(const Driver& driver) : driver_(driver) { driver_.capture_mode(&mode_); }

Gpu::Entered::Entered(const Driver& driver, std::nothrow_t) noexcept : driver_(driver) {
  driver_.capture_mode.raw(&mode_);
}

Gpu::Entered Gpu::enter() const {
  use();
  return Entered(driver_);
}

Gpu::Entered Gpu::enter_to_undo() const noexcept {
  driver_.set_current.raw(context_);
  return Entered(driver_, std::nothrow);
}

int Gpu::attribute(CUdevice_attribute attribute) const {
  int value = 0;
  driver_.device_attribute(&value, attribute, device_);
  return value;
}

std::pair<std::size_t, std::size_t> Gpu::memory() const {
  const auto entered = enter();
  std::size_t free = 0, total = 0;
  driver_.mem_info(&free, &total);
  return {free, total};
}

void Gpu::load(std::span<const std::byte> image) {
  REQUIRE(!image.empty(), "image: it is empty");
  REQUIRE(!module_, "image: the kernels are loaded already");
  use();
  driver_.module_load(&module_, image.data());
  image_.assign(image.begin(), image.end());
}

CUfunction Gpu::kernel(const std::string& name) const {
  CUfunction function = nullptr;
  driver_.module_function(&function, module_, name.c_str());
  return function;
}

void Gpu::register_host(void* address, std::size_t bytes, bool readonly) {
  unsigned int flags = HOST_REGISTER_PORTABLE | HOST_REGISTER_DEVICEMAP;
  if (readonly) flags |= HOST_REGISTER_READ_ONLY;
  driver_.host_register(address, bytes, flags);
  CUdeviceptr device = 0;
  const CUresult result = driver_.host_pointer.raw(&device, address, 0);
  if (result != SUCCESS) {
    driver_.host_unregister.raw(address);
    driver_.fail(driver_.host_pointer.symbol, result);
  }
  std::lock_guard lock(mutex_);
  registered_[reinterpret_cast<std::uintptr_t>(address)] = {bytes, device};
}

void Gpu::unregister_host(void* address) noexcept {
  {
    std::lock_guard lock(mutex_);
    if (!registered_.erase(reinterpret_cast<std::uintptr_t>(address))) return;
  }
  const auto entered = enter_to_undo();
  driver_.host_unregister.raw(address);
}

std::optional<CUdeviceptr> Gpu::on_device(const void* address, std::size_t bytes) const {
  const auto from = reinterpret_cast<std::uintptr_t>(address);
  std::lock_guard lock(mutex_);
  auto after = registered_.upper_bound(from);
  if (after == registered_.begin()) return std::nullopt;
  const auto& [start, range] = *std::prev(after);
  if (bytes > range.bytes || from - start > range.bytes - bytes) return std::nullopt;
  return range.device + (from - start);
}

Event::Event(const Gpu& gpu) : gpu_(gpu) {
  gpu_.driver().event_create(&event_, EVENT_DISABLE_TIMING);
}

Event::~Event() {
  const auto entered = gpu_.enter_to_undo();
  gpu_.driver().event_destroy.raw(event_);
}

bool Event::done() const {
  const auto& query = gpu_.driver().event_query;
  const CUresult result = query.raw(event_);
  if (result != SUCCESS && result != NOT_READY) gpu_.driver().fail(query.symbol, result);
  return result == SUCCESS;
}

void Event::wait() const {
  poll([this] { return done(); });
}

void Event::settle(CUstream stream) noexcept {
  gpu_.driver().event_record.raw(event_, stream);
  poll([this] { return gpu_.driver().event_query.raw(event_) != NOT_READY; });
}

Stream::Stream(const Gpu& gpu, int urgency) : gpu_(gpu) {
  int least = 0, greatest = 0;
  gpu_.driver().priority_range(&least, &greatest);
  gpu_.driver().stream_create(&stream_, STREAM_NON_BLOCKING, urgency ? greatest : least);
}

DeviceMemory::DeviceMemory(const Gpu& gpu, std::size_t bytes) : gpu_(gpu) {
  gpu_.driver().mem_alloc(&address_, bytes);
}

}  // namespace lmkv::cuda
