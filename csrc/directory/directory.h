// The controller's index: which instances hold a key, and where (DESIGN.md 6). One thread.
//
// An entry belongs to a life of an instance and to one of its syncs by its stamp: it is visible
// while its stamp is at least the instance's `oldest`. So end_sync() hides all that was not stated
// by raising `oldest`, and drop() hides all by raising it beyond every stamp; what is hidden is
// taken away when a sweep or an announcement comes across it. A number is given out again only when
// no entry of its last life is left.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "directory/holder_lists.h"
#include "directory/key_table.h"
#include "slots/place.h"

namespace lmkv {

// Keys [first, first + n) at one instance; its places begin at `offset` in the answer's arrays.
struct Run {
  std::uint32_t first, n;
  int instance;
  std::uint32_t offset;
};

// How a slice of a sync differs from what the directory had: how many keys it had not, how many it
// had elsewhere, and the first of each.
struct Differing {
  static constexpr std::size_t kShown = 256;
  std::size_t missing = 0, moved = 0;
  std::vector<Key> missing_keys, moved_keys;
};

struct Located {
  std::vector<Run> runs, alternates;
  std::vector<Place> places;
  std::vector<std::uint32_t> counters;
  std::size_t found = 0;
  int incompatible = -1;
};

class Directory {
 public:
  using Keys = std::span<const Key>;
  using Places = std::span<const Place>;
  using Counters = std::span<const std::uint32_t>;

  int add(std::int64_t group, std::int64_t host);
  void drop(int instance);
  std::size_t announce(int instance, Keys keys, Places places, Counters counters);
  std::size_t retract(int instance, Keys keys, Places places, Counters counters);
  void expect(int instance, std::size_t keys);
  void begin_sync(int instance);
  Differing sync_slice(int instance, std::uint32_t first, std::uint32_t last, Keys keys,
                       Places places, Counters counters);
  std::size_t end_sync(int instance);
  void watch(int instance, bool on);
  std::span<const Key> gone(int instance) const { return live(instance).gone; }
  Sums sums(int instance) const;
  Located locate(Keys keys, int asker, std::span<const double> loads, std::span<const int> avoid,
                 bool sparse = false);
  std::vector<int> holders(const Key& key);
  bool sweep(std::size_t entries);
  // Who can wait announces nothing for now: the table's memory is still being made.
  bool lacking() { return table_.lacking(); }
  std::size_t size();
  std::size_t bytes();
  std::size_t moved() const { return table_.moved(); }

 private:
  static constexpr std::uint32_t kDead = 1 << 16;  // above every stamp
  static constexpr std::size_t kGone = 256;        // keys noted for who watches an instance
  static constexpr std::size_t kMostExpected = std::size_t{1} << 28;  // of one instance

  struct Instance {
    std::uint32_t oldest = kDead;
    std::uint16_t stamp = 0;
    bool syncing = false, avoid = false, used = false;  // the last two during one locate()
    bool watched = false;
    std::int64_t group = 0, host = 0;
    std::uint64_t held = 0;    // entries, hidden ones too
    std::uint64_t coming = 0;  // keys, by a sync that is announced
    Sums visible, stated;      // stated: with the current stamp
    std::vector<Key> gone;     // while it is watched
  };

  // What one locate() knows of itself and of the keys before it chooses (locate.cpp).
  struct Choice;

  const Instance& live(int instance) const;  // refuses one that is not there
  Instance& live(int instance);
  bool visible(const Holder& holder) const {
    return holder.stamp >= instances_[holder.instance].oldest;
  }
  void gain(const Key& key, const Holder& holder);
  void lose(const Key& key, const Holder& holder);
  enum class Put : std::uint8_t { added, moved, same };
  Put put(const Key& key, std::uint64_t hash, Entry* entry, const Holder& holder);
  template <typename Each>  // each(i, Put) for every key, in any order
  void put_all(int instance, Keys keys, Places places, Counters counters, Each each);
  bool drop_hidden(Entry& entry);  // false: nothing is left of it
  void restamp(int instance);
  void free_if_gone(int instance);
  void set_coming(Instance& instance, std::uint64_t keys);

  KeyTable table_;
  HolderLists lists_;
  std::vector<Instance> instances_;
  std::vector<int> free_numbers_;
  std::uint64_t hidden_ = 0;  // holders that no one sees
  std::uint64_t coming_ = 0;  // of all instances
  int swept_ = 0;             // the sub-table where the next sweep begins
};

}  // namespace lmkv
