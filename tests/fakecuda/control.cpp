// What tests do to the fake (tests/fakecuda/fake.py calls it, and says what it means).
#include <algorithm>
#include <cstring>

#include "driver.h"
#include "say.h"

using namespace lmkv::fake;

namespace {

struct Name {
  const char *name, *symbol;
  const void* at;
};

// The addresses: a function that is not defined anywhere is an error of the linker.
#define LMKV_FAKE_NAME(name, symbol, arguments) {#name, #symbol, reinterpret_cast<void*>(symbol)},
const Name kNames[] = {LMKV_CUDA_FUNCTIONS(LMKV_FAKE_NAME) LMKV_CUDA_NEWER_FUNCTIONS(LMKV_FAKE_NAME)
                           LMKV_FAKE_MORE_FUNCTIONS(LMKV_FAKE_NAME)};

// A function's symbol by that or by lmkv's name for it; empty: there is none.
std::string symbol_of(const char* name) {
  if (std::strcmp(name, "*") == 0) return name;
  for (const Name& one : kNames) {
    if (std::strcmp(name, one.name) == 0 || std::strcmp(name, one.symbol) == 0) return one.symbol;
  }
  return "";
}

template <class Body>
auto locked(Body&& body) {
  Driver& driver = Driver::the();
  std::lock_guard guard(driver.lock);
  auto result = body(driver);
  driver.changed.notify_all();
  return result;
}

template <class Each, class Line>
std::string lines(const Each& all, Line&& line) {
  std::string text;
  for (const auto& one : all) text += line(one) + "\n";
  return text;
}

std::string read(Driver& driver, const std::string& what) {
  const auto as_is = [](const std::string& line) { return line; };
  if (what == "live") return lines(driver.live(), as_is);
  if (what == "streams") {
    return lines(driver.streams.all(), [](const Stream* stream) { return say(stream->handle); });
  }
  if (what == "log") {
    return lines(driver.streams.log, [](const LogEntry& entry) {
      return say(entry.kind, "\t", entry.stream, "\t", entry.name, "\t", entry.bytes, "\t",
                 entry.blocks);
    });
  }
  // Read once, and forgotten.
  std::vector<std::string> all = std::move(driver.complaints);
  driver.complaints.clear();
  for (std::string& overrun : driver.memory.overruns) all.push_back(std::move(overrun));
  driver.memory.overruns.clear();
  return lines(all, as_is);
}

bool set(Settings& settings, const std::string& name, std::uint64_t value) {
  const auto number = int(value);
  if (name == "devices" && value > kDevices) return false;
  if (name == "memory") return settings.memory = value, true;
  if (name == "capturing") return settings.capturing = value != 0, true;
  if (name == "read_only_registration") return settings.read_only_registration = value != 0, true;
  const struct {
    const char* name;
    int* at;
  } numbers[] = {{"driver_version", &settings.driver_version},
                 {"devices", &settings.devices},
                 {"compute_major", &settings.compute_major},
                 {"compute_minor", &settings.compute_minor},
                 {"multiprocessors", &settings.multiprocessors}};
  for (const auto& one : numbers) {
    if (name == one.name) return *one.at = number, true;
  }
  return false;
}

}  // namespace

#define LMKV_FAKE(type) LMKV_FAKE_EXPORT type

extern "C" {

// False: an operation does not end.
LMKV_FAKE(bool) lmkv_fake_reset() {
  return locked([](Driver& driver) { return driver.reset(); });
}

LMKV_FAKE(bool) lmkv_fake_set(const char* name, std::uint64_t value) {
  return locked([&](Driver& driver) { return set(driver.settings, name, value); });
}

LMKV_FAKE(bool) lmkv_fake_set_device_name(const char* name) {
  return locked([&](Driver& driver) { return driver.settings.name = name, true; });
}

LMKV_FAKE(bool) lmkv_fake_seed(std::uint32_t seed) {
  return locked([&](Driver& driver) { return driver.streams.random.seed(seed), true; });
}

LMKV_FAKE(bool) lmkv_fake_adopt(std::uintptr_t at, std::size_t bytes) {
  return locked([&](Driver& driver) { return driver.memory.adopt(at, bytes); });
}

LMKV_FAKE(bool) lmkv_fake_disown(std::uintptr_t at) {
  return locked([&](Driver& driver) { return driver.quiet() && driver.memory.disown(at); });
}

LMKV_FAKE(bool) lmkv_fake_fail(const char* name, std::uint64_t nth, int error, bool sticky) {
  return locked([&](Driver& driver) {
    const std::string symbol = symbol_of(name);
    if (symbol.empty() || nth == 0) return false;
    driver.calls.failures.push_back({symbol, nth, error, sticky});
    return true;
  });
}

// Calls of it since the last reset; -1: there is no such function.
LMKV_FAKE(std::int64_t) lmkv_fake_calls(const char* name) {
  return locked([&](Driver& driver) -> std::int64_t {
    const std::string symbol = symbol_of(name);
    if (symbol.empty()) return -1;
    std::int64_t count = 0;
    for (const auto& [called, times] : driver.calls.counts) {
      if (symbol == "*" || symbol == called) count += std::int64_t(times);
    }
    return count;
  });
}

LMKV_FAKE(bool) lmkv_fake_lose_context(int device, int error) {
  return locked([&](Driver& driver) {
    if (device < 0 || device >= kDevices) return false;
    return driver.lose(device, error), true;
  });
}

LMKV_FAKE(bool) lmkv_fake_hold(std::uint64_t stream, bool hold) {
  return locked([&](Driver& driver) {
    Stream* const found = driver.streams.find_to_hold(stream);
    return found != nullptr && (found->held = hold, true);
  });
}

LMKV_FAKE(bool) lmkv_fake_hold_all(bool hold) {
  return locked([&](Driver& driver) { return driver.streams.hold_all(hold), true; });
}

LMKV_FAKE(bool) lmkv_fake_step(std::uint64_t stream, double seconds) {
  return locked([&](Driver& driver) {
    Stream* const found = driver.streams.find_to_hold(stream);
    return found != nullptr && driver.streams.step(*found, seconds);
  });
}

LMKV_FAKE(bool) lmkv_fake_drain(double seconds) {
  return locked([&](Driver& driver) { return driver.streams.drain(seconds); });
}

LMKV_FAKE(bool) lmkv_fake_settle(double seconds) {
  return locked([&](Driver& driver) { return driver.streams.settle(seconds); });
}

// -1: there is no such stream.
LMKV_FAKE(int) lmkv_fake_pending(std::uint64_t stream) {
  return locked([&](Driver& driver) {
    const Stream* const found = driver.streams.find_to_hold(stream);
    return found == nullptr ? -1 : int(found->queue.size()) + (found->running ? 1 : 0);
  });
}

// "live", "streams", "log" or "complaints", a line each; good until this thread's next call.
LMKV_FAKE(const char*) lmkv_fake_read(const char* what) {
  thread_local std::string text;
  text = locked([&](Driver& driver) { return read(driver, what); });
  return text.c_str();
}
}
