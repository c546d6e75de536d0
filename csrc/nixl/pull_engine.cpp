#include "nixl/pull_engine.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "check.h"
#include "memory/pages_for_good.h"

namespace lmkv {
namespace {

constexpr auto kSpin = std::chrono::milliseconds(5);
constexpr auto kNap = std::chrono::microseconds(50);
constexpr auto kLongNap = std::chrono::milliseconds(1);

// Of two parts of a chunk. While one may still land, the chunk's slot is not free: above all.
PullResult worse(PullResult a, PullResult b) {
  if (a == PullResult::timeout || b == PullResult::timeout) return PullResult::timeout;
  return a != PullResult::good ? a : b;
}

// std::invalid_argument unless each of our segments comes from one part.
void check_parts(std::uint64_t job, const std::vector<PullSource>& sources,
                 const SlotLayout& layout) {
  std::vector<bool> covered(layout.segments, false);
  std::size_t segments = 0;
  for (const PullSource& source : sources) {
    REQUIRE(source.part.has_value(), "pull ", job, ": whole slots of one rank among ",
            sources.size());
    REQUIRE(source.part->ours() == layout, "pull ", job, ": a part of slots of another layout");
    for (const std::uint32_t segment : source.part->segments()) {
      const std::uint32_t ours = source.part->our_segment(segment);
      REQUIRE(!covered[ours], "pull ", job, ": segment ", ours, " comes twice");
      covered[ours] = true;
      ++segments;
    }
  }
  REQUIRE(segments == layout.segments, "pull ", job, ": parts with ", segments, " of ",
          layout.segments, " segments");
}

}  // namespace

PullEngine::PullEngine(Transport& transport, const PoolRange& pool, std::unique_ptr<OwnSlots> slots)
    : transport_(transport),
      pool_(pool),
      slots_(std::move(slots)),
      scratch_(pages_for_good(kScratchBytes)),
      event_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      rooms_(transport, *slots_, pool.tier()) {
  if (event_fd_ < 0) throw SystemError("eventfd");
  transport_.register_memory(reinterpret_cast<std::uint64_t>(scratch_), kScratchBytes);
  engine_ = std::thread([this] { run(); });
  checker_ = std::thread([this] { run_checks(); });
}

PullEngine::~PullEngine() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  check_.notify_all();
  engine_.join();
  checker_.join();
  ::close(event_fd_);
}

// ---------------------------------------------------------------- callers' threads

void PullEngine::pull(std::uint64_t id, PullPeer peer, const SlotLayout& layout,
                      std::vector<PullChunk> chunks, double deadline) {
  pull(id, std::vector<PullSource>{{std::move(peer)}}, layout, std::move(chunks), deadline);
}

void PullEngine::pull(std::uint64_t id, std::vector<PullSource> sources, const SlotLayout& layout,
                      std::vector<PullChunk> chunks, double deadline) {
  REQUIRE(!chunks.empty(), "pull ", id, ": no chunks");
  REQUIRE(!sources.empty(), "pull ", id, ": no peer");
  const bool parts = sources.size() > 1 || sources[0].part;
  if (parts) check_parts(id, sources, layout);
  const auto fit = [id](const SlotLayout& slots, std::uint64_t granule) {
    REQUIRE(slots.used_bytes() <= granule * kGranulesPerSlot, "pull ", id, ": slots of ",
            slots.used_bytes(), " bytes do not fit into 16 granules of ", granule);
  };
  fit(layout, pool_.granule_bytes());
  for (const PullSource& source : sources)
    fit(source.part ? source.part->theirs() : layout, source.peer.granule_bytes);
  REQUIRE(deadline >= 0 && deadline < 1e6, "pull ", id, ": deadline ", deadline, " s");
  for (const PullChunk& chunk : chunks) {
    REQUIRE(chunk.own.granules == chunk.remote.granules || chunk.own.granules == kGranulesPerSlot,
            "pull ", id, ": own place of ", int(chunk.own.granules), " granules, theirs has ",
            int(chunk.remote.granules));
    pool_.slot(chunk.own);
  }
  const std::size_t n = chunks.size();
  auto job = std::make_shared<Job>(
      Job{.id = id, .layout = layout, .granule_bytes = pool_.granule_bytes()});
  job->begin = Clock::now();
  job->deadline = job->begin + std::chrono::duration_cast<Clock::duration>(
                                   std::chrono::duration<double>(deadline));
  job->unresolved = n;
  job->results.assign(n, PullResult::good);
  job->left.assign(n, sources.size());
  job->landing.assign(n, 0);
  if (parts) job->tables.assign(n, empty_table(layout));
  job->chunks = std::move(chunks);
  Command command{Command::Kind::pull, {}, job};
  for (PullSource& source : sources) {
    job->tasks.push_back({.job = job.get(),
                          .peer = source.peer.id,
                          .part = std::move(source.part),
                          .states = std::vector<State>(n, State::waiting),
                          .again = std::vector<bool>(n, false)});
    command.peers.push_back(std::move(source.peer));
  }
  std::lock_guard lock(mutex_);
  commands_.push_back(std::move(command));
  wake_.notify_all();
}

void PullEngine::connect(PullPeer peer) {
  std::lock_guard lock(mutex_);
  commands_.push_back({Command::Kind::connect, {std::move(peer)}, nullptr});
  wake_.notify_all();
}

void PullEngine::forget(std::string id) {
  PullPeer peer;
  peer.id = std::move(id);
  std::lock_guard lock(mutex_);
  commands_.push_back({Command::Kind::forget, {std::move(peer)}, nullptr});
  wake_.notify_all();
}

std::vector<PullEvent> PullEngine::take() {
  std::uint64_t ignored;
  [[maybe_unused]] auto drained = ::read(event_fd_, &ignored, sizeof ignored);
  std::lock_guard lock(mutex_);
  return std::exchange(events_, {});
}

std::string PullEngine::lost() {
  std::lock_guard lock(mutex_);
  return lost_;
}

double PullEngine::limbo_seconds() const {
  const Clock::rep since = limbo_since_;
  if (since == 0) return 0;
  return std::chrono::duration<double>(Clock::now().time_since_epoch() - Clock::duration(since))
      .count();
}

// ---------------------------------------------------------------- the engine's thread

void PullEngine::run() {
  last_progress_ = Clock::now();
  std::unique_lock lock(mutex_);
  while (!stop_) {
    std::deque<Command> commands = std::exchange(commands_, {});
    lock.unlock();
    bool progress = !commands.empty();
    for (Command& command : commands) serve(command);
    std::vector<std::string> ids;
    for (const auto& [id, peer] : peers_)
      if (!peer.tasks.empty()) ids.push_back(id);
    for (const std::string& id : ids)
      if (auto found = peers_.find(id); found != peers_.end()) progress |= post(found->second);
    progress |= poll();
    progress |= judged();
    expire(Clock::now());
    forget_idle();
    lock.lock();
    rest(progress, lock);
  }
}

// Spin while a READ moves, nap while it does not, sleep when there is none.
void PullEngine::rest(bool progress, std::unique_lock<std::mutex>& lock) {
  const auto ready = [this] { return stop_ || !commands_.empty() || !checked_.empty(); };
  if (reads_.empty() && jobs_.empty() && leaving_.empty()) {
    wake_.wait(lock, ready);
    last_progress_ = Clock::now();
    return;
  }
  const auto now = Clock::now();
  if (progress) last_progress_ = now;
  if (progress || ready()) return;
  const bool live =
      std::any_of(jobs_.begin(), jobs_.end(), [](auto& job) { return !job->expired; });
  if (live && now - last_progress_ < kSpin) {
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  } else if (live && !reads_.empty()) {
    wake_.wait_for(lock, kNap, ready);
  } else {
    wake_.wait_for(lock, kLongNap, ready);
  }
}

void PullEngine::serve(Command& command) {
  std::string error;
  if (command.kind == Command::Kind::forget) {
    fail_peer(command.peers[0].id, "the peer was forgotten");
    return;
  }
  if (command.kind == Command::Kind::connect) {
    if (Peer* peer = connected(command.peers[0], error)) warm(*peer);
    return;
  }
  const JobPtr& job = command.job;
  jobs_.push_back(job);
  for (std::size_t n = 0; n < job->tasks.size(); ++n) {
    Task& task = job->tasks[n];
    if (Peer* peer = connected(command.peers[n], error)) {
      peer->tasks.push_back(TaskPtr(job, &task));
      continue;
    }
    job->stale = true;
    job->error = error;
    for (std::size_t i = 0; i < job->chunks.size(); ++i) resolve(task, i, PullResult::peer_dead);
  }
}

void PullEngine::expire(Clock::time_point now) {
  for (std::size_t i = 0; i < jobs_.size();) {
    const JobPtr job = jobs_[i];
    if (!job->expired && job->unresolved != 0 && now >= job->deadline) {
      job->expired = true;
      for (Task& task : job->tasks)
        for (std::size_t chunk = 0; chunk < job->chunks.size(); ++chunk) {
          const State state = task.states[chunk];
          if (state == State::reading && job->landing[chunk]++ == 0) ++limbo_slots_;
          if (state != State::waiting && state != State::reading) continue;
          job->timed_out = true;
          resolve(task, chunk, PullResult::timeout);
        }
    }
    const bool ended = job->reported && job->reads == 0;
    if (ended && job->timed_out) emit({PullEvent::Kind::limbo_ended, job->id, {}, 0, 0, false, ""});
    if (ended)
      jobs_.erase(jobs_.begin() + i);
    else
      ++i;
  }
  Clock::time_point oldest = Clock::time_point::max();
  for (const Read& read : reads_)
    if (read.task && read.task->job->expired) oldest = std::min(oldest, read.task->job->deadline);
  limbo_since_ = oldest == Clock::time_point::max() ? 0 : oldest.time_since_epoch().count();
}

// Its jobs end here but for READs under way, whose memory is not free before they end.
// By value: the caller's string may lie in the peer that is erased here.
// NOLINTNEXTLINE(performance-unnecessary-value-param)
void PullEngine::fail_peer(std::string id, const std::string& error) {
  const auto found = peers_.find(id);
  if (found == peers_.end()) return;
  retire(found->second.agent);
  peers_.erase(found);
  for (const JobPtr& job : jobs_)
    for (Task& task : job->tasks) {
      if (task.peer != id || job->unresolved == 0) continue;
      job->stale = true;
      if (job->error.empty()) job->error = error;
      for (std::size_t chunk = 0; chunk < job->chunks.size(); ++chunk)
        if (task.states[chunk] == State::waiting) resolve(task, chunk, PullResult::peer_dead);
    }
}

void PullEngine::resolve(Task& task, std::size_t chunk, PullResult result) {
  Job& job = *task.job;
  task.states[chunk] = State::resolved;
  job.results[chunk] = worse(job.results[chunk], result);
  if (--job.left[chunk] != 0) return;
  if (task.part && job.results[chunk] == PullResult::good && !seal(job, chunk))
    job.results[chunk] = PullResult::mover_down;
  if (--job.unresolved == 0) report(job);
}

void PullEngine::report(Job& job) {
  job.reported = true;
  const std::chrono::duration<double> seconds = Clock::now() - job.begin;
  emit({PullEvent::Kind::pulled, job.id, job.results, seconds.count(), job.bytes, job.stale,
        job.error});
}

void PullEngine::retire(const std::string& agent) {
  if (std::find(leaving_.begin(), leaving_.end(), agent) == leaving_.end())
    leaving_.push_back(agent);
}

void PullEngine::forget_idle() {
  std::erase_if(leaving_, [this](const std::string& agent) {
    for (const Read& read : reads_)
      if (read.agent == agent) return false;
    for (const auto& [id, peer] : peers_)
      if (peer.agent == agent) return true;
    try {
      transport_.forget(agent);
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): NIXL has dropped it itself
    }
    return true;
  });
}

void PullEngine::emit(PullEvent event) {
  {
    std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
  }
  tell();
}

// False, of this and the next: they cannot be reached, and the mover's end is near.
bool PullEngine::seal(const Job& job, std::size_t chunk) {
  const PullChunk& done = job.chunks[chunk];
  try {
    slots_->seal(pool_.slot(done.own), job.layout, done.key, done.ours, job.tables[chunk]);
    return true;
  } catch (const std::exception& error) {
    lose(error.what());
    return false;
  }
}

bool PullEngine::clear(std::span<std::byte* const> slots) {
  try {
    slots_->clear(slots);
    return true;
  } catch (const std::exception& error) {
    lose(error.what());
    return false;
  }
}

void PullEngine::lose(const std::string& error) {
  {
    std::lock_guard lock(mutex_);
    if (lost_.empty()) lost_ = error;
  }
  tell();
}

void PullEngine::tell() {
  const std::uint64_t one = 1;
  [[maybe_unused]] auto written = ::write(event_fd_, &one, sizeof one);
}

}  // namespace lmkv
