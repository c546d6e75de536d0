#include "directory/key_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "check.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace lmkv {

namespace {

// A bit for each of a group's entries whose tag is `tag`.
std::uint32_t match(const std::uint8_t* tags, std::uint8_t tag) {
#if defined(__SSE2__)
  const __m128i all = _mm_load_si128(reinterpret_cast<const __m128i*>(tags));
  const __m128i equal = _mm_cmpeq_epi8(all, _mm_set1_epi8(static_cast<char>(tag)));
  return static_cast<std::uint32_t>(_mm_movemask_epi8(equal)) & 0x7FFF;
#else
  std::uint32_t bits = 0;
  for (int lane = 0; lane < KeyTable::kLanes; ++lane)
    bits |= std::uint32_t{tags[lane] == tag} << lane;
  return bits;
#endif
}

constexpr double kStep = 1.25;

std::size_t fullest(std::size_t pages) { return pages * KeyTable::kPageEntries * 95 / 100; }

// The next size of sub-table `number`. Each has a ladder of its own, from 1 to kStep by its number,
// so that at any time some are just grown and some are nearly full: all in all the load is about
// 0.85 at every size.
std::size_t next_pages(std::size_t pages, std::size_t number) {
  double size = std::pow(kStep, static_cast<double>(number) / KeyTable::kSubTables);
  while (std::ceil(size) <= static_cast<double>(pages)) size *= kStep;
  return static_cast<std::size_t>(std::ceil(size));
}

}  // namespace

KeyTable::~KeyTable() {
  for (void* slab : slabs_) munmap(slab, kSlabBytes);
}

void KeyTable::want_tags(std::span<const Key> keys, std::uint64_t* hashes) const {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    hashes[i] = hash(keys[i]);
    const SubTable& sub = subs_[hashes[i] >> 55];
    if (sub.groups) __builtin_prefetch(tags(sub, home(sub, hashes[i])));
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
  if (sub.used >= fullest(sub.pages.size())) rebuild(sub, next_pages(sub.pages.size(), hash >> 55));
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

std::size_t KeyTable::bytes() const {
  std::size_t sum = slabs_.size() * kSlabBytes + subs_.size() * sizeof(SubTable) +
                    free_pages_.capacity() * sizeof(Page*);
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
  // Groups fill from lane 0 on. How far is counted apart: neighbours go to the same group one after
  // the other, and loading 16 tags right after storing one of them would stall each time.
  std::vector<std::uint8_t> filled(fresh.groups, 0);
  for (std::uint32_t from = 0; from < sub.groups; ++from) {
    for (std::uint32_t lanes = match(tags(sub, from), 0) ^ 0x7FFF; lanes; lanes &= lanes - 1) {
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
  free_pages_.insert(free_pages_.end(), sub.pages.begin(), sub.pages.end());
  sub = std::move(fresh);
}

void KeyTable::shrink(SubTable& sub) {
  std::size_t pages = sub.pages.size();
  if (pages <= 1 || sub.used * 2 > pages * kPageEntries) return;
  pages = next_pages(0, &sub - &subs_[0]);
  while (fullest(pages) < sub.used + sub.used / 16) pages = next_pages(pages, &sub - &subs_[0]);
  rebuild(sub, pages);
}

KeyTable::Page* KeyTable::new_page() {
  if (free_pages_.empty()) {
    // Twice the size, cut to a slab that begins where a huge page can.
    void* raw = mmap(nullptr, 2 * kSlabBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    const auto begin = reinterpret_cast<std::uintptr_t>(raw);
    const std::uintptr_t slab = (begin + kSlabBytes - 1) / kSlabBytes * kSlabBytes;
    if (slab > begin) munmap(raw, slab - begin);
    munmap(reinterpret_cast<void*>(slab + kSlabBytes), begin + kSlabBytes - slab);
    madvise(reinterpret_cast<void*>(slab), kSlabBytes, MADV_HUGEPAGE);  // a wish; may be refused
    slabs_.push_back(reinterpret_cast<void*>(slab));
    for (std::size_t i = kSlabPages; i-- > 0;)
      free_pages_.push_back(reinterpret_cast<Page*>(slab) + i);
  }
  Page* page = free_pages_.back();
  free_pages_.pop_back();
  std::memset(page->tags, 0, sizeof page->tags);
  return page;
}

}  // namespace lmkv
