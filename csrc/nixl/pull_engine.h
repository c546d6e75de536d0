// Pulls: a peer's slots into reserved ones of our pool, by one-sided READs (DESIGN.md 8).
//
//   pull() -> clear own slots -> READ batches -> check and reseal each slot -> `pulled`
//
// pull_engine.cpp is the life of a job; pull_reads.cpp is connections, READs and checks.
//
// One thread owns the transport: it connects, posts and polls. A second one checks what has
// arrived while the next READ is under way. A READ cannot be aborted: at a job's deadline its
// chunks are a timeout, the READ stays, and `limbo_ended` follows `pulled` when the last one has
// ended. A peer is forgotten only when no READ to it is under way. Threads sleep while there is
// neither job nor READ.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "memory/pool.h"
#include "nixl/transport.h"
#include "slots/slot_format.h"

namespace lmkv {

// The numbers of messages.PullResult; the first four are SlotStatus's.
enum class PullResult : std::uint8_t { good, gone, digest, incompatible, timeout, peer_dead };

// A rank of another instance as it was last announced. `id` names that life of it.
struct PullPeer {
  std::string id;
  std::string metadata;
  std::uint64_t address = 0;  // of its pool, there
  std::uint64_t granule_bytes = 0;
  std::uint64_t segment_granules = 0;  // a slot never crosses segments
  std::uint64_t usable_granules = 0;   // granules below this may be read
};

struct PullChunk {
  Key key;
  Place remote, own;
  std::uint64_t theirs = 0, ours = 0;  // generations
};

struct PullEvent {
  enum class Kind : int { pulled = 0, limbo_ended = 1 };
  Kind kind;
  std::uint64_t job;
  std::vector<PullResult> results;  // of `pulled`, in the order of the chunks
  double seconds = 0;
  std::uint64_t bytes = 0;
  bool stale = false;  // what we know of the peer is out of date, or it is dead
  std::string error;   // for people
};

class PullEngine {
 public:
  using Clock = std::chrono::steady_clock;

  // Both must outlive the engine. The pool is mapped writable and registered with the transport.
  PullEngine(Transport& transport, const PoolRange& pool);
  ~PullEngine();
  PullEngine(const PullEngine&) = delete;

  // Chunks of one cache group, whose slots have this layout on both sides. std::invalid_argument
  // for own places that are not usable slots, and for granules that make a slot too small.
  // `deadline` from now.
  void pull(std::uint64_t job, PullPeer peer, const SlotLayout& layout,
            std::vector<PullChunk> chunks, double deadline);
  // Connect ahead of need: the first READ from a peer costs some 10 ms more.
  void connect(PullPeer peer);
  void forget(std::string id);

  int fd() const { return event_fd_; }  // readable when take() has something
  std::vector<PullEvent> take();
  std::uint64_t limbo_slots() const { return limbo_slots_; }
  double limbo_seconds() const;  // age of the oldest timed-out READ that has not ended

 private:
  enum class State : std::uint8_t { waiting, reading, checking, resolved };

  struct Job {
    std::uint64_t id;
    std::string peer;
    SlotLayout layout;
    std::vector<PullChunk> chunks = {};
    Clock::time_point begin = {}, deadline = {};
    std::vector<State> states = {};
    std::vector<PullResult> results = {};
    std::vector<bool> again = {};  // read a second time after a digest that did not match
    std::size_t next = 0;          // chunks before it have been posted once
    std::deque<std::size_t> retries = {};
    std::size_t unresolved = 0, reads = 0;
    std::uint64_t bytes = 0;
    bool expired = false, timed_out = false, reported = false, stale = false;
    std::string error = {};
  };
  using JobPtr = std::shared_ptr<Job>;

  struct Read {
    std::uint64_t transfer;
    std::string agent, peer;
    JobPtr job;  // none: a READ that only warms a connection
    std::vector<std::size_t> chunks;
  };

  struct Peer {
    PullPeer info;
    std::string agent;
    std::deque<JobPtr> jobs;  // with chunks to post
    std::size_t reads = 0;
  };

  struct Command {
    enum class Kind { pull, connect, forget } kind;
    PullPeer peer;
    JobPtr job;
  };

  struct Check {
    JobPtr job;
    std::size_t chunk;
    SlotStatus status = SlotStatus::good;
  };

  void run();
  void run_checks();
  void serve(Command& command);
  Peer* connected(const PullPeer& info, std::string& error);
  void warm(Peer& peer);
  bool post(Peer& peer);
  bool post_batch(Peer& peer, const JobPtr& job);
  bool poll();
  void ended(Read& read, TransferState state);
  bool judged();
  void expire(Clock::time_point now);
  void fail_peer(std::string id, const std::string& error);
  void resolve(Job& job, std::size_t chunk, PullResult result);
  void report(Job& job);
  void retire(const std::string& agent);
  void forget_idle();
  void emit(PullEvent event);
  void rest(bool progress, std::unique_lock<std::mutex>& lock);

  static constexpr std::size_t kScratchBytes = 4096;

  Transport& transport_;
  const PoolRange& pool_;
  std::byte* scratch_;
  int event_fd_;

  std::mutex mutex_;  // guards what follows, up to the engine thread's own
  std::condition_variable wake_, check_;
  bool stop_ = false;
  std::deque<Command> commands_;
  std::deque<Check> to_check_, checked_;
  std::vector<PullEvent> events_;

  // The engine thread's own.
  std::unordered_map<std::string, Peer> peers_;
  std::vector<JobPtr> jobs_;  // not reported yet, or with READs under way
  std::vector<Read> reads_;
  std::vector<std::string> leaving_;  // agents to forget once no READ to them is under way
  Clock::time_point last_progress_;

  std::atomic<std::uint64_t> limbo_slots_ = 0;
  std::atomic<Clock::rep> limbo_since_ = 0;
  std::thread engine_, checker_;
};

}  // namespace lmkv
