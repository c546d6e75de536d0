// Streams are queues. One thread takes an operation at a time from the head of any stream that may
// go on, which one a seed decides; so what no event orders comes in any order.
//
// A held stream's operations stay where they are. A wait is for the event's last record at the time
// of the call, as CUDA has it. All members are called under the driver's lock, but run().
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "kernels.h"

namespace lmkv::fake {

class Driver;
using Clock = std::chrono::steady_clock;

struct Event {
  std::uint64_t handle;
  int device;
  bool timed;
  std::uint64_t recorded = 0;         // its last record; 0: never
  std::set<std::uint64_t> pending{};  // records that have not been executed
  Clock::time_point at{};             // when the last one was

  bool done() const { return !pending.contains(recorded); }
};
using EventRef = std::shared_ptr<Event>;

struct Launching {
  const Kernel* kernel;
  Job job;
  std::uint32_t blocks;
};
// Memory that is neither the device's nor registered is read and written without a check, as a
// driver does; `snapshot` is what was read at the call already.
struct Piece {
  Address to, from;
  std::size_t bytes;
  bool to_pageable, from_pageable;
  std::vector<unsigned char> snapshot;
};
struct Copying {
  bool batch;
  std::vector<Piece> pieces;
};
struct Filling {
  Address to;
  std::uint32_t word;
  std::size_t words;
};
struct Recording {
  EventRef event;
  std::uint64_t record;
};
struct Waiting {
  EventRef event;
  std::uint64_t record;
};
struct Hosting {
  void (*function)(void*);
  void* argument;
};
using Operation = std::variant<Launching, Copying, Filling, Recording, Waiting, Hosting>;

struct Stream {
  std::uint64_t handle;
  int device;
  bool held = false, running = false, destroyed = false;
  int steps = 0;  // operations that a held stream may do
  std::deque<Operation> queue{};

  bool empty() const { return queue.empty() && !running; }
  bool may_go_on() const;
};

struct LogEntry {
  std::string kind;
  std::uint64_t stream;
  std::string name;
  std::uint64_t bytes;
  std::uint32_t blocks;  // of a launch
};

class Streams {
 public:
  explicit Streams(Driver& driver) : driver_(driver) {}

  std::uint64_t create(int device);
  bool destroy(std::uint64_t handle);
  // nullptr: there is none. Handle 0 is the device's own stream.
  Stream* find(std::uint64_t handle, int device);
  Stream* find_to_hold(std::uint64_t handle);  // also one that was destroyed and has work
  std::vector<const Stream*> all() const;

  EventRef event(std::uint64_t handle) const;
  void record(Stream& stream, const EventRef& event);
  void wait(Stream& stream, const EventRef& event);
  void add(Stream& stream, Operation operation);

  void hold_all(bool hold);
  bool step(Stream& stream, double seconds);
  bool drain(double seconds) const;   // all that is not held is empty
  bool settle(double seconds) const;  // nothing may go on
  bool in_memory() const { return in_memory_; }

  void drop(int device);  // what waits in its streams
  bool reset();           // false: an operation does not end

  std::map<std::uint64_t, EventRef> events;
  std::vector<LogEntry> log;
  std::minstd_rand random{1};

 private:
  void run();
  Stream* pick();
  void execute(Stream& stream);
  template <class Work>
  void unlocked(Work&& work);
  void carry_out(Stream& stream, Launching& launch);
  void carry_out(Stream& stream, Copying& copy);
  void carry_out(Stream& stream, Filling& fill);
  void carry_out(Stream& stream, Recording& recording);
  void carry_out(Stream& stream, Waiting& waiting);
  void carry_out(Stream& stream, Hosting& host);
  void write_down(const Stream& stream, const char* kind, const std::string& name,
                  std::uint64_t bytes, std::uint32_t blocks = 0);
  void lose(const Stream& stream, int error, const std::string& why);

  Driver& driver_;
  std::vector<std::unique_ptr<Stream>> streams_;
  bool born_held_ = false, started_ = false, in_memory_ = false;
  std::uint64_t records_ = 0;
};

}  // namespace lmkv::fake
