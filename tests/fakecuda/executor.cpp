// The thread that executes what waits in streams.
#include <algorithm>
#include <cstring>
#include <limits>

#include "driver.h"
#include "say.h"

namespace lmkv::fake {

namespace {

// "h2d" and the like: registered and pageable memory are the host's.
std::string direction(const Memory& memory, const Piece& piece) {
  const auto side = [&](Address at) {
    const Range* const range = memory.find(at);
    return range == nullptr || range->kind == Kind::registered ? "h" : "d";
  };
  return say(side(piece.from), "2", side(piece.to));
}

// A copy's ranges lie within one allocation or registration each.
std::string fault_of_side(const Memory& memory, Address at, std::size_t bytes, bool write) {
  std::string why = memory.fault(at, bytes, write);
  if (why.empty() && bytes > 0 && memory.find(at) != memory.find(at + bytes - 1)) {
    why = say(hex(at), ", two ranges, which one copy may not touch");
  }
  return why;
}

}  // namespace

void Streams::run() {
  std::lock_guard guard(driver_.lock);
  for (;;) {
    Stream* const stream = pick();
    if (stream == nullptr) {
      driver_.changed.wait_for(driver_.lock, std::chrono::seconds(1));
      continue;
    }
    execute(*stream);
    driver_.changed.notify_all();
  }
}

Stream* Streams::pick() {
  std::erase_if(streams_, [](const auto& s) { return s->destroyed && s->empty(); });
  std::vector<Stream*> ready;
  for (auto& stream : streams_) {
    if (stream->may_go_on()) ready.push_back(stream.get());
  }
  return ready.empty() ? nullptr : ready[random() % ready.size()];
}

void Streams::execute(Stream& stream) {
  if (stream.steps > 0) --stream.steps;
  Operation operation = std::move(stream.queue.front());
  stream.queue.pop_front();
  stream.running = true;  // so the stream stays, whatever others do meanwhile
  std::visit([&](auto& each) { carry_out(stream, each); }, operation);
  stream.running = false;
}

template <class Work>
void Streams::unlocked(Work&& work) {
  driver_.lock.unlock();
  work();
  driver_.lock.lock();
}

void Streams::write_down(const Stream& stream, const char* kind, const std::string& name,
                         std::uint64_t bytes, std::uint32_t blocks) {
  log.push_back({kind, stream.handle, name, bytes, blocks});
}

void Streams::lose(const Stream& stream, int error, const std::string& why) {
  driver_.complaints.push_back(why);
  driver_.lose(stream.device, error);
}

void Streams::carry_out(Stream& stream, Launching& launch) {
  const Judgement judgement = judge(*launch.kernel, launch.job, driver_.memory);
  for (const std::string& one : judgement.complaints) driver_.complaints.push_back(one);
  if (judgement.error != cuda::SUCCESS) return lose(stream, judgement.error, judgement.why);
  const std::uint64_t seed = random();
  in_memory_ = true;
  unlocked([&] { play(*launch.kernel, launch.job, launch.blocks, seed); });
  in_memory_ = false;
  write_down(stream, "launch", launch.kernel->name, moved_bytes(launch.job), launch.blocks);
}

void Streams::carry_out(Stream& stream, Copying& copy) {
  std::map<std::string, std::uint64_t> moved;
  for (const Piece& piece : copy.pieces) {
    const Memory& memory = driver_.memory;
    const auto judged = [&](Address at, bool pageable, bool write) {
      const std::string why = pageable ? "" : fault_of_side(memory, at, piece.bytes, write);
      if (why.empty()) return true;
      lose(stream, cuda::ILLEGAL_ADDRESS,
           say("a copy ", write ? "writes " : "reads ", piece.bytes, " bytes: there is ", why));
      return false;
    };
    if (!judged(piece.from, piece.from_pageable, false)) return;
    if (!judged(piece.to, piece.to_pageable, true)) return;
    moved[direction(memory, piece)] += piece.bytes;
  }
  if (copy.batch) std::shuffle(copy.pieces.begin(), copy.pieces.end(), random);  // in any order
  in_memory_ = true;
  unlocked([&] {
    for (const Piece& piece : copy.pieces) {
      const void* const from = piece.snapshot.empty() ? reinterpret_cast<const void*>(piece.from)
                                                      : piece.snapshot.data();
      std::memmove(reinterpret_cast<void*>(piece.to), from, piece.bytes);
    }
  });
  in_memory_ = false;
  for (const auto& [name, bytes] : moved) {
    write_down(stream, copy.batch ? "batch" : "copy", name, bytes);
  }
}

void Streams::carry_out(Stream& stream, Filling& fill) {
  const std::string why = fault_of_side(driver_.memory, fill.to, 4 * fill.words, true);
  if (!why.empty()) {
    return lose(stream, cuda::ILLEGAL_ADDRESS,
                say("a fill writes ", 4 * fill.words, " bytes: there is ", why));
  }
  in_memory_ = true;
  unlocked([&] {
    auto* const to = reinterpret_cast<std::uint32_t*>(fill.to);
    std::fill(to, to + fill.words, fill.word);
  });
  in_memory_ = false;
  write_down(stream, "fill", "", 4 * fill.words);
}

void Streams::carry_out(Stream& stream, Recording& recording) {
  recording.event->pending.erase(recording.record);
  recording.event->at = Clock::now();
  write_down(stream, "record", hex(recording.event->handle), 0);
}

void Streams::carry_out(Stream& stream, Waiting& waiting) {
  write_down(stream, "wait", hex(waiting.event->handle), 0);
}

void Streams::carry_out(Stream& stream, Hosting& host) {
  unlocked([&] { host.function(host.argument); });
  write_down(stream, "host", "", 0);
}

}  // namespace lmkv::fake
