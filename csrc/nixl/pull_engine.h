// Pulls: a peer's slots into reserved ones of our pool, by one-sided READs (DESIGN.md 8).
//
//   pull() -> clear own slots -> READ batches -> check and reseal each slot -> `pulled`
//
// A job has one task for each rank of the peer that it reads from. Where that rank has other heads
// than we, a task brings a part of each chunk: header and table into a room of their own, the
// segments straight to their places; the slot is sealed when all its parts are good. A chunk is as
// good as the worst of its parts.
//
// pull_engine.cpp is the life of a job; pull_reads.cpp is connections, READs and checks.
//
// One thread owns the transport: it connects, posts and polls. A second one checks what has
// arrived while the next READ is under way. A READ cannot be aborted: at a job's deadline its
// chunks are a timeout, the READ stays, and `limbo_ended` follows `pulled` when the last one has
// ended. A peer is forgotten only when no READ to it is under way. Threads sleep while there is
// neither job nor READ.
//
// Own slots may be in a GPU's memory, and a peer's: READs go from the one to the other. A GPU that
// is lost is said by lost(), and all jobs end as `mover_down`.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "memory/pool.h"
#include "nixl/header_rooms.h"
#include "nixl/transport.h"
#include "slots/own_slots.h"
#include "slots/slot_format.h"
#include "slots/slot_part.h"

namespace lmkv {

// The numbers of messages.PullResult; the first four are SlotStatus's.
enum class PullResult : std::uint8_t {
  good,
  gone,
  digest,
  incompatible,
  timeout,
  peer_dead,
  mover_down
};

// A rank of another instance as it was last announced. `id` names that life of it.
struct PullPeer {
  std::string id;
  std::string metadata;
  std::uint64_t address = 0;  // of its pool, there
  std::uint64_t granule_bytes = 0;
  std::uint64_t segment_granules = 0;  // a slot never crosses segments
  std::uint64_t usable_granules = 0;   // granules below this may be read
  Tier tier = Tier::host;              // of its pool
};

// What is read of one rank: whole slots, which are like ours, or some of their heads.
struct PullSource {
  PullPeer peer;
  std::optional<SlotPart> part = {};
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

  // Both must outlive the engine. The pool is mapped writable and registered with the transport;
  // `slots` are its.
  PullEngine(Transport& transport, const PoolRange& pool,
             std::unique_ptr<OwnSlots> slots = std::make_unique<HostSlots>());
  ~PullEngine();
  PullEngine(const PullEngine&) = delete;

  // Chunks of one cache group, whose slots have this layout on both sides; compressed ones come as
  // they are. std::invalid_argument for own places that are not usable slots or have another number
  // of granules than theirs, and for granules that make a slot too small.
  // `deadline` from now.
  void pull(std::uint64_t job, PullPeer peer, const SlotLayout& layout,
            std::vector<PullChunk> chunks, double deadline);
  // From several ranks, or parts: `layout` is ours. std::invalid_argument, too, for parts that are
  // not all of a slot, each segment once. Where segments of a compressed slot lie only its table
  // tells, so those are incompatible.
  void pull(std::uint64_t job, std::vector<PullSource> sources, const SlotLayout& layout,
            std::vector<PullChunk> chunks, double deadline);
  // Connect ahead of need: the first READ from a peer costs some 10 ms more.
  void connect(PullPeer peer);
  void forget(std::string id);

  int fd() const { return event_fd_; }  // readable when take() has something
  std::vector<PullEvent> take();
  std::uint64_t limbo_slots() const { return limbo_slots_; }
  double limbo_seconds() const;  // age of the oldest timed-out READ that has not ended
  std::string lost();            // why own slots cannot be reached any more; empty: they can

 private:
  enum class State : std::uint8_t { waiting, reading, checking, resolved };

  struct Job;

  // What a job reads of one rank.
  struct Task {
    Job* job = nullptr;
    std::string peer = {};
    std::optional<SlotPart> part = {};
    std::vector<State> states = {};
    std::vector<bool> again = {};  // read a second time after a digest that did not match
    std::size_t next = 0;          // chunks before it have been posted once
    std::deque<std::size_t> retries = {};

    std::uint64_t read_bytes(std::size_t chunk) const;
    std::uint64_t room_bytes() const;  // for the header and table of one part
  };
  using TaskPtr = std::shared_ptr<Task>;  // keeps its job

  struct Job {
    std::uint64_t id;
    SlotLayout layout;
    std::uint64_t granule_bytes;
    std::vector<PullChunk> chunks = {};
    std::vector<Task> tasks = {};
    Clock::time_point begin = {}, deadline = {};
    std::vector<PullResult> results = {};                 // the worst of the parts that are judged
    std::vector<std::size_t> left = {};                   // parts of each chunk that are not
    std::vector<std::vector<std::uint64_t>> tables = {};  // of chunks that come in parts
    std::vector<std::size_t> landing = {};  // timed-out READs of each chunk that have not ended
    std::size_t unresolved = 0, reads = 0;
    std::uint64_t bytes = 0;
    bool expired = false, timed_out = false, reported = false, stale = false;
    std::string error = {};
  };
  using JobPtr = std::shared_ptr<Job>;

  struct Read {
    std::uint64_t transfer;
    std::string agent, peer;
    TaskPtr task;  // none: a READ that only warms a connection
    std::vector<std::size_t> chunks;
    std::vector<std::byte*> rooms;  // of a part's headers, by chunk
  };

  struct Peer {
    PullPeer info;
    std::string agent;
    std::deque<TaskPtr> tasks;  // with chunks to post
    std::size_t reads = 0;
  };

  struct Command {
    enum class Kind { pull, connect, forget } kind;
    std::vector<PullPeer> peers;  // of the job's tasks; else one
    JobPtr job;
  };

  struct Check {
    TaskPtr task;
    std::size_t chunk;
    std::byte* room;  // null: a whole slot
    PullResult result = PullResult::good;
  };

  void run();
  void run_checks();
  void serve(Command& command);
  Peer* connected(const PullPeer& info, std::string& error);
  void warm(Peer& peer);
  bool post(Peer& peer);
  bool post_batch(Peer& peer, const TaskPtr& task);
  std::optional<PullResult> unfit(const Peer& peer, const Task& task, const Place& place) const;
  void add_ranges(const Peer& peer, const Task& task, std::size_t chunk, std::byte* room,
                  std::vector<Range>& ranges) const;
  void give_rooms(const Task& task, const std::vector<std::byte*>& rooms);
  bool poll();
  void ended(Read& read, TransferState state);
  bool judged();
  void expire(Clock::time_point now);
  void fail_peer(std::string id, const std::string& error);
  void resolve(Task& task, std::size_t chunk, PullResult result);
  void report(Job& job);
  void retire(const std::string& agent);
  void forget_idle();
  bool seal(const Job& job, std::size_t chunk);
  bool clear(std::span<std::byte* const> slots);
  void lose(const std::string& error);
  void emit(PullEvent event);
  void tell();
  void rest(bool progress, std::unique_lock<std::mutex>& lock);

  static constexpr std::size_t kScratchBytes = 4096;

  Transport& transport_;
  const PoolRange& pool_;
  std::unique_ptr<OwnSlots> slots_;
  std::byte* scratch_;
  int event_fd_;

  std::mutex mutex_;  // guards what follows, up to the engine thread's own
  std::condition_variable wake_, check_;
  bool stop_ = false;
  std::deque<Command> commands_;
  std::deque<Check> to_check_, checked_;
  std::vector<PullEvent> events_;
  std::string lost_;

  // The engine thread's own.
  std::unordered_map<std::string, Peer> peers_;
  std::vector<JobPtr> jobs_;  // not reported yet, or with READs under way
  std::vector<Read> reads_;
  HeaderRooms rooms_;
  std::vector<std::string> leaving_;  // agents to forget once no READ to them is under way
  Clock::time_point last_progress_;

  std::atomic<std::uint64_t> limbo_slots_ = 0;
  std::atomic<Clock::rep> limbo_since_ = 0;
  std::thread engine_, checker_;
};

}  // namespace lmkv
