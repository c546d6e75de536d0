// What all functions share: who may call, which call fails, what a lost context means.
#include "driver.h"

#include <algorithm>
#include <set>
#include <utility>

#include "say.h"

namespace lmkv::fake {

namespace {
thread_local std::uint64_t current_context = 0;
thread_local int capture_mode = cuda::CAPTURE_GLOBAL;

// What a thread that is not relaxed may not call while another captures: it would end the capture.
const std::set<std::string> kUnsafe = {
    "cuMemAlloc_v2",       "cuMemFree_v2",     "cuMemHostRegister_v2",
    "cuMemHostUnregister", "cuModuleLoadData", "cuModuleUnload",
    "cuEventQuery",        "cuMemGetInfo_v2",  "cuIpcOpenMemHandle_v2"};
}  // namespace

int Calls::next(const std::string& symbol) {
  ++counts[symbol];
  int error = cuda::SUCCESS;
  for (auto failure = failures.begin(); failure != failures.end();) {
    const bool meant = failure->symbol == symbol || failure->symbol == "*";
    if (meant && failure->left > 0) --failure->left;
    const bool fails = meant && failure->left == 0;
    if (fails && error == cuda::SUCCESS) error = failure->error;
    failure = fails && !failure->sticky ? failures.erase(failure) : failure + 1;
  }
  return error;
}

Driver& Driver::the() {
  static Driver* const driver = new Driver;  // for ever: its thread ends with the process
  return *driver;
}

int Driver::admit(const char* symbol, Needs needs) {
  if (const int error = calls.next(symbol); error != cuda::SUCCESS) return error;
  if (settings.capturing && capture_mode != cuda::CAPTURE_RELAXED && kUnsafe.contains(symbol)) {
    complaints.push_back(say(symbol, " ended the capture of a graph"));
    return cuda::STREAM_CAPTURE_UNSUPPORTED;
  }
  if (needs == Needs::nothing) return cuda::SUCCESS;
  if (!initialized) return cuda::NOT_INITIALIZED;
  if (needs == Needs::init) return cuda::SUCCESS;
  const int device = current();
  return device < 0 ? int(cuda::INVALID_CONTEXT) : devices[std::size_t(device)].lost;
}

int Driver::current() const {
  for (int device = 0; device < kDevices; ++device) {
    const Device& one = devices[std::size_t(device)];
    if (one.retained > 0 && one.context == current_context) return device;
  }
  return -1;
}

bool Driver::set_current(std::uint64_t context) {
  const auto is_it = [&](const Device& d) { return d.retained > 0 && d.context == context; };
  if (context != 0 && std::none_of(devices.begin(), devices.end(), is_it)) return false;
  current_context = context;
  return true;
}

int Driver::exchange_capture_mode(int mode) { return std::exchange(capture_mode, mode); }

void Driver::lose(int device, int error) {
  devices[std::size_t(device)].lost = error;
  streams.drop(device);
  changed.notify_all();
}

bool Driver::quiet() {
  return changed.wait_for(lock, std::chrono::seconds(10), [&] { return !streams.in_memory(); });
}

bool Driver::reset() {
  if (!streams.reset()) return false;
  complaints.clear(), memory.overruns.clear();
  memory.reset();  // the overruns that it finds are there to be read
  initialized = false;
  settings = {};
  devices = {};
  calls = {};
  modules.clear(), functions.clear();
  changed.notify_all();
  return true;
}

std::vector<std::string> Driver::live() const {
  std::vector<std::string> all;
  memory.live(all);
  for (const Stream* stream : streams.all()) {
    if (stream->handle != 0) all.push_back(say("stream ", hex(stream->handle)));
    if (!stream->empty()) all.push_back(say("work in stream ", hex(stream->handle)));
  }
  for (const auto& [handle, event] : streams.events) all.push_back(say("event ", hex(handle)));
  for (const auto& [handle, device] : modules) all.push_back(say("module ", hex(handle)));
  for (const Device& device : devices) {
    if (device.retained > 0) {
      all.push_back(say("the primary context of device ", &device - devices.data(), ", retained ",
                        device.retained, device.retained == 1 ? " time" : " times"));
    }
  }
  return all;
}

}  // namespace lmkv::fake
