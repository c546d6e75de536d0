// The directory's table: 32-byte entries, open addressing, load about 0.85, grown in steps.
//
// 512 sub-tables by the first bits of the key's hash grow alone, by a quarter, so that no insertion
// waits for more than its own 1/512 of a rebuild. A sub-table is groups of 31 entries; behind them
// a group has 32 bytes of tags: one byte of hash per entry (0: empty), and how many keys had to go
// on past the group (255: too many to count, until the next rebuild). A search ends at a group that
// none went past, so there are no tombstones. A group is 1 KiB, so that its tags and entries share
// a page of the system's, and a key costs one miss of the TLB. Groups lie in pages of equal size
// that growing sub-tables hand to each other through a free list: the heap never sees them, and
// cannot be torn by them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "directory/slabs.h"
#include "slots/place.h"

namespace lmkv {

// One holder of a key: an instance and where in its pool. `stamp` is of the instance's last sync.
struct Holder {
  enum Kind : std::uint8_t { one = 0, many = 1 };

  std::uint32_t first = 0, counter = 0;
  std::uint16_t instance = 0, stamp = 0;
  std::uint8_t granules = 0, tier = 0;
  std::uint8_t kind = one;  // many: see holder_lists.h for what the fields mean then
  std::uint8_t spare = 0;

  Place place() const { return {first, granules, tier}; }
};
static_assert(sizeof(Holder) == 16);

struct Entry {
  Key key;
  Holder holder;
};
static_assert(sizeof(Entry) == 32);

class KeyTable {
 public:
  static constexpr int kLanes = 31, kPageGroups = 16;
  static constexpr int kPageEntries = kLanes * kPageGroups;
  static constexpr int kSubTables = 512;
  static constexpr std::size_t kBatch = 16;

  KeyTable() : subs_(kSubTables) {}
  KeyTable(const KeyTable&) = delete;
  KeyTable& operator=(const KeyTable&) = delete;

  static std::uint64_t hash(const Key& key) { return mix64(key.lo + mix64(key.hi)); }

  // Calls `visit(i, hash, entry or nullptr)` for each key until it says false. Batches of keys are
  // taken through three steps, one batch apart: hash and ask for the tags' cache line, read the
  // tags and ask for the entry's, visit.
  template <class Visit>
  void walk(std::span<const Key> keys, const Visit& visit) const;
  // The same for all keys, whatever it says, sub-table by sub-table (equal keys as they come):
  // where the system's pages are small, or a host's below a virtual machine's, a key then costs a
  // quarter less.
  template <class Visit>
  void walk_all(std::span<const Key> keys, const Visit& visit) const;

  Entry* find(const Key& key, std::uint64_t hash) const;
  Entry& insert(const Key& key, std::uint64_t hash);  // the key is not there
  void erase(const Key& key, std::uint64_t hash);     // the key is there

  // Calls `visit(entry)` for all of sub-table `sub`'s entries; those for which it says false go.
  // Then the sub-table is rebuilt if too little is left in it.
  template <class Visit>
  void filter(int sub, const Visit& visit);
  template <class Visit>
  void each(const Visit& visit) const;

  // So many more keys are likely to come soon: what grows meanwhile grows for them too (to four or
  // eight times its size at once, so that it hardly matters when they do not come). 0: all have.
  void expect(std::size_t keys);
  // Gives back what was made for keys that did not come, one sub-table at a time; true: all is.
  bool fit();
  // Memory for what is expected is being made: what is inserted now may have to make it itself.
  bool lacking() { return slabs_.lacking(); }

  std::size_t size() const { return size_; }
  std::size_t moved() const { return moved_; }  // entries, by growing, since the beginning
  std::size_t sub_size(int sub) const { return subs_[sub].used; }
  std::size_t bytes();

 private:
  struct alignas(1024) Group {
    Entry entries[kLanes];
    std::uint8_t tags[kLanes + 1];  // the last one counts who went past
  };
  struct Page {
    Group groups[kPageGroups];
  };
  struct SubTable {
    std::vector<Page*> pages;
    std::uint32_t groups = 0, used = 0;
    std::uint32_t look = 0;  // entries at which it may be due to grow
  };
  static constexpr std::size_t kSlabPages = Slabs::kBytes / sizeof(Page);
  static constexpr std::size_t kFewSlabs = 4;  // below that none are made ready

  static std::uint8_t tag(std::uint64_t hash) { return (hash & 0xFF) ? hash & 0xFF : 1; }
  static SubTable& sub_of(std::vector<SubTable>& subs, std::uint64_t hash) {
    return subs[hash >> 55];
  }
  static std::uint32_t home(const SubTable& sub, std::uint64_t hash) {
    return static_cast<std::uint32_t>((hash >> 23 & 0xFFFFFFFF) * sub.groups >> 32);
  }
  static std::uint32_t next(const SubTable& sub, std::uint32_t group) {
    return group + 1 == sub.groups ? 0 : group + 1;
  }
  static std::uint8_t* tags(const SubTable& sub, std::uint32_t group) {
    return sub.pages[group / kPageGroups]->groups[group % kPageGroups].tags;
  }
  static Entry* entries(const SubTable& sub, std::uint32_t group) {
    return sub.pages[group / kPageGroups]->groups[group % kPageGroups].entries;
  }
  static Entry& place(SubTable& sub, const Key& key, std::uint64_t hash);
  static void remove(SubTable& sub, std::uint64_t hash, std::uint32_t group, int lane);
  static void hash_all(std::span<const Key> keys, std::uint64_t* hashes);
  // Hashes by their sub-tables, and where in `keys` each came from.
  static void sort(std::span<const Key> keys, std::vector<std::uint64_t>& hashes,
                   std::vector<std::uint32_t>& from);
  void want_tags(std::span<const std::uint64_t> hashes) const;
  void want_entries(std::span<const std::uint64_t> hashes) const;
  void rebuild(SubTable& sub, std::size_t pages);
  void grow_if_due(SubTable& sub);
  void shrink(SubTable& sub);
  void make_ready();
  Page* new_page();

  std::vector<SubTable> subs_;
  std::vector<Page*> used_pages_, fresh_pages_;  // free ones; fresh: zeros, not touched by us
  Slabs slabs_;
  std::size_t given_back_ = 0;  // of the fresh ones
  std::size_t size_ = 0, expected_ = 0, moved_ = 0;
  int fitted_ = kSubTables;  // the sub-table where fit() goes on
};

template <class Visit>
void KeyTable::filter(int number, const Visit& visit) {
  SubTable& sub = subs_[number];
  for (std::uint32_t group = 0; group < sub.groups; ++group) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (tags(sub, group)[lane] == 0) continue;
      Entry& entry = entries(sub, group)[lane];
      if (visit(entry)) continue;
      remove(sub, hash(entry.key), group, lane);
      --size_;
    }
  }
  shrink(sub);
}

template <class Visit>
void KeyTable::walk(std::span<const Key> keys, const Visit& visit) const {
  std::uint64_t ring[4][kBatch];
  const auto part = [&](std::size_t batch) {
    const std::size_t begin = std::min(batch * kBatch, keys.size());
    return keys.subspan(begin, std::min(kBatch, keys.size() - begin));
  };
  const auto want = [&](std::size_t batch) {
    hash_all(part(batch), ring[batch % 4]);
    want_tags({ring[batch % 4], part(batch).size()});
  };
  const std::size_t batches = (keys.size() + kBatch - 1) / kBatch;
  want(0);
  want(1);
  want_entries({ring[0], part(0).size()});
  for (std::size_t batch = 0; batch < batches; ++batch) {
    want(batch + 2);
    want_entries({ring[(batch + 1) % 4], part(batch + 1).size()});
    const std::uint64_t* hashes = ring[batch % 4];
    for (std::size_t i = 0; i < part(batch).size(); ++i) {
      const std::size_t at = batch * kBatch + i;
      if (!visit(at, hashes[i], find(keys[at], hashes[i]))) return;
    }
  }
}

template <class Visit>
void KeyTable::walk_all(std::span<const Key> keys, const Visit& visit) const {
  std::vector<std::uint64_t> hashes(keys.size());
  std::vector<std::uint32_t> from(keys.size());
  sort(keys, hashes, from);
  const auto part = [&](std::size_t begin) {
    begin = std::min(begin, hashes.size());
    return std::span(hashes).subspan(begin, std::min(kBatch, hashes.size() - begin));
  };
  want_tags(part(0));
  want_tags(part(kBatch));
  want_entries(part(0));
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    if (i % kBatch == 0) {
      want_tags(part(i + 2 * kBatch));
      want_entries(part(i + kBatch));
    }
    visit(from[i], hashes[i], find(keys[from[i]], hashes[i]));
  }
}

template <class Visit>
void KeyTable::each(const Visit& visit) const {
  for (const SubTable& sub : subs_)
    for (std::uint32_t group = 0; group < sub.groups; ++group)
      for (int lane = 0; lane < kLanes; ++lane)
        if (tags(sub, group)[lane] != 0) visit(entries(sub, group)[lane]);
}

}  // namespace lmkv
