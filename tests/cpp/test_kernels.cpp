// Under the sanitizers: the kernels' bodies, with teams as large as a GPU's, make docs/slots.md's
// golden vectors and the host copier's slots, touch no byte beside their own, and are the same in
// any order of threads and teams. And the harness is no fool: a body without its barrier is caught.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "../kernels/cpu_team.h"
#include "copy/copier.h"
#include "gather_scatter.h"

namespace {

using namespace lmkv;
using Team = CpuTeam<kCopyThreads>;

int failures = 0;
void check(bool good, const char* what) {
  if (!good) std::printf("wrong: %s\n", what), ++failures;
}

// Exactly so many bytes, so that the address sanitizer sees the next one.
struct Room {
  static constexpr std::align_val_t kPage{4096};
  struct Free {
    void operator()(std::uint8_t* at) const { ::operator delete[](at, kPage); }
  };

  explicit Room(std::size_t bytes)
      : size(bytes), at(static_cast<std::uint8_t*>(::operator new[](bytes, kPage))) {
    std::memset(at.get(), 0xEE, bytes);
  }
  std::byte* bytes() const { return reinterpret_cast<std::byte*>(at.get()); }

  std::size_t size;
  std::unique_ptr<std::uint8_t, Free> at;
};

void generate(std::uint8_t* to, std::size_t bytes) {  // x = x*1664525 + 1013904223 from 1 on
  std::uint32_t x = 1;
  for (std::size_t n = 0; n < bytes; n += 4) {
    x = x * 1664525u + 1013904223u;
    std::memcpy(to + n, &x, 4);
  }
}

template <Copy kCopy>
void play(const CopyJob& job, std::uint32_t teams, std::uint64_t seed, unsigned threads = 1) {
  run_grid<Team, CopyShared<Team>>(teams, seed, threads, [&](Team& team, CopyShared<Team>& shared) {
    copy_chunks<kCopy, 16>(team, job, shared);
  });
}

std::uint64_t digest_by_a_team(const Room& data, std::size_t bytes, std::uint32_t segment) {
  Team team(0, 1, segment);
  Lmx64 warps[Team::kWarps];
  Team::Local<Lmx64> sums{};
  const PagedKv none{};
  copy_units<Copy::verify>(team, PageRuns<16>{none, nullptr, 0}, data.at.get(), 0,
                           std::uint32_t(bytes / 16), sums);
  return lmx64_finish(team_sum(team, sums, warps), bytes, segment);
}

void golden_digests() {
  Room data(65536);
  std::memset(data.at.get(), 0, 16);
  check(digest_by_a_team(data, 16, 0) == 0xA2E4B28D82197B2A, "V1");
  std::iota(data.at.get(), data.at.get() + 48, 0);
  check(digest_by_a_team(data, 48, 1) == 0xF847701B64D72957, "V2");
  generate(data.at.get(), 65536);
  check(digest_by_a_team(data, 65536, 63) == 0x2692966A16B27130, "V3");
}

void golden_header() {
  Room data(32768), slot(4096 + 32768);
  generate(data.at.get(), 32768);
  std::uint8_t* const layers[] = {data.at.get()};
  std::uint8_t* const slots[] = {slot.at.get()};
  const std::uint32_t blocks[] = {0};
  SlotName name{0, 0, 7};
  std::uint8_t key[16];
  std::iota(key, key + 16, 0);
  std::memcpy(&name.key_lo, key, 16);
  std::uint64_t digests[2];
  std::uint32_t arrived[1] = {0};
  SlotHeader header;
  const CopyJob job{paged_kv(layers, 1, 1, 1, 16384, 32768, 16384, 0, 0, 16),
                    blocks,
                    slots,
                    &name,
                    {slot_word0(1), 0x1122334455667788, 2, 512},
                    16384,
                    0,
                    1,
                    1,
                    2,
                    2,
                    0,
                    digests,
                    arrived,
                    &header,
                    nullptr};
  play<Copy::gather>(job, 2, 1);
  const std::uint64_t expected[8] = {
      0x00010001564B4D4C, 0x1122334455667788, 0x0706050403020100, 0x0F0E0D0C0B0A0908, 7,
      0x0000020000000002, 0xEE6B66066C4D79B6, 0x5D10CE308A9CB962};
  check(std::memcmp(&header, expected, 64) == 0, "the golden header");
  check(std::memcmp(slot.at.get() + 4096, data.at.get(), 32768) == 0, "the golden payload");
}

// Two layers of three heads, K and V of a token side by side, runs of 160 bytes; two chunks of
// three blocks of 16 tokens: segments of 15,360 bytes, not a whole number of turns.
struct World {
  static constexpr std::uint32_t kLayers = 2, kHeads = 3, kTokens = 16, kRun = 160, kBlocks = 8;
  static constexpr std::int64_t kToken = 2 * kRun, kHead = kTokens * kToken,
                                kBlock = kHeads * kHead;
  static constexpr std::uint64_t kSegment = 2ull * 3 * kTokens * kRun;

  std::vector<Room> layers;
  std::vector<Room> slots;
  std::vector<std::uint8_t*> layer_at, slot_at;
  std::uint32_t blocks[6] = {5, 0, 7, 2, 3, 6};
  SlotName names[2] = {{1, 2, 3}, {4, 5, 6}};
  std::vector<std::uint64_t> digests = std::vector<std::uint64_t>(2 * kLayers * kHeads);
  std::uint32_t arrived[2] = {0, 0}, verdicts[2] = {9, 9};
  SlotHeader headers[2];
  SlotLayout layout{kLayers * kHeads, kSegment, kPageFormatTokens, 77};
  CopyJob job;

  World() {
    for (std::uint32_t n = 0; n < kLayers; ++n) {
      layers.emplace_back(kBlocks * kBlock);
      generate(layers[n].at.get(), layers[n].size);
      layers[n].at.get()[0] = std::uint8_t(n);
      layer_at.push_back(layers[n].at.get());
    }
    for (int n = 0; n < 2; ++n) {
      slots.emplace_back(layout.used_bytes());
      slot_at.push_back(slots[std::size_t(n)].at.get());
    }
    job = {paged_kv(layer_at.data(), 2, 3, kTokens, kRun, kBlock, kHead, kToken, kRun, 16),
           blocks,
           slot_at.data(),
           names,
           {slot_word0(kPageFormatTokens), 77, layout.segments,
            std::uint32_t(layout.payload_bytes() / 64)},
           kSegment,
           0,
           2,
           kLayers,
           kHeads,
           kHeads,
           0,
           digests.data(),
           arrived,
           headers,
           verdicts};
  }

  void publish() {
    const HeaderJob each{slot_at.data(), headers, 2};
    for (std::uint32_t n = 0; n < kHeaderThreads; ++n) publish_slot(each, n);
  }

  Copier copier() {
    Pages pages;
    for (std::uint8_t* at : layer_at) pages.layers.push_back(reinterpret_cast<std::byte*>(at));
    pages.blocks = kBlocks, pages.heads = kHeads, pages.tokens = kTokens, pages.run_bytes = kRun;
    pages.block_stride = kBlock, pages.head_stride = kHead, pages.token_stride = kToken;
    pages.planes = 2, pages.plane_stride = kRun;
    return Copier(layout, pages, 3);
  }

  bool all(SlotVerdict verdict) const { return verdicts[0] == verdict && verdicts[1] == verdict; }
};

void like_the_host(std::uint32_t teams, std::uint64_t seed, unsigned threads) {
  World world;
  play<Copy::gather>(world.job, teams, seed, threads);
  world.publish();
  Room hosts(world.layout.used_bytes());
  for (std::size_t n = 0; n < 2; ++n) {
    std::memset(hosts.at.get(), 0xEE, hosts.size);
    const SlotName& name = world.names[n];
    world.copier().gather(hosts.bytes(), Key{name.key_lo, name.key_hi}, name.generation,
                          {world.blocks + 3 * n, 3});
    check(std::memcmp(hosts.at.get(), world.slots[n].at.get(), hosts.size) == 0, "the host's slot");
  }
  play<Copy::audit>(world.job, teams, seed + 1, threads);
  check(world.all(SLOT_GOOD), "audit of what was gathered");

  // Into other pages, all zero: the chunks' blocks are the pages', the others stay zero.
  World other;
  for (Room& layer : other.layers) std::memset(layer.at.get(), 0, layer.size);
  other.job.slots = world.slot_at.data();
  play<Copy::scatter>(other.job, teams, seed + 2, threads);
  check(other.all(SLOT_GOOD), "scatter's verdict");
  for (std::size_t layer = 0; layer < World::kLayers; ++layer) {
    for (std::uint32_t block = 0; block < World::kBlocks; ++block) {
      const std::size_t at = std::size_t(block * World::kBlock);
      const std::vector<std::uint8_t> zeros(World::kBlock, 0);
      const bool meant = std::count(world.blocks, world.blocks + 6, block) == 1;
      const std::uint8_t* expected = meant ? world.layer_at[layer] + at : zeros.data();
      check(std::memcmp(other.layer_at[layer] + at, expected, World::kBlock) == 0, "a block");
    }
  }
  world.slot_at[1][world.layout.used_bytes() - 1] ^= 1;
  play<Copy::verify>(world.job, teams, seed + 3, threads);
  check(world.verdicts[0] == SLOT_GOOD && world.verdicts[1] == SLOT_DIGEST, "verify's verdicts");
}

// One segment's team found another header, and read nothing; the header has come back since, and
// the scratch has the right digest from an earlier launch.
void a_refused_segment_is_never_good() {
  World world;
  play<Copy::gather>(world.job, 1, 1);
  world.publish();
  for (const std::uint32_t refused : {0u, LMKV_REFUSED}) {
    world.arrived[0] = 1 | refused;
    world.job.chunks = 1;
    run_grid<Team, CopyShared<Team>>(1, 1, 1, [&](Team&, CopyShared<Team>& shared) {
      for (std::uint32_t item = 1; item < World::kLayers * World::kHeads; ++item) {
        Team team(item, World::kLayers * World::kHeads, 1);
        copy_chunks<Copy::verify, 16>(team, world.job, shared);
      }
    });
    check(world.verdicts[0] == (refused ? SLOT_GONE : SLOT_GOOD), "a refused segment");
    check(world.arrived[0] == 0, "ready for the next launch");
  }
}

// Each thread takes what its neighbour left: right with a barrier between, and only then.
bool neighbours_agree(bool barrier) {
  struct Shared {
    int left[Team::kSize];
  };
  bool good = true;
  run_grid<Team, Shared>(1, 5, 1, [&](Team& team, Shared& shared) {
    Team::Local<int> taken;
    const auto leave = [&](int thread) { shared.left[thread] = thread; };
    const auto take = [&](int thread) { taken[thread] = shared.left[(thread + 1) % Team::kSize]; };
    if (barrier) {
      team.phase(leave);
      team.phase(take);
    } else {
      team.phase([&](int thread) { leave(thread), take(thread); });
    }
    for (int n = 0; n < Team::kSize; ++n) good = good && taken[n] == (n + 1) % Team::kSize;
  });
  return good;
}

}  // namespace

int main() {
  golden_digests();
  golden_header();
  for (const std::uint32_t teams : {1u, 2u, 7u, 40u}) like_the_host(teams, teams, 1);
  for (std::uint64_t seed = 0; seed < 5; ++seed) like_the_host(6, 10 * seed, 3);
  a_refused_segment_is_never_good();
  check(neighbours_agree(true), "a body with its barrier");
  check(!neighbours_agree(false), "a body without its barrier went unnoticed");
  return failures == 0 ? 0 : 1;
}
