// Slot table and directory under sanitizers: threads on one table, growth, shrinking and sweeping
// of the directory against a std::map, and the end of the counters.
#include <algorithm>
#include <map>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "directory/directory.h"
#include "expect.h"
#include "slots/slot_table.h"

using namespace lmkv;

namespace {

Key key(std::uint64_t number) { return {number, ~number}; }

std::vector<Key> keys(std::uint64_t first, std::size_t n) {
  std::vector<Key> out;
  for (std::size_t i = 0; i < n; ++i) out.push_back(key(first + i));
  return out;
}

// Chunks change their form back and forth while others are stored, pinned and retired; then every
// granule is accounted for, and full slots have all frames again.
void short_slots_share_frames() {
  constexpr std::uint32_t kFrames = 24;
  SlotTable table(kFrames, 10, 0.1, 0.1);
  table.grow(kFrames);
  std::mt19937_64 random(5);
  const auto sum = [&] {
    const SlotTable::Granules now = table.granules();
    return now.free + now.reserved + now.readable + now.pinned + now.retired + now.limbo;
  };
  for (int i = 0; i < 20000; ++i) {
    const auto mine = keys(random() % 40, 1 + random() % 4);
    const std::vector<std::uint8_t> sizes(mine.size(), std::uint8_t(1 + random() % 16));
    const auto there = table.contains(mine);
    if (std::ranges::count(there, 0) == std::ptrdiff_t(mine.size())) {
      const auto got = table.reserve(mine, i, sizes);
      if (!got) continue;
      if (random() % 8 == 0) {
        table.abort(got->places, got->counters, true);
        table.end_limbo(got->places, got->counters);
      } else {
        EXPECT(table.admit(got->places, got->counters, true) == mine.size());
      }
    } else if (table.lookup(mine, true) == mine.size()) {
      const SlotArrays old = table.places(mine);
      const bool pinned = random() % 8 == 0;
      if (pinned) table.pin(mine);
      if (const auto got = table.reserve_again(mine, i, sizes)) {
        table.replace(got->places, got->counters, old.places, old.counters);
        table.abort(got->places, got->counters, false);
      }
      if (pinned) table.unpin(old.places, old.counters);
      if (random() % 8 == 0) table.retire(mine);
    }
    if (i % 64 == 0) table.take_changes();
    if (i % 5000 == 4999) table.begin_epoch();
    EXPECT(sum() == kFrames * 16);
    EXPECT(table.slice(0, kFrames * 16).keys.size() == table.sums().count);
  }
  const auto all = table.reserve(keys(1000, kFrames), 1e6);
  EXPECT(all.has_value());
  EXPECT(table.granules().reserved == kFrames * 16);
}

// As many chunks as a pool has granules, and then more: the oldest make room, as full slots do.
void a_pool_full_of_the_shortest_slots_takes_more() {
  constexpr std::uint32_t kFrames = 3;
  SlotTable table(kFrames, kFrames, 0.0, 0.1);
  table.grow(kFrames);
  const std::uint8_t one = 1;
  for (std::uint64_t n = 0; n < 5 * kFrames * 16; ++n) {
    const auto got = table.reserve(keys(n, 1), double(n), {&one, 1});
    EXPECT(got.has_value());
    EXPECT(table.admit(got->places, got->counters, true) == 1);
    table.take_changes();
  }
  EXPECT(table.granules().readable == kFrames * 16);
  EXPECT(table.lookup(keys(4 * kFrames * 16, kFrames * 16), false) == kFrames * 16);
}

// Stores, prefix lookups, pins and announcements from several threads; then the books must balance.
void threads_share_a_slot_table() {
  SlotTable table(256, 100, 0.05, 0.1);
  table.grow(128);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&table, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 2000; ++i) {
        const auto mine = keys(std::uint64_t(t) << 32 | i * 8, 1 + random() % 8);
        const auto got = table.reserve(mine, i);
        if (!got) continue;
        if (random() % 8 == 0) {
          table.abort(got->places, got->counters, true);
          table.end_limbo(got->places, got->counters);
          continue;
        }
        EXPECT(table.admit(got->places, got->counters, random() % 2) == mine.size());
        const SlotArrays where = table.pin(mine);
        const std::vector<Key> held(mine.begin(), mine.begin() + where.places.size());
        EXPECT(table.places(held).places == where.places);
        table.lookup(mine, true);
        table.touch(got->places, got->counters);
        if (random() % 16 == 0) table.retire(mine);  // while they are pinned
        table.unpin(where.places, where.counters);
        if (random() % 16 == 0) table.retire(mine);
      }
    });
  }
  // One listener, as the agent's background thread is.
  Sums heard;
  const auto listen = [&] {
    for (const auto& change : table.take_changes()) {
      for (std::size_t i = 0; i < change.slots.keys.size(); ++i) {
        const Sums one =
            term(change.slots.keys[i], change.slots.places[i], change.slots.counters[i]);
        change.announce ? heard += one : heard -= one;
      }
    }
    EXPECT(heard == table.sums());
  };
  for (int i = 0; i < 200; ++i) {
    listen();
    if (i == 100) table.grow(256);
    std::this_thread::yield();
  }
  for (auto& thread : threads) thread.join();
  listen();
  const auto granules = table.granules();
  EXPECT(granules.reserved == 0 && granules.pinned == 0 && granules.limbo == 0);
  EXPECT(granules.free + granules.readable + granules.retired == 256 * 16);
  EXPECT(table.pins() == 0);
  EXPECT(table.slice(0, 256 * 16).keys.size() == heard.count);
}

void counters_end_before_they_wrap() {
  SlotTable table(4, 4, 0, 0.1, Tier::host, 3);
  table.grow(4);
  EXPECT(table.reserve(keys(1, 3), 0));
  bool refused = false;
  try {
    table.reserve(keys(9, 1), 0);
  } catch (const std::overflow_error&) {
    refused = true;
  }
  EXPECT(refused);
  EXPECT(table.granules().free == 16);
  table.begin_epoch();
  EXPECT(table.reserve(keys(9, 1), 0)->counters[0] == 1);
}

struct Model {
  Directory directory;
  std::vector<int> instances;
  std::map<std::uint64_t, std::map<int, std::uint32_t>> held;  // key -> instance -> counter

  void announce(int instance, std::uint64_t number, std::uint32_t counter) {
    const Key k = key(number);
    const Place place{static_cast<std::uint32_t>(number * 16), 16, 0, 0};
    directory.announce(instance, {&k, 1}, {&place, 1}, {&counter, 1});
    held[number][instance] = counter;
  }

  bool retract(int instance, std::uint64_t number) {
    const auto it = held.find(number);
    const bool there = it != held.end() && it->second.count(instance);
    const std::uint32_t counter = there ? it->second[instance] : 1;
    const Key k = key(number);
    const Place place{static_cast<std::uint32_t>(number * 16), 16, 0, 0};
    EXPECT(directory.retract(instance, {&k, 1}, {&place, 1}, {&counter, 1}) == there);
    if (!there) return false;
    it->second.erase(instance);
    if (it->second.empty()) held.erase(it);
    return true;
  }

  void drop(std::size_t at) {
    directory.drop(instances[at]);
    for (auto it = held.begin(); it != held.end();) {
      it->second.erase(instances[at]);
      it = it->second.empty() ? held.erase(it) : std::next(it);
    }
    instances.erase(instances.begin() + at);
  }

  // A sparse locate names a holder of each key that somebody has, and its place.
  void locate(std::uint64_t first) {
    std::vector<Key> keys;
    for (std::uint64_t n = 0; n < 64; ++n) keys.push_back(key(first + n));
    const Located answer = directory.locate(keys, -1, {}, {}, true);
    std::size_t covered = 0;
    for (const Run& run : answer.runs)
      for (std::uint32_t i = 0; i < run.n; ++i, ++covered) {
        const std::uint64_t number = first + run.first + i;
        EXPECT(held.at(number).at(run.instance) == answer.counters[run.offset + i]);
        EXPECT(answer.places[run.offset + i].first == number * 16);
      }
    std::size_t there = 0;
    for (std::uint64_t n = 0; n < 64; ++n) there += held.count(first + n);
    EXPECT(covered == there && answer.found == there);
  }

  void check() {
    for (std::uint64_t first = 0; first < 4096; first += 64) locate(first);
    EXPECT(directory.size() == held.size());
    std::map<int, Sums> sums;
    for (const auto& [number, holders] : held) {
      std::vector<int> expected;
      for (const auto& [instance, counter] : holders) {
        expected.push_back(instance);
        sums[instance] +=
            term(key(number), {static_cast<std::uint32_t>(number * 16), 16, 0, 0}, counter);
      }
      EXPECT(directory.holders(key(number)) == expected);
    }
    for (const int instance : instances) EXPECT(directory.sums(instance) == sums[instance]);
  }
};

// Far more keys than a page holds, so that sub-tables grow, overflow their groups and shrink again.
void a_directory_grows_and_shrinks() {
  Model model;
  std::mt19937_64 random(1);
  for (int i = 0; i < 20; ++i) model.instances.push_back(model.directory.add(0, i));
  constexpr std::uint64_t kNumbers = 400'000;
  const auto some = [&] { return model.instances[random() % model.instances.size()]; };
  for (int i = 0; i < 450'000; ++i) model.announce(some(), random() % kNumbers, 1 + i % 7);
  model.check();
  for (int i = 0; i < 450'000; ++i) model.retract(some(), random() % kNumbers);
  model.check();
  for (int i = 0; i < 12; ++i) model.drop(3);
  EXPECT(!model.directory.sweep(1000));
  for (int i = 0; i < 100'000; ++i) model.announce(some(), random() % kNumbers, 1 + i % 7);
  model.check();
  while (!model.directory.sweep(10'000)) {
  }
  model.check();
  const int again = model.directory.add(0, 0);  // a number of one that is swept
  EXPECT(again < 20);
  model.instances.push_back(again);
  for (int i = 0; i < 100'000; ++i) model.announce(some(), random() % kNumbers, 9);
  model.check();
  while (model.instances.size() > 1) model.drop(0);
  while (!model.directory.sweep(1'000'000)) {
  }
  model.check();
}

// Keys that share the bits by which a group is chosen: groups overflow into their neighbours.
void keys_of_one_group_overflow() {
  KeyTable table;
  std::vector<Key> same;
  for (std::uint64_t n = 0; same.size() < 400; ++n)
    if ((KeyTable::hash(key(n)) >> 50) == 77) same.push_back(key(n));
  for (std::size_t i = 0; i < same.size(); ++i)
    table.insert(same[i], KeyTable::hash(same[i])).holder.first = i;
  for (std::size_t i = 0; i < same.size(); i += 2) table.erase(same[i], KeyTable::hash(same[i]));
  for (std::size_t i = 0; i < same.size(); ++i) {
    const Entry* entry = table.find(same[i], KeyTable::hash(same[i]));
    EXPECT(i % 2 ? entry && entry->holder.first == i : !entry);
  }
  for (std::size_t i = 0; i < same.size(); i += 2)
    table.insert(same[i], KeyTable::hash(same[i])).holder.first = i;
  for (std::size_t i = 0; i < same.size(); ++i)
    EXPECT(table.find(same[i], KeyTable::hash(same[i]))->holder.first == i);
  EXPECT(table.size() == same.size());
}

// Slabs are zeros and nobody else's, whether the thread was there first or not.
void slabs_are_made_ready() {
  for (int round = 0; round < 4; ++round) {
    Slabs slabs;
    std::vector<std::uint64_t*> mine;
    for (std::uint64_t i = 0; i < 24; ++i) {
      slabs.ready(i % 3 ? 1000 : round % 2);  // more than are ever made
      auto* slab = static_cast<std::uint64_t*>(slabs.take());
      EXPECT(reinterpret_cast<std::uintptr_t>(slab) % Slabs::kBytes == 0);
      for (std::size_t at = 0; at < Slabs::kBytes / 8; at += 512) {
        EXPECT(slab[at] == 0);
        slab[at] = i + 1;
      }
      mine.push_back(slab);
    }
    for (std::uint64_t i = 0; i < 24; ++i) EXPECT(mine[i][512] == i + 1);
    EXPECT(slabs.taken() == 24 && slabs.bytes() <= (24 + Slabs::kMostReady) * Slabs::kBytes);
    slabs.ready(0);
    EXPECT(slabs.bytes() <= 25 * Slabs::kBytes);  // the one that is just being made
  }
}

// A table that grows for what is expected, takes some of it, and gives the rest back.
void a_table_grows_for_what_is_expected() {
  Directory directory;
  const int a = directory.add(0, 0), b = directory.add(0, 0);
  const std::size_t n = 4096;
  const std::vector<Place> places(n, Place{0, 16, 0, 0});
  const std::vector<std::uint32_t> counters(n, 1);
  directory.expect(a, 200 * n);
  directory.expect(b, 1000 * n);
  directory.begin_sync(a);
  for (std::uint64_t slice = 0; slice < 200; ++slice) {
    const auto part = keys(slice * n, n);
    const Differing found = directory.sync_slice(a, 0, 16, part, places, counters);
    EXPECT(found.missing == n && found.missing_keys.size() == Differing::kShown);
  }
  EXPECT(directory.moved() < 200 * n);  // less than once each
  directory.end_sync(a);
  const std::size_t before = directory.bytes();
  directory.drop(b);
  while (!directory.sweep(0)) {
  }
  EXPECT(directory.bytes() < before);
  for (std::uint64_t i = 0; i < 200 * n; i += 97)
    EXPECT(directory.holders(key(i)) == std::vector<int>{a});
  EXPECT(directory.size() == 200 * n);
}

}  // namespace

// What has one thread is slow under the thread sanitizer, and tells it nothing.
#ifdef __SANITIZE_THREAD__
constexpr bool kThreadsOnly = true;
#else
constexpr bool kThreadsOnly = false;
#endif

int main() {
  threads_share_a_slot_table();
  slabs_are_made_ready();
  short_slots_share_frames();
  if (kThreadsOnly) return 0;
  a_pool_full_of_the_shortest_slots_takes_more();
  counters_end_before_they_wrap();
  keys_of_one_group_overflow();
  a_directory_grows_and_shrinks();
  a_table_grows_for_what_is_expected();
  std::puts("tables: good");
}
