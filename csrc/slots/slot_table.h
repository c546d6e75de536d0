// The slots of one instance, the same in every rank's pool (DESIGN.md 5).
//
//   free -> reserve -> reserved -> admit -> readable <-> pinned
//                      reserved -> abort -> free, or limbo -> end_limbo -> free
//                      readable -> retire -> retired -> revive -> readable
//                                            retired -> reserve (reuse) -> reserved
//
// Retired slots keep their bytes and wait in a FIFO, which reserve() fills ahead of need once free
// slots have run out; reuse takes the oldest. A pinned slot is never taken for room; one that
// retire() names is found no more from then on, and its bytes stay until the last pin goes. A
// prefix ages from its tail: whatever touches several slots touches the last one first. Callers
// whose chain was admitted in pieces look it up once as a whole when it is done, which puts it in
// order.
//
// What the controllers must hear is a difference: each slot remembers what was told of it, and
// take_changes() tells what has changed since.
//
// Thread-safe: one mutex. Everything is O(items passed), begin_epoch() and slice() apart.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "slots/free_runs.h"
#include "slots/key_index.h"
#include "slots/place.h"

namespace lmkv {

// Slots as three arrays of equal length, the form in which they travel.
struct SlotArrays {
  std::vector<Key> keys;
  std::vector<Place> places;
  std::vector<std::uint32_t> counters;
};

class SlotTable {
 public:
  using Keys = std::span<const Key>;
  using Places = std::span<const Place>;
  using Counters = std::span<const std::uint32_t>;

  struct Change {
    bool announce;
    SlotArrays slots;
  };
  struct Granules {
    std::uint64_t free, reserved, readable, pinned, retired, limbo;
  };

  // `tier` is the pools'. `last_counter` is for tests of its end.
  SlotTable(std::uint32_t capacity, std::uint32_t segment_slots, double retired_share,
            double reuse_age, Tier tier = Tier::host,
            std::uint32_t last_counter = ~std::uint32_t{0});

  void grow(std::uint32_t slots);
  void begin_epoch();
  std::size_t lookup(Keys keys, bool use);
  std::vector<std::uint8_t> contains(Keys keys);
  SlotArrays places(Keys keys);                              // without keys
  std::optional<SlotArrays> reserve(Keys keys, double now);  // without keys
  std::size_t admit(Places places, Counters counters, bool front);
  void abort(Places places, Counters counters, bool limbo);
  void end_limbo(Places places, Counters counters);
  std::size_t pin(Keys keys);
  void unpin(Places places, Counters counters);
  void touch(Places places, Counters counters);
  std::size_t retire(Keys keys, bool revivable = true);
  std::vector<Change> take_changes();
  std::vector<double> take_ages();
  Sums sums();
  SlotArrays slice(std::uint32_t first, std::uint32_t last);
  Granules granules();
  std::uint32_t capacity() const { return static_cast<std::uint32_t>(slots_.size()); }
  std::uint32_t usable();
  std::uint64_t pins();

 private:
  enum class State : std::uint8_t { free, reserved, readable, retired, limbo };

  struct Slot {
    Key key, told_key;
    double retired_at = 0;  // NaN until a reserve() tells the time
    double reserved_at = 0;
    std::uint32_t counter = 0, told_counter = 0, pins = 0;
    std::uint32_t older = KeyIndex::kNone, newer = KeyIndex::kNone;  // in `recent_` or `retired_`
    State state = State::free;
    bool named = false;  // the index finds it: readable, reserved or retired in this epoch
    bool told = false, dirty = false;
  };

  // A list through the slots, from the oldest to the newest.
  struct List {
    std::uint32_t oldest = KeyIndex::kNone, newest = KeyIndex::kNone, size = 0;
  };

  static constexpr std::size_t kAges = 1024;  // that are kept between two take_ages()

  Place place_of(std::uint32_t slot) const {
    return {slot * kGranulesPerSlot, kGranulesPerSlot, std::uint8_t(tier_)};
  }

  std::uint32_t find(std::uint64_t hash, const Key& key) const;
  std::uint32_t match(const Place& place, std::uint32_t counter) const;
  void find_prefix(Keys keys, bool retired_too);  // into found_
  void require_new(Keys keys) const;
  void name(std::uint32_t slot, const Key& key);
  void forget_name(std::uint32_t slot);
  void set_retired(std::uint32_t slot, double now);
  void retire_pinned(std::uint32_t slot);
  void retire_oldest(double now);
  bool take_retired(std::uint32_t n, double now);  // into found_; true: some were young
  void mark(std::uint32_t slot);
  void push_newest(List& list, std::uint32_t slot);
  void push_oldest(List& list, std::uint32_t slot);
  void remove(List& list, std::uint32_t slot);

  std::mutex mutex_;
  std::vector<Slot> slots_;
  KeyIndex index_;
  FreeRuns free_;
  const double retired_share_, reuse_age_;
  const Tier tier_;
  const std::uint32_t last_counter_;
  std::uint32_t usable_ = 0, counter_ = 0;
  List recent_;                                          // readable, not pinned
  List retired_;                                         // the FIFO
  std::uint32_t reserved_ = 0, pinned_ = 0, limbo_ = 0;  // slots
  std::uint64_t pins_ = 0;
  std::vector<std::uint32_t> dirty_, found_;
  std::vector<double> ages_;
  Sums told_;
};

}  // namespace lmkv
