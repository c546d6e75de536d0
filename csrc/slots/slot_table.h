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
// A compressed chunk takes fewer granules than a full slot: a short slot. It lies in frames (the
// rooms of full slots) that are split, side by side with others, and may reach from one into the
// next. A split frame is a full slot's room again as soon as no short slot is left in it. A chunk
// changes its form by reserve_again() and replace(): the new slot takes name and age of the old one
// in one step, and the old one is retired with its bytes.
//
// What the controllers must hear is a difference: each slot remembers what was told of it, and
// take_changes() tells what has changed since.
//
// Thread-safe: one mutex. Everything is O(items passed), begin_epoch() and slice() apart.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
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
  using Sizes = std::span<const std::uint8_t>;

  enum class Replaced : std::uint8_t { gone, good, pinned };

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
  SlotArrays places(Keys keys);  // without keys
  // `granules` of each, 1 to 16; none: all are full slots. Nothing: not enough can be evicted.
  std::optional<SlotArrays> reserve(Keys keys, double now, Sizes granules = {});  // without keys
  // For chunks that are readable in another form; nobody finds these slots before replace().
  std::optional<SlotArrays> reserve_again(Keys keys, double now, Sizes granules);
  // Slots of reserve_again() for those of `old`. A reason not to leaves the new slot reserved.
  std::vector<Replaced> replace(Places places, Counters counters, Places old,
                                Counters old_counters);
  std::size_t admit(Places places, Counters counters, bool front);
  void abort(Places places, Counters counters, bool limbo);
  void end_limbo(Places places, Counters counters);
  SlotArrays pin(Keys keys);  // what it has pinned; without keys
  void unpin(Places places, Counters counters);
  void touch(Places places, Counters counters);
  std::size_t retire(Keys keys, bool revivable = true);
  std::vector<Change> take_changes();
  std::vector<double> take_ages();
  Sums sums();
  SlotArrays slice(std::uint32_t first, std::uint32_t last);  // in the order of their granules
  // The greatest end, `last` at most, for which slice(first, end) has no more than `most` slots, or
  // (some 16 compressed ones at most) those of the first full slot's granules.
  std::uint32_t slice_end(std::uint32_t first, std::uint32_t last, std::uint32_t most);
  Granules granules();
  std::uint32_t capacity() const { return capacity_; }  // full slots
  std::uint32_t usable();
  std::uint64_t pins();

 private:
  // again: reserved in this epoch to replace another
  enum class State : std::uint8_t { free, reserved, again, readable, retired, limbo };

  struct Slot {
    Key key, told_key;
    double retired_at = 0;  // NaN until a reserve() tells the time
    double reserved_at = 0;
    std::uint32_t counter = 0, told_counter = 0, pins = 0;
    std::uint32_t older = KeyIndex::kNone, newer = KeyIndex::kNone;  // in `recent_` or `retired_`
    std::uint8_t granules = kGranulesPerSlot;
    State state = State::free;
    bool told = false;
    bool named : 1 = false;  // the index finds it: readable, reserved or retired in this epoch
    bool dirty : 1 = false;
  };
  static_assert(sizeof(Slot) == 72, "a lookup touches few cache lines");

  // A list through the slots, from the oldest to the newest.
  struct List {
    std::uint32_t oldest = KeyIndex::kNone, newest = KeyIndex::kNone;
    std::uint64_t granules = 0;
  };

  // Slots that cannot be taken for room: how many full ones, and the short ones' granules.
  struct Held {
    std::uint32_t full = 0;
    std::uint64_t short_granules = 0;
    std::uint64_t granules() const {
      return std::uint64_t{full} * kGranulesPerSlot + short_granules;
    }
  };

  // A frame with short slots in it.
  struct Split {
    std::uint8_t used = 0;  // granules
    std::uint8_t held = 0;  // short slots that cannot be taken for room
  };

  static constexpr std::size_t kAges = 1024;  // that are kept between two take_ages()

  // Full slots are numbered by their frames, short ones from capacity_ on.
  bool full(std::uint32_t slot) const { return slot < capacity_; }
  Place full_place(std::uint32_t slot) const {
    return {slot * kGranulesPerSlot, kGranulesPerSlot, std::uint8_t(tier_)};
  }
  Place place_of(std::uint32_t slot) const {
    if (full(slot)) return full_place(slot);
    return {short_[slot - capacity_], slots_[slot].granules, std::uint8_t(tier_)};
  }

  std::uint32_t find(std::uint64_t hash, const Key& key) const;
  std::uint32_t match(const Place& place, std::uint32_t counter) const;
  std::uint32_t match_short(const Place& place, std::uint32_t counter) const;
  void find_prefix(Keys keys, bool retired_too);  // into found_
  SlotArrays found() const;                       // without keys
  void require_new(Keys keys) const;
  void name(std::uint32_t slot, const Key& key);
  void forget_name(std::uint32_t slot);
  void set_retired(std::uint32_t slot, double now);
  void retire_pinned(std::uint32_t slot);
  void retire_oldest(double now);
  std::optional<SlotArrays> reserve_all(Keys keys, double now, Sizes granules, bool again);
  bool take_retired(std::uint32_t n, double now);  // into found_; true: some were young
  std::uint32_t take_oldest(double now, bool& young);
  bool take_shorts(Sizes granules, double now, bool& young);         // into found_
  bool take_short(std::uint32_t granules, double now, bool& young);  // into found_
  void split_frame();
  void free_place(std::uint32_t slot);
  void free_short(std::uint32_t slot);
  // It cannot be taken for room.
  void hold(std::uint32_t slot, Held& held) {
    if (full(slot))
      ++held.full;
    else
      hold_short(slot, held);
  }
  void let_go(std::uint32_t slot, Held& held) {
    if (full(slot))
      --held.full;
    else
      let_go_short(slot, held);
  }
  void hold_short(std::uint32_t slot, Held& held);
  void let_go_short(std::uint32_t slot, Held& held);
  void end_life(std::uint32_t slot);
  void forget_short(std::uint32_t slot);
  template <class Do>
  void each_frame(std::uint32_t slot, const Do& action);
  void mark(std::uint32_t slot);
  void push_newest(List& list, std::uint32_t slot);
  void push_oldest(List& list, std::uint32_t slot);
  void insert_behind(List& list, std::uint32_t newer, std::uint32_t slot);
  void remove(List& list, std::uint32_t slot);

  std::mutex mutex_;
  const std::uint32_t capacity_;
  std::vector<Slot> slots_;  // never moves
  KeyIndex index_;
  FreeRuns free_;  // frames
  const double retired_share_, reuse_age_;
  const Tier tier_;
  const std::uint32_t last_counter_;
  std::uint32_t usable_ = 0, counter_ = 0;
  List recent_;   // readable, not pinned
  List retired_;  // the FIFO
  Held reserved_, pinned_, limbo_;
  std::uint64_t pins_ = 0;
  std::vector<std::uint32_t> dirty_, found_;
  std::vector<double> ages_;
  Sums told_;

  std::vector<std::uint32_t> short_;                      // first granules of the short slots
  std::vector<std::uint32_t> unused_;                     // numbers of short slots to use again
  std::multimap<std::uint32_t, std::uint32_t> short_at_;  // by first granule; free ones still told
  std::unordered_map<std::uint32_t, Split> split_;        // by frame
  std::uint32_t held_splits_ = 0;                         // of them, with a slot that is held
  FreeRuns spare_;                                        // granules of split frames
  std::uint32_t next_frame_ = 0;  // behind the one that was split last: there a run goes on
};

}  // namespace lmkv
