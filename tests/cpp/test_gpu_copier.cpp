// The GPU's copier on a fake driver: a thread stores while another loads, both paths, and a context
// that is lost while both wait. What is loaded is what was stored.
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "cuda/gpu_copier.h"
#include "expect.h"

using namespace lmkv;
using namespace lmkv::cuda;

namespace {

constexpr std::uint64_t kLayers = 2, kHeads = 2, kTokens = 4, kRun = 32, kBlocks = 32;
constexpr std::uint64_t kBlockBytes = kHeads * kTokens * 2 * kRun;  // K beside V of a token
constexpr std::uint32_t kChunks = 6, kPer = 2, kRounds = 20;
constexpr unsigned char kFatbin[64] = {0x50, 0xED, 0x55, 0xBA};

template <class Function>
Function* control(const char* name) {
  static void* const fake = dlopen(FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
  EXPECT(fake);
  auto* const found = reinterpret_cast<Function*>(dlsym(fake, name));
  EXPECT(found);
  return found;
}

struct Card {
  std::vector<std::byte> kv = std::vector<std::byte>(kLayers * kBlocks * kBlockBytes);
  SlotLayout layout{kLayers * kHeads, 2 * kPer* kTokens* kRun, kPageFormatTokens, 7};
  std::vector<std::byte> room = std::vector<std::byte>(kChunks * layout.slot_bytes() + 4096);
  Gpu gpu{FAKE_CUDA, 0};
  std::unique_ptr<Channel> stores, loads;
  std::unique_ptr<GpuCopier> copier;

  Card() {
    for (std::size_t n = 0; n < kv.size(); ++n) kv[n] = std::byte(n * 131 >> 3);
    EXPECT(control<bool(std::uintptr_t, std::size_t)>("lmkv_fake_adopt")(
        reinterpret_cast<std::uintptr_t>(kv.data()), kv.size()));
    gpu.load(std::as_bytes(std::span(kFatbin)));
    gpu.register_host(slot(0), kChunks * layout.slot_bytes(), false);
    const std::size_t staging = 2 * 2 * layout.slot_bytes();  // two slots a lane
    stores = std::make_unique<Channel>(gpu, 0, staging);
    loads = std::make_unique<Channel>(gpu, 1, staging);
    Pages pages{.layers = {kv.data(), kv.data() + kBlocks * kBlockBytes},
                .blocks = kBlocks,
                .heads = kHeads,
                .tokens = kTokens,
                .run_bytes = kRun,
                .block_stride = kBlockBytes,
                .head_stride = kTokens * 2 * kRun,
                .token_stride = 2 * kRun,
                .planes = 2,
                .plane_stride = kRun};
    copier = std::make_unique<GpuCopier>(gpu, layout, pages, kPer, 1, 4);
  }

  ~Card() {
    control<bool(std::uintptr_t)>("lmkv_fake_disown")(reinterpret_cast<std::uintptr_t>(kv.data()));
  }

  std::byte* slot(std::size_t n) {
    const auto at = reinterpret_cast<std::uintptr_t>(room.data());
    return room.data() + (round_up(at, 4096) - at) + n * layout.slot_bytes();
  }
};

// Chunk n of this round in the slots from `first` on: its blocks are 2n and 2n + 1 beyond `base`.
struct Chunks {
  std::vector<std::vector<std::uint32_t>> blocks;
  std::vector<GpuChunk> all;

  Chunks(Card& card, std::uint32_t first, std::uint32_t count, std::uint32_t base,
         std::uint64_t generation) {
    blocks.reserve(count);
    for (std::uint32_t n = 0; n < count; ++n) {
      blocks.push_back({base + 2 * n, base + 2 * n + 1});
      all.push_back({card.slot(first + n), Key{first + n, 1}, generation, blocks.back()});
    }
  }
};

bool same_blocks(const Card& card, std::uint32_t a, std::uint32_t b, std::uint32_t count) {
  for (std::uint64_t layer = 0; layer < kLayers; ++layer) {
    const std::byte* const at = card.kv.data() + layer * kBlocks * kBlockBytes;
    if (std::memcmp(at + a * kBlockBytes, at + b * kBlockBytes, count * kBlockBytes) != 0) {
      return false;
    }
  }
  return true;
}

// Slots 0 to 2 are stored again and again from blocks 0 to 5, while 3 to 5 are loaded to 16 to 21.
void store_and_load(CopyPath path) {
  Card card;
  const Chunks stored(card, 3, 3, 6, 1);
  card.copier->gather(*card.stores, stored.all, nullptr, path);
  std::thread storing([&] {
    for (std::uint32_t round = 1; round <= kRounds; ++round) {
      const Chunks mine(card, 0, 3, 0, round);
      card.copier->gather(*card.stores, mine.all, nullptr, path);
      for (const SlotStatus status : card.copier->audit(*card.stores, mine.all)) {
        EXPECT(status == SlotStatus::good);
      }
    }
  });
  std::thread loading([&] {
    for (std::uint32_t round = 0; round < kRounds; ++round) {
      const Chunks mine(card, 3, 3, 16, 1);
      for (const SlotStatus status :
           card.copier->scatter(*card.loads, mine.all, nullptr, nullptr, path)) {
        EXPECT(status == SlotStatus::good);
      }
    }
  });
  storing.join();
  loading.join();
  EXPECT(same_blocks(card, 6, 16, 6));
  const Chunks last(card, 0, 3, 22, kRounds);
  for (const SlotStatus status :
       card.copier->scatter(*card.loads, last.all, nullptr, nullptr, path)) {
    EXPECT(status == SlotStatus::good);
  }
  EXPECT(same_blocks(card, 0, 22, 6));
}

void lose_the_context(CopyPath path) {
  Card card;
  const Chunks mine(card, 0, 3, 0, 1);
  control<bool(bool)>("lmkv_fake_hold_all")(true);
  const auto fails = [&](auto&& copy) {
    try {
      copy();
      return false;
    } catch (const Error& error) {
      return error.result == ILLEGAL_ADDRESS;
    }
  };
  bool stored = false, loaded = false;
  std::thread storing(
      [&] { stored = fails([&] { card.copier->gather(*card.stores, mine.all, nullptr, path); }); });
  std::thread loading([&] {
    loaded = fails([&] { card.copier->scatter(*card.loads, mine.all, nullptr, nullptr, path); });
  });
  control<bool(double)>("lmkv_fake_settle")(10);
  control<bool(int, int)>("lmkv_fake_lose_context")(0, ILLEGAL_ADDRESS);
  storing.join();
  loading.join();
  EXPECT(stored && loaded);
  EXPECT(load_header(card.slot(0)).word0 == 0);
}

}  // namespace

int main() {
  for (const CopyPath path : {CopyPath::direct, CopyPath::staged}) {
    store_and_load(path);
    EXPECT(*control<const char*(const char*)>("lmkv_fake_read")("live") == 0);
    EXPECT(*control<const char*(const char*)>("lmkv_fake_read")("complaints") == 0);
    lose_the_context(path);
    control<bool()>("lmkv_fake_reset")();
  }
}
