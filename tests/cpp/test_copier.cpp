// One copier, many threads: each gathers into slots of its own, all scatter from slots that are
// sealed, and what they see is whole.
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "copy/copier.h"
#include "expect.h"
#include "free_address.h"
#include "memory/pool.h"

using namespace lmkv;

namespace {

constexpr std::uint32_t kThreads = 4, kRounds = 200, kPerThread = 4;
constexpr std::uint64_t kLayers = 2, kHeads = 2, kPage = 512, kBlocks = 4 * kThreads;

Place place(std::uint32_t slot) { return {slot * kGranulesPerSlot, kGranulesPerSlot, 0, 0}; }

Key key(std::uint32_t n) { return {n, ~std::uint64_t{n}}; }

// vLLM's blocks of one reader or writer: layer, block, head, byte.
struct Kv {
  std::vector<std::byte> bytes = std::vector<std::byte>(kLayers * kBlocks * kHeads * kPage);
  Pages pages() {
    Pages found{.layers = {},
                .blocks = kBlocks,
                .heads = kHeads,
                .tokens = 1,
                .run_bytes = kPage,
                .block_stride = kHeads * kPage,
                .head_stride = kPage,
                .token_stride = 0,
                .planes = 1,
                .plane_stride = 0};
    for (std::uint64_t n = 0; n < kLayers; ++n)
      found.layers.push_back(bytes.data() + n * kBlocks * kHeads * kPage);
    return found;
  }
  std::byte* block(std::uint64_t layer, std::uint32_t block) {
    return bytes.data() + (layer * kBlocks + block) * kHeads * kPage;
  }
};

}  // namespace

int main() {
  Kv kv;
  for (std::size_t i = 0; i < kv.bytes.size(); ++i) kv.bytes[i] = std::byte(i * 131 >> 3);
  const SlotLayout layout(kLayers * kHeads, 2 * kPage, kPageFormatBlocks, 7);
  const Copier copier(layout, kv.pages(), 2);
  const std::uint32_t slots = kThreads * kPerThread;
  Pool pool(layout.granule_bytes(), slots, slots, free_address(slots * layout.slot_bytes()));
  pool.add_segment(true);
  std::atomic<std::uint32_t> sealed[kThreads] = {};  // slots of a thread, in the order of sealing

  const auto work = [&](std::uint32_t thread) {
    // Blocks 0 and 1 of the four that are this thread's are gathered, 2 and 3 scattered into.
    const std::vector<std::uint32_t> from{4 * thread, 4 * thread + 1};
    const std::vector<std::uint32_t> to{4 * thread + 2, 4 * thread + 3};
    for (std::uint32_t n = 0; n < kPerThread; ++n) {
      const std::uint32_t slot = thread * kPerThread + n;
      copier.gather(pool.slot(place(slot)), key(slot), slot + 1, from);
      EXPECT(copier.audit(pool.slot(place(slot)), from));
      sealed[thread].store(n + 1, std::memory_order_release);
    }
    for (std::uint32_t round = 0; round < kRounds; ++round) {
      const std::uint32_t other = (thread + round) % kThreads;
      const std::uint32_t there = sealed[other].load(std::memory_order_acquire);
      if (there == 0) continue;
      const std::uint32_t slot = other * kPerThread + round % there;
      EXPECT(copier.scatter(pool.slot(place(slot)), key(slot), slot + 1, to) == SlotStatus::good);
      for (std::uint64_t layer = 0; layer < kLayers; ++layer)
        for (std::uint32_t b = 0; b < 2; ++b)
          EXPECT(std::memcmp(kv.block(layer, to[b]), kv.block(layer, 4 * other + b),
                             kHeads * kPage) == 0);
      EXPECT(copier.scatter(pool.slot(place(slot)), key(slot), slot + 2, to) == SlotStatus::gone);
    }
  };
  std::vector<std::thread> threads;
  for (std::uint32_t thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
  return 0;
}
