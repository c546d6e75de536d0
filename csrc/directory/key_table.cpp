#include "directory/key_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "check.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace lmkv {

namespace {

constexpr std::uint32_t kAllLanes = 0x7FFFFFFF;

// A bit for each of a group's entries whose tag is `tag`.
std::uint32_t match(const std::uint8_t* tags, std::uint8_t tag) {
#if defined(__SSE2__)
  const __m128i wanted = _mm_set1_epi8(static_cast<char>(tag));
  const auto half = [&](int i) {
    const __m128i all = _mm_load_si128(reinterpret_cast<const __m128i*>(tags) + i);
    return static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(all, wanted)));
  };
  return (half(0) | half(1) << 16) & kAllLanes;
#else
  std::uint32_t bits = 0;
  for (int lane = 0; lane < KeyTable::kLanes; ++lane)
    bits |= std::uint32_t{tags[lane] == tag} << lane;
  return bits;
#endif
}

constexpr double kStep = 1.25;
constexpr std::size_t kLeap = 4;  // times its size, for keys that are expected

std::size_t fullest(std::size_t pages) { return pages * KeyTable::kPageEntries * 95 / 100; }

// Entries at which sub-table `number` grows already if it will more than double: an eighth of what
// it can hold for the first, nearly all for the last. Else all would do so in the same few slices
// of a sync.
std::size_t early(std::size_t pages, std::size_t number) {
  return fullest(pages) * (1 + 7 * number / KeyTable::kSubTables) / 8;
}

// The next size of sub-table `number`. Each has a ladder of its own, from 1 to kStep by its number,
// so that at any time some are just grown and some are nearly full: all in all the load is about
// 0.85 at every size.
std::size_t next_pages(std::size_t pages, std::size_t number) {
  double size = std::pow(kStep, static_cast<double>(number) / KeyTable::kSubTables);
  while (std::ceil(size) <= static_cast<double>(pages)) size *= kStep;
  return static_cast<std::size_t>(std::ceil(size));
}

// The first size after `pages` that has room for so many entries.
std::size_t pages_for(std::size_t entries, std::size_t pages, std::size_t number) {
  do pages = next_pages(pages, number);
  while (fullest(pages) < entries);
  return pages;
}

}  // namespace

void KeyTable::hash_all(std::span<const Key> keys, std::uint64_t* hashes) {
  for (std::size_t i = 0; i < keys.size(); ++i) hashes[i] = hash(keys[i]);
}

void KeyTable::sort(std::span<const Key> keys, std::vector<std::uint64_t>& hashes,
                    std::vector<std::uint32_t>& from) {
  std::vector<std::uint64_t> as_they_came(keys.size());
  hash_all(keys, as_they_came.data());
  std::uint32_t begins[kSubTables + 1] = {};
  for (const std::uint64_t hash : as_they_came) ++begins[(hash >> 55) + 1];
  std::partial_sum(begins, begins + kSubTables, begins);
  for (std::uint32_t i = 0; i < as_they_came.size(); ++i) {
    const std::uint32_t at = begins[as_they_came[i] >> 55]++;
    hashes[at] = as_they_came[i];
    from[at] = i;
  }
}

void KeyTable::want_tags(std::span<const std::uint64_t> hashes) const {
  for (const std::uint64_t hash : hashes) {
    const SubTable& sub = subs_[hash >> 55];
    if (sub.groups) __builtin_prefetch(tags(sub, home(sub, hash)));
  }
}

void KeyTable::want_entries(std::span<const std::uint64_t> hashes) const {
  for (const std::uint64_t hash : hashes) {
    const SubTable& sub = subs_[hash >> 55];
    if (!sub.groups) continue;
    const std::uint32_t group = home(sub, hash);
    // The entry with this tag, else the first empty one: what insert() will write.
    std::uint32_t lanes = match(tags(sub, group), tag(hash));
    if (!lanes) lanes = match(tags(sub, group), 0);
    if (lanes) __builtin_prefetch(&entries(sub, group)[std::countr_zero(lanes)], 1);
  }
}

Entry* KeyTable::find(const Key& key, std::uint64_t hash) const {
  const SubTable& sub = subs_[hash >> 55];
  if (sub.groups == 0) return nullptr;
  std::uint32_t group = home(sub, hash);
  for (std::uint32_t left = sub.groups; left > 0; --left, group = next(sub, group)) {
    const std::uint8_t* in_group = tags(sub, group);
    for (std::uint32_t lanes = match(in_group, tag(hash)); lanes; lanes &= lanes - 1) {
      Entry& entry = entries(sub, group)[std::countr_zero(lanes)];
      if (entry.key == key) return &entry;
    }
    if (in_group[kLanes] == 0) return nullptr;
  }
  return nullptr;
}

Entry& KeyTable::insert(const Key& key, std::uint64_t hash) {
  SubTable& sub = sub_of(subs_, hash);
  if (sub.used >= sub.look) grow_if_due(sub);
  Entry& entry = place(sub, key, hash);
  ++sub.used, ++size_;
  return entry;
}

void KeyTable::erase(const Key& key, std::uint64_t hash) {
  SubTable& sub = sub_of(subs_, hash);
  std::uint32_t group = home(sub, hash);
  for (;; group = next(sub, group)) {
    for (std::uint32_t lanes = match(tags(sub, group), tag(hash)); lanes; lanes &= lanes - 1) {
      const int lane = std::countr_zero(lanes);
      if (!(entries(sub, group)[lane].key == key)) continue;
      remove(sub, hash, group, lane);
      --size_;
      shrink(sub);
      return;
    }
  }
}

void KeyTable::expect(std::size_t keys) {
  if (keys == expected_) return;
  expected_ = keys;
  make_ready();
}

bool KeyTable::fit() {
  if (fitted_ == kSubTables || expected_ > 0) return true;
  SubTable& sub = subs_[fitted_];
  const std::size_t pages = pages_for(sub.used + sub.used / 16, 0, fitted_);
  if (pages < sub.pages.size()) rebuild(sub, pages);
  if (++fitted_ < kSubTables) return false;
  for (Page* page : used_pages_) madvise(page, sizeof(Page), MADV_DONTNEED);
  fresh_pages_.insert(fresh_pages_.begin(), used_pages_.begin(), used_pages_.end());
  given_back_ += used_pages_.size();
  used_pages_.clear();
  return true;
}

std::size_t KeyTable::bytes() {
  std::size_t sum = slabs_.bytes() - given_back_ * sizeof(Page) + subs_.size() * sizeof(SubTable) +
                    (used_pages_.capacity() + fresh_pages_.capacity()) * sizeof(Page*);
  for (const SubTable& sub : subs_) sum += sub.pages.capacity() * sizeof(Page*);
  return sum;
}

// There is room: the caller has seen to it.
Entry& KeyTable::place(SubTable& sub, const Key& key, std::uint64_t hash) {
  for (std::uint32_t group = home(sub, hash);; group = next(sub, group)) {
    std::uint8_t* in_group = tags(sub, group);
    if (const std::uint32_t empty = match(in_group, 0)) {
      const int lane = std::countr_zero(empty);
      in_group[lane] = tag(hash);
      Entry& entry = entries(sub, group)[lane];
      entry.key = key;
      return entry;
    }
    if (in_group[kLanes] < 255) ++in_group[kLanes];
  }
}

void KeyTable::remove(SubTable& sub, std::uint64_t hash, std::uint32_t group, int lane) {
  tags(sub, group)[lane] = 0;
  for (std::uint32_t passed = home(sub, hash); passed != group; passed = next(sub, passed)) {
    std::uint8_t& went_past = tags(sub, passed)[kLanes];
    if (went_past < 255) --went_past;
  }
  --sub.used;
}

void KeyTable::rebuild(SubTable& sub, std::size_t pages) {
  SubTable fresh;
  fresh.pages.reserve(pages);
  for (std::size_t i = 0; i < pages; ++i) fresh.pages.push_back(new_page());
  fresh.groups = static_cast<std::uint32_t>(pages * kPageGroups);
  fresh.used = sub.used;
  fresh.look = static_cast<std::uint32_t>(early(pages, &sub - &subs_[0]));
  // Groups fill from lane 0 on. How far is counted apart: neighbours go to the same group one after
  // the other, and loading tags right after storing one of them would stall each time.
  std::vector<std::uint8_t> filled(fresh.groups, 0);
  for (std::uint32_t from = 0; from < sub.groups; ++from) {
    for (std::uint32_t lanes = match(tags(sub, from), 0) ^ kAllLanes; lanes; lanes &= lanes - 1) {
      const Entry& entry = entries(sub, from)[std::countr_zero(lanes)];
      const std::uint64_t hashed = hash(entry.key);
      std::uint32_t group = home(fresh, hashed);
      for (; filled[group] == kLanes; group = next(fresh, group)) {
        std::uint8_t& went_past = tags(fresh, group)[kLanes];
        if (went_past < 255) ++went_past;
      }
      const int lane = filled[group]++;
      tags(fresh, group)[lane] = tag(hashed);
      entries(fresh, group)[lane] = entry;
    }
  }
  used_pages_.insert(used_pages_.end(), sub.pages.begin(), sub.pages.end());
  moved_ += sub.used;
  sub = std::move(fresh);
}

// By a step when it is full, or earlier for what is expected.
void KeyTable::grow_if_due(SubTable& sub) {
  const std::size_t number = &sub - &subs_[0], pages = sub.pages.size();
  const std::size_t share = expected_ / kSubTables;
  sub.look = static_cast<std::uint32_t>(fullest(pages));
  if (sub.used < sub.look && sub.used + share < 2 * fullest(pages)) return;
  const std::size_t next = next_pages(pages, number);
  const std::size_t wanted = pages_for(sub.used + share + share / 128, pages, number);
  // Not to just below what it will be: that would move nearly everything once more.
  const std::size_t leap = kLeap * std::max<std::size_t>(pages, 2);
  rebuild(sub, wanted <= 2 * leap ? wanted : std::max(next, leap));
  if (wanted > next) fitted_ = 0;
}

void KeyTable::shrink(SubTable& sub) {
  std::size_t pages = sub.pages.size();
  if (pages <= 1 || sub.used * 2 > pages * kPageEntries) return;
  rebuild(sub, pages_for(sub.used + sub.used / 16, 0, &sub - &subs_[0]));
}

// One slab ahead of a table that grows, and more for what is expected.
void KeyTable::make_ready() {
  const std::size_t pages = expected_ / fullest(1);
  const std::size_t more = (pages - std::min(pages, fresh_pages_.size())) / kSlabPages;
  slabs_.ready(slabs_.taken() + more < kFewSlabs ? 0 : 1 + more);
}

KeyTable::Page* KeyTable::new_page() {
  if (!used_pages_.empty()) {
    Page* page = used_pages_.back();
    used_pages_.pop_back();
    for (Group& group : page->groups) std::memset(group.tags, 0, sizeof group.tags);
    return page;
  }
  if (fresh_pages_.empty()) {
    Page* slab = static_cast<Page*>(slabs_.take());
    for (std::size_t i = kSlabPages; i-- > 0;) fresh_pages_.push_back(slab + i);
    make_ready();
  }
  Page* page = fresh_pages_.back();
  fresh_pages_.pop_back();
  given_back_ = std::min(given_back_, fresh_pages_.size());  // those are the first ones
  return page;
}

}  // namespace lmkv
