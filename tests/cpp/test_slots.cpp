// Slots, pools and copies under the sanitizers: runs that end where their memory ends, a writer
// that overwrites under a reader, and segments that are refused.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "codec/zstd.h"
#include "copy/copier.h"
#include "copy/runs.h"
#include "expect.h"
#include "isa.h"
#include "memory/pool.h"
#include "slots/compressed_slot.h"

using namespace lmkv;

namespace {

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<std::byte, Free>;

// Exactly `bytes` bytes: what is read or written behind them is found by the sanitizer.
Memory exactly(std::size_t bytes, unsigned seed) {
  void* memory = nullptr;
  EXPECT(posix_memalign(&memory, 64, bytes) == 0);
  auto* out = static_cast<std::byte*>(memory);
  for (std::size_t i = 0; i < bytes; ++i) {
    seed = seed * 1664525 + 1013904223;
    out[i] = std::byte(seed >> 24);
  }
  return Memory(out);
}

void runs_of_any_length_agree_with_scalar() {
  for (std::size_t bytes = 16; bytes <= 4608; bytes += 16) {
    for (const std::uint32_t unit : {0u, 1u, 1000u}) {
      const Memory from = exactly(bytes, unsigned(bytes)), to = exactly(bytes, 1);
      Lmx64 expected, copied, read;
      kScalarRuns.read(from.get(), bytes, unit, nullptr, expected);
      active_runs().copy(to.get(), from.get(), bytes, unit, from.get(), copied);
      active_runs().fence();
      active_runs().read(to.get(), bytes, unit, to.get(), read);
      EXPECT(std::memcmp(from.get(), to.get(), bytes) == 0);
      EXPECT(copied.t0 == expected.t0 && copied.t1 == expected.t1);
      EXPECT(read.t0 == expected.t0 && read.t1 == expected.t1);
    }
  }
}

void a_digest_may_be_split_anywhere() {
  const Memory data = exactly(1600, 5);
  const std::uint64_t whole = lmx64(data.get(), 1600, 9);
  for (std::size_t cut = 16; cut < 1600; cut += 16) {
    Lmx64 sums;
    active_runs().read(data.get() + cut, 1600 - cut, std::uint32_t(cut / 16), nullptr, sums);
    active_runs().read(data.get(), cut, 0, nullptr, sums);
    EXPECT(lmx64_finish(sums, 1600, 9) == whole);
  }
}

void chunks_come_back_from_pages_of_exactly_their_size() {
  for (const std::uint64_t run : {16ull, 80ull, 128ull, 2064ull}) {
    const std::uint64_t planes = 2, blocks = 5, heads = 3, tokens = 2;
    const std::uint64_t head = run * tokens, block = head * heads, plane = block * blocks;
    const Memory first = exactly(plane * planes, 1), second = exactly(plane * planes, 2);
    const Pages pages{.layers = {first.get(), second.get()},
                      .blocks = blocks,
                      .heads = heads,
                      .tokens = tokens,
                      .run_bytes = run,
                      .block_stride = std::int64_t(block),
                      .head_stride = std::int64_t(head),
                      .token_stride = std::int64_t(run),
                      .planes = planes,
                      .plane_stride = std::int64_t(plane)};
    const SlotLayout layout(6, pages.segment_bytes(2), kPageFormatTokens, 7);
    const Copier copier(layout, pages, 2);
    Pool pool(layout.granule_bytes(), 2, 1, 0);
    pool.add_segment(true);
    std::byte* slot = pool.slot({.first = 0, .granules = 16});
    const Key key{1, 2};
    copier.gather(slot, key, 3, std::vector<std::uint32_t>{4, 1});
    EXPECT(check_slot(slot, layout, key, 3) == SlotStatus::good);
    EXPECT(copier.audit(slot, std::vector<std::uint32_t>{4, 1}));
    EXPECT(copier.scatter(slot, key, 3, std::vector<std::uint32_t>{0, 4}) == SlotStatus::good);
    // Block 4 went to block 0, then block 1 to block 4.
    for (const std::byte* layer : {first.get(), second.get()}) {
      for (std::uint64_t p = 0; p < planes; ++p, layer += plane) {
        EXPECT(std::memcmp(layer + 4 * block, layer + block, block) == 0);
        EXPECT(std::memcmp(layer, layer + block, block) != 0);
      }
    }
  }
}

// A holder reuses its slot over and over while a reader scatters from it: what the reader calls
// good is always the whole chunk that it asked for.
void a_reader_is_safe_from_a_writer() {
  constexpr std::uint64_t kPage = 4096, kBlocks = 16;
  const Memory source = exactly(kPage * kBlocks, 1), target = exactly(kPage * kBlocks, 2);
  for (std::uint64_t b = 0; b < kBlocks; ++b) {
    std::memset(source.get() + b * kPage, int(b), kPage);
  }
  const auto pages = [&](const Memory& memory) {
    return Pages{.layers = {memory.get()},
                 .blocks = kBlocks,
                 .heads = 1,
                 .tokens = 1,
                 .run_bytes = kPage,
                 .block_stride = kPage,
                 .head_stride = kPage};
  };
  const SlotLayout layout(1, 4 * kPage, kPageFormatBlocks, 7);
  const Copier writer(layout, pages(source), 4), reader(layout, pages(target), 4);
  Pool pool(layout.granule_bytes(), 1, 1, 0);
  pool.add_segment(true);
  PoolMap map(layout.granule_bytes(), 1, 1, 0, false);
  map.add_segment(pool.segment_fd(0, true).get());
  std::byte* slot = pool.slot({.first = 0, .granules = 16});
  const std::byte* mapped = map.slot({.first = 0, .granules = 16});

  std::atomic<std::uint64_t> generation = 0;
  std::atomic<bool> stop = false;
  std::thread holder([&] {
    for (std::uint64_t g = 1; !stop; ++g) {
      const std::uint32_t b = g % 12;
      writer.gather(slot, Key{g, 0}, g, std::vector<std::uint32_t>{b, b + 1, b + 2, b + 3});
      generation = g;
    }
  });
  int good = 0, gone = 0;
  while (good + gone < 3000 || generation < 3000) {
    const std::uint64_t g = generation;
    const SlotStatus status =
        reader.scatter(mapped, Key{g, 0}, g, std::vector<std::uint32_t>{0, 1, 2, 3});
    (status == SlotStatus::good ? good : gone) += 1;
    // The holder clears word 0 before it touches the rest: too late, and never corrupt.
    EXPECT(status == SlotStatus::good || status == SlotStatus::gone);
    if (status != SlotStatus::good) continue;
    for (std::uint64_t i = 0; i < 4; ++i) {
      EXPECT(std::memcmp(target.get() + i * kPage, source.get() + (g % 12 + i) * kPage, kPage) ==
             0);
    }
  }
  stop = true;
  holder.join();
  std::printf("reader: %d good, %d gone\n", good, gone);
}

// Compressed slots are written over parts of earlier ones, while a reader asks for these: they are
// whole, or gone; what is written over them is never taken for a fault of theirs.
void a_reader_is_safe_from_shorter_slots() {
  const SlotLayout layout(2, 32768, kPageFormatTokens, 7);
  constexpr std::uint64_t kFrames = 3;
  Pool pool(layout.granule_bytes(), kFrames, kFrames, 0);
  pool.add_segment(true);
  PoolMap map(layout.granule_bytes(), kFrames, kFrames, 0, false);
  map.add_segment(pool.segment_fd(0, true).get());
  try {
    load_zstd("libzstd.so.1");
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return;
  }
  std::mt19937_64 random(9);
  std::vector<std::vector<std::byte>> payloads, images;
  std::uint64_t longest = 0;
  Memory full(static_cast<std::byte*>(std::aligned_alloc(4096, layout.slot_bytes())));
  for (int n = 0; n < 3; ++n) {
    std::vector<std::byte>& payload = payloads.emplace_back(layout.payload_bytes());
    for (std::size_t i = 0; i < payload.size(); ++i)
      payload[i] = std::byte(i % (2 + n) ? n : random());
    write_slot(full.get(), layout, Key{}, 1, payload);
    images.push_back(compress_slot(full.get(), layout, Key{}, 1, 1 + n % 2).image);
    longest = std::max<std::uint64_t>(longest, images.back().size());
  }
  const std::uint64_t granule = layout.granule_bytes(), most = (longest + granule - 1) / granule;
  EXPECT(most < kGranulesPerSlot);
  const auto place = [&](std::uint64_t g) {  // of the slot with this generation
    const std::uint64_t granules = (images[g % 3].size() + granule - 1) / granule;
    return Place{std::uint32_t(mix64(g) % (kFrames * kGranulesPerSlot - most)),
                 std::uint8_t(granules)};
  };
  std::atomic<std::uint64_t> generation = 0;
  std::atomic<bool> stop = false;
  std::thread holder([&] {
    for (std::uint64_t g = 1; !stop; ++g) {
      const std::uint64_t room = place(g).granules * granule;
      pool.clear(place(g));
      place_compressed(pool.slot(place(g)), room, layout, Key{g, 0}, g, 1 + g % 3 % 2,
                       images[g % 3]);
      generation = g;
    }
  });
  int good = 0, gone = 0;
  while (good + gone < 20000 || generation < 3000) {
    const std::uint64_t last = generation, g = last - std::min(last, random() % 8);
    const SlotStatus status = expand_slot(map.slot(place(g)), place(g).granules * granule, layout,
                                          Key{g, 0}, g, full.get(), g);
    EXPECT(status == SlotStatus::good || status == SlotStatus::gone);
    (status == SlotStatus::good ? good : gone) += 1;
    if (status != SlotStatus::good) continue;
    EXPECT(std::memcmp(full.get() + layout.payload_offset(), payloads[g % 3].data(),
                       layout.payload_bytes()) == 0);
  }
  stop = true;
  holder.join();
  std::printf("reader of shorter slots: %d good, %d gone\n", good, gone);
}

// What a reader makes of a mismatch depends on what it finds in the header afterwards.
void a_mismatch_is_read_once_more() {
  const SlotLayout layout(1, 64, kPageFormatTokens, 7);
  Pool pool(layout.granule_bytes(), 1, 1, 0);
  pool.add_segment(true);
  std::byte* slot = pool.slot({.first = 0, .granules = 16});
  const Key key{1, 2};
  const std::vector<std::byte> payload(64);
  const auto read = [&](auto&& at_first, auto&& at_second) {
    write_slot(slot, layout, key, 3, payload);
    int reads = 0;
    return read_slot(slot, layout, key, 3, kFullSlot, [&](std::uint32_t n, const std::byte* bytes) {
      return (++reads == 1 ? at_first() : at_second()) ? lmx64(bytes, 64, n) : 0;
    });
  };
  const auto good = [] { return true; };
  const auto bad = [] { return false; };
  EXPECT(read(good, bad) == SlotStatus::good);
  EXPECT(read(bad, good) == SlotStatus::good);
  EXPECT(read(bad, bad) == SlotStatus::digest);
  const auto cleared = [&] { return clear_slot(slot), false; };
  EXPECT(read(cleared, good) == SlotStatus::gone);
  const auto reused = [&] { return write_slot(slot, layout, key, 4, payload), false; };
  EXPECT(read(reused, good) == SlotStatus::gone);
  // Rubbish in the word of the generation is a changed header, so it is not called corrupt.
  const auto writing = [&] { return slot[32] ^= std::byte(1), false; };
  EXPECT(read(writing, good) == SlotStatus::gone);
}

// Rubbish in a compressed slot, digests and all, is neither read beyond nor decoded. Without a zstd
// library only that it is incompatible can be tried.
void rubbish_in_a_compressed_slot_is_found() {
  const SlotLayout layout(3, 8192, kPageFormatTokens, 7);
  const Key key{1, 2};
  std::mt19937_64 random(9);
  std::vector<std::byte> payload(layout.payload_bytes());
  for (std::size_t i = 0; i < payload.size(); ++i) payload[i] = std::byte(i % 2 ? 60 : random());
  Pool pool(layout.granule_bytes(), 3, 3, 0);
  pool.add_segment(true);
  std::byte* full = pool.slot({.first = 0, .granules = 16});
  std::byte* back = pool.slot({.first = 16, .granules = 16});
  write_slot(full, layout, key, 3, payload);
  try {
    load_zstd("libzstd.so.1");
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return;
  }
  const CompressedSlot made = compress_slot(full, layout, key, 3, 2);
  EXPECT(made.status == SlotStatus::good);
  // Exactly the slot's bytes, so that a read beyond them is one beyond an allocation.
  const std::size_t bytes = made.image.size();
  auto* slot = static_cast<std::byte*>(std::aligned_alloc(4096, round_up(bytes, 4096)));
  const std::uint64_t room = round_up(bytes, 4096);
  const auto fill = [&] { place_compressed(slot, room, layout, key, 4, 2, made.image); };
  fill();
  EXPECT(expand_slot(slot, room, layout, key, 4, back, 5) == SlotStatus::good);
  EXPECT(std::memcmp(back + layout.payload_offset(), payload.data(), payload.size()) == 0);
  const std::uint64_t begin = compressed_payload_offset(layout.segments);
  for (int i = 0; i < 3000; ++i) {
    fill();
    std::vector<std::byte> image(slot, slot + bytes);
    const bool in_table = random() % 4 == 0;
    const std::size_t from = in_table ? 64 : begin, to = in_table ? begin : bytes;
    for (int n = 0; n < 1 + int(random() % 4); ++n)
      image[from + random() % (to - from)] = std::byte(random());
    // Digests of what is there now, as a writer that lies would make them.
    for (std::uint32_t n = 0; n < layout.segments; ++n) {
      CompressedSegment entry;
      std::memcpy(&entry, image.data() + 64 + 16 * n, 16);
      const std::uint64_t at = begin + entry.offset * std::uint64_t{64};
      const std::uint64_t length = entry.length * std::uint64_t{16};
      if (length == 0 || at + length > bytes) continue;
      entry.digest = lmx64(image.data() + at, length, n);
      std::memcpy(image.data() + 64 + 16 * n, &entry, 16);
    }
    place_compressed(slot, room, layout, key, 4, 2, image);
    const SlotStatus status = expand_slot(slot, room, layout, key, 4, back, 5);
    EXPECT(status == SlotStatus::good || status == SlotStatus::digest);
    EXPECT(check_slot(back, layout, key, 5) ==
           (status == SlotStatus::good ? SlotStatus::good : SlotStatus::gone));
  }
  std::free(slot);
}

template <class Error, class Call>
void refused(Call&& call, const char* text) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT(std::strstr(error.what(), text) != nullptr);
    return;
  }
  EXPECT(!"it was not refused");
}

void what_is_no_pool_segment_is_refused() {
  const SlotLayout layout(1, 64, kPageFormatTokens, 1);
  PoolMap map(layout.granule_bytes(), 2, 1, 0, false);
  const Descriptor unsealed(memfd_create("test", MFD_ALLOW_SEALING));
  EXPECT(ftruncate(unsealed.get(), off_t(layout.slot_bytes())) == 0);
  refused<std::runtime_error>([&] { map.add_segment(unsealed.get()); }, "not sealed");
  const Descriptor small = create_segment(4096);
  refused<std::runtime_error>([&] { map.add_segment(small.get()); }, "announced are");
  refused<std::runtime_error>([&] { map.add_segment(-1); }, "has no seals");
  refused<std::invalid_argument>([&] { map.slot({.first = 0, .granules = 16}); }, "usable");
  EXPECT(map.segments() == 0);
  const Descriptor right = create_segment(layout.slot_bytes());
  EXPECT(map.add_segment(right.get()) == 0);
}

}  // namespace

int main() {
  for (const Isa isa : available_isas()) {
    set_isa(name(isa));
    runs_of_any_length_agree_with_scalar();
    a_digest_may_be_split_anywhere();
    chunks_come_back_from_pages_of_exactly_their_size();
    a_reader_is_safe_from_a_writer();
    a_reader_is_safe_from_shorter_slots();
  }
  a_mismatch_is_read_once_more();
  rubbish_in_a_compressed_slot_is_found();
  what_is_no_pool_segment_is_refused();
  std::puts("slots: good");
}
