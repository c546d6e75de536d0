// The pull engine over the loopback transport, from several threads at once: every job is reported
// once, with the right verdicts, and what it says is good is there byte by byte.
#include <poll.h>

#include <atomic>
#include <cstring>
#include <map>
#include <thread>

#include "expect.h"
#include "free_address.h"
#include "memory/pool.h"
#include "nixl/pull_engine.h"
#include "nixl/transport.h"

using namespace lmkv;

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

// ---------------------------------------------------------------- parts

// Two ranks with two heads each hold what one rank of ours has: four heads of three layers.
const SlotLayout kWhole(12, 4096, 2, 1), kHalves[] = {{6, 4096, 2, 2}, {6, 4096, 2, 3}};
constexpr std::uint32_t kPartSlots = 16;

std::byte content(std::uint32_t n, std::uint32_t layer, std::uint32_t head) {
  return std::byte(n * 12 + layer * 4 + head);
}

void fill_half(Pool& pool, int half) {
  const SlotLayout& layout = kHalves[half];
  std::vector<std::byte> payload(layout.payload_bytes());
  for (std::uint32_t n = 0; n < kPartSlots; ++n) {
    for (std::uint32_t segment = 0; segment < layout.segments; ++segment)
      std::memset(payload.data() + segment * layout.segment_bytes,
                  int(content(n, segment / 2, half * 2 + segment % 2)), layout.segment_bytes);
    write_slot(pool.slot(place(n)), layout, key(n), kTheirs | (n + 1), payload);
  }
}

bool holds(const std::byte* slot, std::uint32_t n) {
  if (check_slot(slot, kWhole, key(n), kOurs | 1) != SlotStatus::good) return false;
  for (std::uint64_t at = 0; at < kWhole.payload_bytes(); ++at) {
    const std::uint32_t segment = std::uint32_t(at / kWhole.segment_bytes);
    if (slot[kWhole.payload_offset() + at] != content(n, segment / 4, segment % 4)) return false;
  }
  return true;
}

// Jobs whose deadline lets all, some or none of the READs end; slots are used again only after
// `limbo_ended`, and never hold anything but what is asked for.
void slots_are_put_together_from_two_ranks() {
  const std::uint64_t half_bytes = kPartSlots * kHalves[0].slot_bytes();
  const std::uint64_t bytes = kPartSlots * kWhole.slot_bytes();
  Pool first(kHalves[0].granule_bytes(), kPartSlots, kPartSlots, free_address(half_bytes));
  Pool second(kHalves[1].granule_bytes(), kPartSlots, kPartSlots, free_address(half_bytes));
  Pool backing(kWhole.granule_bytes(), kPartSlots, kPartSlots, free_address(bytes));
  first.add_segment(true), second.add_segment(true), backing.add_segment(true);
  PoolMap ours(kWhole.granule_bytes(), kPartSlots, kPartSlots, free_address(bytes), true);
  ours.add_segment(backing.segment_fd(0, false).get());
  auto serve0 = make_loopback_transport("part0"), serve1 = make_loopback_transport("part1");
  auto transport = make_loopback_transport("parts");
  transport->register_memory(ours.address(), kPartSlots * ours.slot_bytes());
  std::vector<PullSource> sources;
  for (int half = 0; half < 2; ++half) {
    Pool& pool = half ? second : first;
    Transport& serve = half ? *serve1 : *serve0;
    fill_half(pool, half);
    serve.register_memory(pool.address(), kPartSlots * pool.slot_bytes());
    PullPeer peer{half ? "p1" : "p0",
                  serve.metadata(),
                  pool.address(),
                  pool.granule_bytes(),
                  kPartSlots * kGranulesPerSlot,
                  kPartSlots * kGranulesPerSlot};
    sources.push_back({peer, SlotPart(kWhole, kHalves[half], 3, 0, half * 2, 2)});
  }
  PullEngine engine(*transport, ours);
  for (std::uint64_t job = 1; job <= 60; ++job) {
    std::vector<PullChunk> chunks;
    for (std::uint32_t n = 0; n < kPartSlots; ++n)
      chunks.push_back({key(n), place(n), place(kPartSlots - 1 - n), kTheirs | (n + 1), kOurs | 1});
    engine.pull(job, sources, kWhole, chunks, job % 3 == 0 ? 60 : job % 3 == 1 ? 0 : 2e-4);
    std::vector<PullResult> results;
    bool limbo = false, ended = false;
    while (results.empty() || limbo != ended) {
      pollfd ready{engine.fd(), POLLIN, 0};
      EXPECT(::poll(&ready, 1, 20000) == 1);
      for (const PullEvent& event : engine.take()) {
        ended |= event.kind == PullEvent::Kind::limbo_ended;
        if (event.kind != PullEvent::Kind::pulled) continue;
        results = event.results;
        for (const PullResult result : results) limbo |= result == PullResult::timeout;
      }
    }
    for (std::uint32_t n = 0; n < kPartSlots; ++n) {
      if (job % 3 == 0) EXPECT(results[n] == PullResult::good);
      EXPECT(holds(ours.slot(place(kPartSlots - 1 - n)), n) == (results[n] == PullResult::good));
    }
    EXPECT(engine.limbo_slots() == 0);
  }
}

}  // namespace

int main() {
  slots_are_put_together_from_two_ranks();
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
