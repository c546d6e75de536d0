// Connections, READs and checks of the pull engine: all but run_checks() in the engine's thread.
#include <algorithm>
#include <utility>

#include "nixl/pull_engine.h"

namespace lmkv {
namespace {

// Small enough to be checked while it is in the cache and the next one is on its way; large enough
// that posting does not count (tried: bench/bench_pull.py).
constexpr std::uint64_t kBatchBytes = 4 << 20;
constexpr std::size_t kWindow = 2;  // batches under way per peer
constexpr std::uint64_t kWarmBytes = 64;

std::uint64_t address(const std::byte* at) { return reinterpret_cast<std::uint64_t>(at); }

}  // namespace

PullEngine::Peer* PullEngine::connected(const PullPeer& info, std::string& error) {
  auto found = peers_.find(info.id);
  if (found != peers_.end() && found->second.info.metadata == info.metadata) {
    found->second.info = info;  // it may have more usable segments
    return &found->second;
  }
  std::string agent;
  try {
    agent = transport_.connect(info.metadata);
  } catch (const std::exception& failure) {
    error = failure.what();
    return nullptr;
  }
  std::erase(leaving_, agent);
  Peer& peer = peers_[info.id];
  if (!peer.agent.empty() && peer.agent != agent) retire(peer.agent);  // its mover was replaced
  peer.info = info;
  peer.agent = agent;
  peer.reads = std::count_if(reads_.begin(), reads_.end(), [&](const Read& read) {
    return read.peer == info.id && read.agent == agent;  // in limbo since it failed
  });
  return &peer;
}

void PullEngine::warm(Peer& peer) {
  if (peer.info.usable_granules == 0) return;
  const Range range{address(scratch_), peer.info.address, kWarmBytes};
  try {
    reads_.push_back({transport_.read(peer.agent, {&range, 1}, peer.info.tier),
                      peer.agent,
                      peer.info.id,
                      {},
                      {},
                      {}});
    ++peer.reads;
  } catch (const std::exception& failure) {
    fail_peer(peer.info.id, failure.what());
  }
}

bool PullEngine::post(Peer& peer) {
  const std::string id = peer.info.id;
  bool progress = false;
  for (;;) {
    auto found = peers_.find(id);  // a failed post removes it
    if (found == peers_.end() || found->second.tasks.empty()) return progress;
    if (found->second.reads >= kWindow) return progress;
    const TaskPtr task = found->second.tasks.front();
    const Job& job = *task->job;
    if (job.unresolved == 0 || (task->next == job.chunks.size() && task->retries.empty())) {
      found->second.tasks.pop_front();
      continue;
    }
    progress = true;
    if (!post_batch(found->second, task)) return progress;
  }
}

// One READ of the task's next chunks. False: the peer has failed and is gone from peers_.
bool PullEngine::post_batch(Peer& peer, const TaskPtr& task) {
  Job& job = *task->job;
  Read read{0, peer.agent, peer.info.id, task, {}, {}};
  std::vector<Range> ranges;
  std::vector<std::byte*> slots;
  try {
    for (std::uint64_t bytes = 0; read.chunks.empty() || bytes < kBatchBytes;) {
      std::size_t chunk;
      if (!task->retries.empty()) {
        chunk = task->retries.front();
        task->retries.pop_front();
      } else if (task->next < job.chunks.size()) {
        chunk = task->next++;
      } else {
        break;
      }
      if (task->states[chunk] != State::waiting) continue;
      if (job.results[chunk] != PullResult::good) {  // another part of it has failed
        resolve(*task, chunk, job.results[chunk]);
        continue;
      }
      if (const auto why = unfit(peer, *task, job.chunks[chunk].remote)) {
        job.stale |= *why == PullResult::gone;
        resolve(*task, chunk, *why);
        continue;
      }
      const std::uint64_t more = task->read_bytes(chunk);
      if (!read.chunks.empty() && bytes + more > kBatchBytes) {  // the next READ's
        task->retries.push_front(chunk);
        break;
      }
      bytes += more;
      if (pool_.tier() == Tier::host) pool_.clear(job.chunks[chunk].own);
      slots.push_back(pool_.slot(job.chunks[chunk].own));
      task->states[chunk] = State::reading;
      read.chunks.push_back(chunk);
      std::byte* room = task->part ? rooms_.take(task->room_bytes()) : nullptr;
      if (room) read.rooms.push_back(room);
      add_ranges(peer, *task, chunk, room, ranges);
    }
    if (ranges.empty()) return true;
    if (!clear(slots)) {
      give_rooms(*task, read.rooms);
      for (std::size_t chunk : read.chunks) resolve(*task, chunk, PullResult::mover_down);
      return true;
    }
    read.transfer = transport_.read(peer.agent, ranges, peer.info.tier);
  } catch (const std::exception& failure) {
    give_rooms(*task, read.rooms);
    job.stale = true;
    job.error = failure.what();
    for (std::size_t chunk : read.chunks) resolve(*task, chunk, PullResult::peer_dead);
    fail_peer(peer.info.id, failure.what());
    return false;
  }
  reads_.push_back(std::move(read));
  ++peer.reads;
  ++job.reads;
  return true;
}

// Why a slot cannot be read: gone, when it is not in what this peer, as we know it, has announced
// as usable.
std::optional<PullResult> PullEngine::unfit(const Peer& peer, const Task& task,
                                            const Place& place) const {
  const std::uint64_t segment = peer.info.segment_granules, granules = place.granules;
  const std::uint64_t in_segment = segment ? place.first % segment : 0;
  const bool there =
      granules >= 1 && granules <= kGranulesPerSlot && place.tier == std::uint8_t(peer.info.tier) &&
      place.first + granules <= peer.info.usable_granules && in_segment + granules <= segment;
  if (!there) return PullResult::gone;
  if (granules == kGranulesPerSlot) return std::nullopt;
  const bool whole =
      !task.part && pool_.tier() == Tier::host && peer.info.granule_bytes == pool_.granule_bytes();
  return whole ? std::nullopt : std::optional(PullResult::incompatible);
}

// Where a chunk's bytes lie there and here: a whole slot is one range, a part has one a layer.
void PullEngine::add_ranges(const Peer& peer, const Task& task, std::size_t chunk, std::byte* room,
                            std::vector<Range>& ranges) const {
  const PullChunk& asked = task.job->chunks[chunk];
  const std::uint64_t own = address(pool_.slot(asked.own));
  const std::uint64_t remote = peer.info.address + asked.remote.first * peer.info.granule_bytes;
  if (!task.part) {
    ranges.push_back({own, remote, task.read_bytes(chunk)});
    return;
  }
  const SlotPart& part = *task.part;
  ranges.push_back({address(room), remote, part.theirs().payload_offset()});
  for (std::uint32_t layer = 0; layer < part.layers(); ++layer)
    ranges.push_back(
        {own + part.our_offset(layer), remote + part.their_offset(layer), part.run_bytes()});
}

void PullEngine::give_rooms(const Task& task, const std::vector<std::byte*>& rooms) {
  for (std::byte* room : rooms) rooms_.give(room, task.room_bytes());
}

std::uint64_t PullEngine::Task::read_bytes(std::size_t chunk) const {
  const std::uint64_t granules = job->chunks[chunk].remote.granules;
  if (granules < kGranulesPerSlot) return granules * job->granule_bytes;
  return part ? part->read_bytes() : job->layout.used_bytes();
}

std::uint64_t PullEngine::Task::room_bytes() const {
  return part ? part->theirs().payload_offset() : 0;
}

bool PullEngine::poll() {
  bool progress = false;
  for (std::size_t i = 0; i < reads_.size();) {
    const TransferState state = transport_.poll(reads_[i].transfer);
    if (state == TransferState::pending) {
      ++i;
      continue;
    }
    Read read = std::move(reads_[i]);
    reads_.erase(reads_.begin() + i);
    ended(read, state);
    progress = true;
  }
  return progress;
}

void PullEngine::ended(Read& read, TransferState state) {
  const auto peer = peers_.find(read.peer);
  if (peer != peers_.end() && peer->second.agent == read.agent) --peer->second.reads;
  const bool failed = state == TransferState::failed;
  if (read.task) {
    Task& task = *read.task;
    Job& job = *task.job;
    --job.reads;
    if (failed) {
      job.stale = true;
      job.error = "a READ from " + read.agent + " failed";
    }
    std::vector<std::byte*> useless;
    std::unique_lock lock(mutex_, std::defer_lock);
    for (std::size_t n = 0; n < read.chunks.size(); ++n) {
      const std::size_t chunk = read.chunks[n];
      std::byte* room = task.part ? read.rooms[n] : nullptr;
      if (task.states[chunk] != State::resolved && !failed) {
        task.states[chunk] = State::checking;
        if (!lock) lock.lock();
        to_check_.push_back({read.task, chunk, room});
        continue;
      }
      if (room) give_rooms(task, {room});
      useless.push_back(pool_.slot(job.chunks[chunk].own));
    }
    if (lock) {
      check_.notify_one();
      lock.unlock();
    }
    if (!useless.empty()) clear(useless);
    for (const std::size_t chunk : read.chunks) {
      if (task.states[chunk] == State::checking) continue;
      if (task.states[chunk] != State::resolved) {
        resolve(task, chunk, PullResult::peer_dead);
      } else if (--job.landing[chunk] == 0) {  // timed out, and landed later
        --limbo_slots_;
      }
    }
  }
  if (failed && peer != peers_.end() && peer->second.agent == read.agent)
    fail_peer(read.peer, "a READ from " + read.agent + " failed");
}

bool PullEngine::judged() {
  std::deque<Check> checked;
  {
    std::lock_guard lock(mutex_);
    checked = std::exchange(checked_, {});
  }
  for (const Check& check : checked) {
    Task& task = *check.task;
    Job& job = *task.job;
    if (check.room) give_rooms(task, {check.room});
    // Torn by reuse, or wrong: only a second READ can tell, by the header that it brings.
    if (check.result == PullResult::digest && !task.again[check.chunk] && !job.expired) {
      const auto peer = peers_.find(task.peer);
      if (peer != peers_.end()) {
        task.again[check.chunk] = true;
        task.states[check.chunk] = State::waiting;
        task.retries.push_back(check.chunk);
        auto& tasks = peer->second.tasks;
        if (std::find(tasks.begin(), tasks.end(), check.task) == tasks.end())
          tasks.push_front(check.task);
        continue;
      }
    }
    if (check.result == PullResult::good) job.bytes += task.read_bytes(check.chunk);
    resolve(task, check.chunk, check.result);
  }
  return !checked.empty();
}

// ---------------------------------------------------------------- the checker's thread

void PullEngine::run_checks() {
  std::unique_lock lock(mutex_);
  for (;;) {
    check_.wait(lock, [this] { return stop_ || !to_check_.empty(); });
    if (stop_) return;
    Check check = std::move(to_check_.front());
    to_check_.pop_front();
    lock.unlock();
    const Task& task = *check.task;
    Job& job = *task.job;
    const PullChunk& chunk = job.chunks[check.chunk];
    std::byte* own = pool_.slot(chunk.own);
    try {
      const std::optional<SlotPart>& part = task.part;
      check.result = PullResult(part ? slots_->check(check.room, own, *part, chunk.key,
                                                     chunk.theirs, job.tables[check.chunk])
                                     : slots_->adopt(own, job.layout, chunk.key, chunk.theirs,
                                                     chunk.ours, task.read_bytes(check.chunk)));
    } catch (const std::exception& error) {
      lose(error.what());
      check.result = PullResult::mover_down;
    }
    lock.lock();
    checked_.push_back(std::move(check));
    wake_.notify_one();
  }
}

}  // namespace lmkv
