// Queues, events, and how tests hold them.
#include "streams.h"

#include <algorithm>

#include "driver.h"

namespace lmkv::fake {

namespace {

// Until `ready`, but no longer than a test wants to wait.
template <class Ready>
bool wait_until(Driver& driver, double seconds, Ready&& ready) {
  const auto longest = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::min(seconds, 600.0)));
  return driver.changed.wait_for(driver.lock, longest, ready);
}

}  // namespace

bool Stream::may_go_on() const {
  if (queue.empty() || running || (held && steps == 0)) return false;
  const auto* const waiting = std::get_if<Waiting>(&queue.front());
  return waiting == nullptr || !waiting->event->pending.contains(waiting->record);
}

std::uint64_t Streams::create(int device) {
  const std::uint64_t handle = driver_.new_handle();
  streams_.push_back(std::make_unique<Stream>(Stream{handle, device, born_held_}));
  return handle;
}

bool Streams::destroy(std::uint64_t handle) {
  for (auto& stream : streams_) {
    if (stream->handle != handle || handle == 0 || stream->destroyed) continue;
    stream->destroyed = true;  // what waits in it is done all the same
    return true;
  }
  return false;
}

Stream* Streams::find(std::uint64_t handle, int device) {
  for (auto& stream : streams_) {
    if (stream->handle != handle || stream->destroyed) continue;
    if (handle != 0 || stream->device == device) return stream.get();
  }
  if (handle != 0) return nullptr;
  streams_.push_back(std::make_unique<Stream>(Stream{0, device, born_held_}));
  return streams_.back().get();
}

Stream* Streams::find_to_hold(std::uint64_t handle) {
  for (auto& stream : streams_) {
    if (stream->handle == handle) return stream.get();
  }
  return handle == 0 ? find(0, 0) : nullptr;
}

std::vector<const Stream*> Streams::all() const {
  std::vector<const Stream*> living;
  for (const auto& stream : streams_) {
    if (!stream->destroyed) living.push_back(stream.get());
  }
  return living;
}

EventRef Streams::event(std::uint64_t handle) const {
  const auto found = events.find(handle);
  return found == events.end() ? nullptr : found->second;
}

void Streams::record(Stream& stream, const EventRef& event) {
  event->recorded = ++records_;
  event->pending.insert(event->recorded);
  add(stream, Recording{event, event->recorded});
}

void Streams::wait(Stream& stream, const EventRef& event) {
  if (event->recorded != 0) add(stream, Waiting{event, event->recorded});
}

void Streams::add(Stream& stream, Operation operation) {
  stream.queue.push_back(std::move(operation));
  if (!started_) std::thread([this] { run(); }).detach();  // as long as the process
  started_ = true;
}

void Streams::hold_all(bool hold) {
  born_held_ = hold;
  for (auto& stream : streams_) stream->held = hold;
}

bool Streams::step(Stream& stream, double seconds) {
  const std::uint64_t handle = stream.handle;
  stream.steps = 1;
  driver_.changed.notify_all();
  const auto done = [&] {
    const Stream* const still = find_to_hold(handle);
    return still == nullptr || (still->steps == 0 && !still->running);
  };
  const bool stepped = wait_until(driver_, seconds, done);
  if (Stream* const still = find_to_hold(handle); still != nullptr) still->steps = 0;
  return stepped;
}

bool Streams::drain(double seconds) const {
  return wait_until(driver_, seconds, [&] {
    return std::all_of(streams_.begin(), streams_.end(),
                       [](const auto& stream) { return stream->held || stream->empty(); });
  });
}

bool Streams::settle(double seconds) const {
  return wait_until(driver_, seconds, [&] {
    return std::none_of(streams_.begin(), streams_.end(),
                        [](const auto& stream) { return stream->running || stream->may_go_on(); });
  });
}

void Streams::drop(int device) {
  for (auto& stream : streams_) {
    if (stream->device == device) stream->queue.clear();
  }
  for (auto& [handle, event] : events) {  // other devices do not wait for it for ever
    if (event->device == device) event->pending.clear();
  }
}

bool Streams::reset() {
  for (int device = 0; device < kDevices; ++device) drop(device);
  const auto still = [](const auto& stream) { return stream->running; };
  if (!wait_until(driver_, 10,
                  [&] { return std::none_of(streams_.begin(), streams_.end(), still); })) {
    return false;
  }
  streams_.clear(), events.clear(), log.clear();
  born_held_ = false;
  random.seed(1);
  return true;
}

}  // namespace lmkv::fake
