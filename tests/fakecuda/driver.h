// The fake driver: one object, one lock. What cu* functions do to it is in driver_*.cpp; what tests
// do to it, in control.cpp.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/api.h"
#include "kernels.h"
#include "memory.h"
#include "streams.h"

#define LMKV_FAKE_EXPORT __attribute__((visibility("default")))

// What tests call beside lmkv: they play the engine's forward.
#define LMKV_FAKE_MORE_FUNCTIONS(X) \
  X(host_function, cuLaunchHostFunc, (CUstream stream, void (*function)(void*), void* argument))

// The functions, with lmkv's own signatures: another definition does not compile.
#define LMKV_FAKE_DECLARE(name, symbol, arguments) LMKV_FAKE_EXPORT CUresult symbol arguments;
extern "C" {
LMKV_CUDA_FUNCTIONS(LMKV_FAKE_DECLARE)
LMKV_CUDA_NEWER_FUNCTIONS(LMKV_FAKE_DECLARE)
LMKV_FAKE_MORE_FUNCTIONS(LMKV_FAKE_DECLARE)
}
#undef LMKV_FAKE_DECLARE

namespace lmkv::fake {

constexpr int kDevices = 16;

struct Settings {
  int driver_version = 13000;
  int devices = 1;
  std::string name = "Fake GPU";
  int compute_major = 9, compute_minor = 0, multiprocessors = 132;
  std::size_t memory = std::size_t(1) << 30;  // of a device
  bool read_only_registration = true;
  bool capturing = false;  // a thread captures a CUDA graph, and wants no other to disturb it
};

struct Device {
  std::uint64_t context = 0;  // the primary context's handle
  int retained = 0;
  int lost = cuda::SUCCESS;  // the error that its calls return from now on
};

// Calls are counted, and some of them fail.
struct Calls {
  struct Failure {
    std::string symbol;  // "*": any
    std::uint64_t left;  // calls until it fails
    int error;
    bool sticky;  // all calls after it fail too
  };
  std::map<std::string, std::uint64_t> counts;
  std::vector<Failure> failures;

  int next(const std::string& symbol);  // the error that this call returns, or SUCCESS
};

struct Function {
  std::uint64_t module;
  const Kernel* kernel;
};

// What a function needs before it does anything. `cleanup` does its work in a lost context too,
// and returns the context's error.
enum class Needs { nothing, init, context, cleanup };

class Driver {
 public:
  static Driver& the();

  std::mutex lock;
  std::condition_variable_any changed;  // waits with `lock`

  bool initialized = false;
  Settings settings;
  std::array<Device, kDevices> devices;
  Calls calls;
  Memory memory;
  Streams streams{*this};
  std::map<std::uint64_t, int> modules;  // handle: its device
  std::map<std::uint64_t, Function> functions;
  std::vector<std::string> complaints;  // what a test has to know of, or fails by

  int admit(const char* symbol, Needs needs);
  int current() const;  // this thread's device, or -1
  bool set_current(std::uint64_t context);
  static int exchange_capture_mode(int mode);                // this thread's
  std::uint64_t new_handle() { return next_handle_ += 16; }  // never the same again
  // The device's work is dropped, and its calls return `error`.
  void lose(int device, int error);
  // Waits until no operation is in the middle of memory (not: until queues are empty).
  bool quiet();

  bool reset();
  std::vector<std::string> live() const;

 private:
  std::uint64_t next_handle_ = 0x10000;
};

template <class Body>
int call(const char* symbol, Needs needs, Body&& body) {
  Driver& driver = Driver::the();
  std::lock_guard guard(driver.lock);
  const int refused = driver.admit(symbol, needs);
  if (refused != cuda::SUCCESS && needs != Needs::cleanup) return refused;
  if (refused != cuda::SUCCESS) {
    const int device = driver.current();
    if (device < 0 || driver.devices[std::size_t(device)].lost != refused) return refused;
    body(driver);
    return refused;
  }
  const int result = body(driver);
  driver.changed.notify_all();
  return result;
}

template <class Handle>
std::uint64_t number(Handle handle) {
  return reinterpret_cast<std::uint64_t>(handle);
}
template <class Handle>
Handle handle(std::uint64_t number) {
  return reinterpret_cast<Handle>(number);
}

}  // namespace lmkv::fake
