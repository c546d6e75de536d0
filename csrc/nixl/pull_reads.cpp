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
    reads_.push_back({transport_.read(peer.agent, {&range, 1}), peer.agent, peer.info.id, {}, {}});
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
    if (found == peers_.end() || found->second.jobs.empty()) return progress;
    if (found->second.reads >= kWindow) return progress;
    const JobPtr job = found->second.jobs.front();
    if (job->unresolved == 0 || (job->next == job->chunks.size() && job->retries.empty())) {
      found->second.jobs.pop_front();
      continue;
    }
    progress = true;
    if (!post_batch(found->second, job)) return progress;
  }
}

// One READ of the job's next chunks. False: the peer has failed and is gone from peers_.
bool PullEngine::post_batch(Peer& peer, const JobPtr& job) {
  std::vector<std::size_t> chunks;
  std::vector<Range> ranges;
  const std::uint64_t bytes = job->layout.used_bytes();
  while (ranges.empty() || (ranges.size() + 1) * bytes <= kBatchBytes) {
    std::size_t chunk;
    if (!job->retries.empty()) {
      chunk = job->retries.front();
      job->retries.pop_front();
    } else if (job->next < job->chunks.size()) {
      chunk = job->next++;
    } else {
      break;
    }
    if (job->states[chunk] != State::waiting) continue;
    const Place& there = job->chunks[chunk].remote;
    const std::uint64_t in_segment =
        peer.info.segment_granules ? there.first % peer.info.segment_granules : 0;
    if (there.granules != kGranulesPerSlot || there.tier != 0 ||
        there.first + std::uint64_t{kGranulesPerSlot} > peer.info.usable_granules ||
        in_segment + kGranulesPerSlot > peer.info.segment_granules) {
      job->stale = true;  // a place that this peer, as we know it, does not have
      resolve(*job, chunk, PullResult::gone);
      continue;
    }
    std::byte* own = pool_.slot(job->chunks[chunk].own);
    clear_slot(own);
    job->states[chunk] = State::reading;
    chunks.push_back(chunk);
    ranges.push_back(
        {address(own), peer.info.address + there.first * peer.info.granule_bytes, bytes});
  }
  if (ranges.empty()) return true;
  try {
    reads_.push_back(
        {transport_.read(peer.agent, ranges), peer.agent, peer.info.id, job, std::move(chunks)});
  } catch (const std::exception& failure) {
    job->stale = true;
    job->error = failure.what();
    for (std::size_t chunk : chunks) resolve(*job, chunk, PullResult::peer_dead);
    fail_peer(peer.info.id, failure.what());
    return false;
  }
  ++peer.reads;
  ++job->reads;
  return true;
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
  if (read.job) {
    Job& job = *read.job;
    --job.reads;
    if (failed) {
      job.stale = true;
      job.error = "a READ from " + read.agent + " failed";
    }
    std::unique_lock lock(mutex_, std::defer_lock);
    for (std::size_t chunk : read.chunks) {
      if (job.states[chunk] == State::resolved) {  // timed out, and landed later
        clear_slot(pool_.slot(job.chunks[chunk].own));
        --limbo_slots_;
      } else if (failed) {
        clear_slot(pool_.slot(job.chunks[chunk].own));
        resolve(job, chunk, PullResult::peer_dead);
      } else {
        job.states[chunk] = State::checking;
        if (!lock) lock.lock();
        to_check_.push_back({read.job, chunk});
      }
    }
    if (lock) check_.notify_one();
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
    Job& job = *check.job;
    // Torn by reuse, or wrong: only a second READ can tell, by the header that it brings.
    if (check.status == SlotStatus::digest && !job.again[check.chunk] && !job.expired) {
      const auto peer = peers_.find(job.peer);
      if (peer != peers_.end()) {
        job.again[check.chunk] = true;
        job.states[check.chunk] = State::waiting;
        job.retries.push_back(check.chunk);
        auto& jobs = peer->second.jobs;
        if (std::find(jobs.begin(), jobs.end(), check.job) == jobs.end())
          jobs.push_front(check.job);
        continue;
      }
    }
    if (check.status == SlotStatus::good) job.bytes += job.layout.used_bytes();
    resolve(job, check.chunk, PullResult(check.status));
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
    const PullChunk& chunk = check.job->chunks[check.chunk];
    check.status =
        adopt_slot(pool_.slot(chunk.own), check.job->layout, chunk.key, chunk.theirs, chunk.ours);
    lock.lock();
    checked_.push_back(std::move(check));
    wake_.notify_one();
  }
}

}  // namespace lmkv
