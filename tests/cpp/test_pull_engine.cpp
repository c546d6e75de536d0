// The pull engine over the loopback transport, from several threads at once: every job is reported
// once, with the right verdicts, and what it says is good is there byte by byte.
#include <poll.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>

#include "free_address.h"
#include "memory/pool.h"
#include "nixl/pull_engine.h"
#include "nixl/transport.h"

using namespace lmkv;

#define EXPECT(condition)                                         \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                               \
    }                                                             \
  } while (0)

namespace {

constexpr std::uint32_t kSlots = 64, kThreads = 4, kJobs = 40, kChunks = 4;
constexpr std::uint64_t kTheirs = 7ull << 32, kOurs = 9ull << 32;
const SlotLayout kLayout(2, 4096, 1, 42);

Place place(std::uint32_t slot) { return {slot * kGranulesPerSlot, kGranulesPerSlot, 0, 0}; }
Key key(std::uint32_t n) { return {n, ~std::uint64_t{n}}; }

// Slot n of the holder has chunk n as admission n + 1; every fifth has a flipped bit.
bool flipped(std::uint32_t n) { return n % 5 == 4; }

void fill(Pool& pool) {
  std::vector<std::byte> payload(kLayout.payload_bytes());
  for (std::uint32_t n = 0; n < kSlots; ++n) {
    std::memset(payload.data(), int(n), payload.size());
    std::byte* slot = pool.slot(place(n));
    write_slot(slot, kLayout, key(n), kTheirs | (n + 1), payload);
    if (flipped(n)) slot[kLayout.payload_offset() + 100 * (n % 40)] ^= std::byte{1};
  }
}

// Jobs of one thread pull into slots that are the thread's alone, one job after the other reusing
// them; the expected verdict follows from the chunk's number and the counter asked for.
PullResult expected(std::uint64_t job, std::uint32_t chunk) {
  const std::uint32_t n = std::uint32_t(job * 7 + chunk) % kSlots;
  if (job % 3 == 2 && chunk == 0) return PullResult::gone;  // an older counter is asked for
  return flipped(n) ? PullResult::digest : PullResult::good;
}

void submit(PullEngine& engine, const PullPeer& peer, std::uint32_t thread, std::uint64_t job) {
  std::vector<PullChunk> chunks(kChunks);
  for (std::uint32_t i = 0; i < kChunks; ++i) {
    const std::uint32_t n = std::uint32_t(job * 7 + i) % kSlots;
    const std::uint64_t counter = job % 3 == 2 && i == 0 ? 0 : n + 1;
    chunks[i] = {key(n), place(n), place(thread * kChunks + i), kTheirs | counter, kOurs | job};
  }
  engine.pull(job, peer, kLayout, std::move(chunks), 60);
}

}  // namespace

int main() {
  const std::uint64_t granule = kLayout.granule_bytes();
  const std::uint64_t bytes = kSlots * kLayout.slot_bytes();
  Pool theirs(granule, kSlots, kSlots, free_address(bytes));
  Pool backing(granule, kSlots, kSlots, free_address(bytes));
  theirs.add_segment(true), backing.add_segment(true);
  PoolMap ours(granule, kSlots, kSlots, free_address(bytes), true);
  ours.add_segment(backing.segment_fd(0, false).get());
  fill(theirs);
  auto serve = make_loopback_transport("serve"), transport = make_loopback_transport("pull");
  serve->register_memory(theirs.address(), bytes);
  transport->register_memory(ours.address(), bytes);
  const PullPeer peer{"holder", serve->metadata(),         theirs.address(),
                      granule,  kSlots * kGranulesPerSlot, kSlots * kGranulesPerSlot};

  PullEngine engine(*transport, ours);
  std::atomic<std::uint64_t> reported = 0;
  std::vector<std::atomic<bool>> ended(kThreads * kJobs);
  std::thread listener([&] {
    while (reported < kThreads * kJobs) {
      pollfd ready{engine.fd(), POLLIN, 0};
      EXPECT(::poll(&ready, 1, 20000) == 1);
      for (const PullEvent& event : engine.take()) {
        EXPECT(event.kind == PullEvent::Kind::pulled);
        EXPECT(event.results.size() == kChunks);
        for (std::uint32_t i = 0; i < kChunks; ++i)
          EXPECT(event.results[i] == expected(event.job, i));
        EXPECT(!ended[event.job].exchange(true));
        ++reported;
      }
    }
  });
  std::vector<std::thread> threads;
  for (std::uint32_t thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&, thread] {
      for (std::uint32_t i = 0; i < kJobs; ++i) {
        const std::uint64_t job = thread * kJobs + i;
        submit(engine, peer, thread, job);
        if (i % 8 == 3) engine.connect(peer);
        while (!ended[job]) std::this_thread::yield();
        for (std::uint32_t chunk = 0; chunk < kChunks; ++chunk) {
          const std::uint32_t n = std::uint32_t(job * 7 + chunk) % kSlots;
          const std::byte* slot = ours.slot(place(thread * kChunks + chunk));
          const bool good = expected(job, chunk) == PullResult::good;
          EXPECT((check_slot(slot, kLayout, key(n), kOurs | job) == SlotStatus::good) == good);
          if (good)
            EXPECT(std::memcmp(slot + kLayout.payload_offset(),
                               theirs.slot(place(n)) + kLayout.payload_offset(),
                               kLayout.payload_bytes()) == 0);
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  listener.join();
  EXPECT(engine.limbo_slots() == 0);
  EXPECT(engine.take().empty());
  return 0;
}
