#include "slots/slot_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "check.h"

namespace lmkv {

namespace {

constexpr std::uint32_t kNone = KeyIndex::kNone;
constexpr std::size_t kChangeSlots = 4096;  // one message's worth (messages.MAX_KEYS)
constexpr std::size_t kAhead = 16;          // keys whose cache lines are asked for at once

void append(SlotArrays& out, const Key& key, const Place& place, std::uint32_t counter) {
  out.keys.push_back(key);
  out.places.push_back(place);
  out.counters.push_back(counter);
}

// Checked before anything of that size is allocated.
std::uint32_t checked_capacity(std::uint32_t capacity) {
  REQUIRE(capacity > 0 && capacity <= 1u << 28, "capacity: ", capacity, ", allowed 1 to 2^28");
  return capacity;
}

}  // namespace

SlotTable::SlotTable(std::uint32_t capacity, std::uint32_t segment_slots, double retired_share,
                     double reuse_age, Tier tier, std::uint32_t last_counter)
    : slots_(checked_capacity(capacity)),
      index_(capacity),
      free_(segment_slots),
      retired_share_(retired_share),
      reuse_age_(reuse_age),
      tier_(tier),
      last_counter_(last_counter) {
  REQUIRE(segment_slots > 0, "segment_slots: 0, allowed 1 and more");
  REQUIRE(retired_share >= 0 && retired_share <= 0.5, "retired_share: ", retired_share,
          ", allowed 0 to 0.5");
  REQUIRE(reuse_age >= 0 && std::isfinite(reuse_age), "reuse_age: ", reuse_age,
          " seconds, allowed 0 and more");
}

void SlotTable::grow(std::uint32_t slots) {
  std::lock_guard lock(mutex_);
  REQUIRE(slots <= capacity(), "slots: ", slots, " of a capacity of ", capacity());
  REQUIRE(slots >= usable_, "slots: ", slots, ", fewer than the ", usable_, " usable now");
  free_.put(usable_, slots - usable_);
  usable_ = slots;
}

void SlotTable::begin_epoch() {
  std::lock_guard lock(mutex_);
  for (std::uint32_t slot = 0; slot < usable_; ++slot) {
    Slot& s = slots_[slot];
    s.named = false;
    if (s.state != State::readable) continue;
    if (s.pins == 0) {
      remove(recent_, slot);
      set_retired(slot, std::numeric_limits<double>::quiet_NaN());
    } else {
      retire_pinned(slot);
    }
  }
  index_.clear();
  counter_ = 0;
}

std::size_t SlotTable::lookup(Keys keys, bool use) {
  std::lock_guard lock(mutex_);
  find_prefix(keys, use);
  if (!use) return found_.size();
  for (std::size_t i = found_.size(); i-- > 0;) {
    const std::uint32_t slot = found_[i];
    Slot& s = slots_[slot];
    if (s.state == State::retired) {  // revive: same place, same counter, same bytes
      remove(retired_, slot);
      s.state = State::readable;
      push_newest(recent_, slot);
      mark(slot);
    } else if (s.pins == 0) {
      remove(recent_, slot);
      push_newest(recent_, slot);
    }
  }
  return found_.size();
}

std::vector<std::uint8_t> SlotTable::contains(Keys keys) {
  std::lock_guard lock(mutex_);
  std::vector<std::uint8_t> answer(keys.size(), 0);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const std::uint32_t slot = find(KeyIndex::hash(keys[i]), keys[i]);
    if (slot == kNone) continue;
    if (slots_[slot].state == State::readable) answer[i] = 1;
    if (slots_[slot].state == State::reserved) answer[i] = 2;
  }
  return answer;
}

SlotArrays SlotTable::places(Keys keys) {
  std::lock_guard lock(mutex_);
  find_prefix(keys, false);
  SlotArrays out;
  for (const std::uint32_t slot : found_) {
    out.places.push_back(place_of(slot));
    out.counters.push_back(slots_[slot].counter);
  }
  return out;
}

std::optional<SlotArrays> SlotTable::reserve(Keys keys, double now) {
  REQUIRE(std::isfinite(now), "now: ", now, " is no time");
  std::lock_guard lock(mutex_);
  require_new(keys);
  const std::uint64_t room = std::uint64_t{free_.size()} + retired_.size + recent_.size;
  if (keys.size() > room) return std::nullopt;
  if (keys.size() > last_counter_ - counter_)
    throw std::overflow_error("admission counters are used up: begin a new epoch");

  for (std::uint32_t slot = retired_.newest; slot != kNone && std::isnan(slots_[slot].retired_at);
       slot = slots_[slot].older)
    slots_[slot].retired_at = now;

  const auto wanted = static_cast<std::uint32_t>(keys.size());
  const std::uint32_t fresh = std::min(wanted, free_.size());
  found_.clear();
  free_.take(fresh, found_);
  const bool young = take_retired(wanted - fresh, now);

  SlotArrays out;
  for (std::uint32_t i = 0; i < wanted; ++i) {
    Slot& s = slots_[found_[i]];
    s.state = State::reserved;
    s.reserved_at = now;
    s.counter = ++counter_;
    name(found_[i], keys[i]);
    out.places.push_back(place_of(found_[i]));
    out.counters.push_back(s.counter);
  }
  reserved_ += wanted;

  // Ahead of need; twice as far when this call had to take slots that a reader may still be at.
  const auto ahead =
      static_cast<std::uint32_t>(std::ceil(retired_share_ * usable_ * (young ? 2 : 1)));
  while (free_.size() + retired_.size < ahead && recent_.size > 0) retire_oldest(now);
  return out;
}

std::size_t SlotTable::admit(Places places, Counters counters, bool front) {
  std::lock_guard lock(mutex_);
  std::size_t admitted = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    const std::size_t at =
        front ? places.size() - 1 - i : i;  // the tail ends up the older either way
    const std::uint32_t slot = match(places[at], counters[at]);
    if (slot == kNone) continue;
    Slot& s = slots_[slot];
    if (s.state != State::reserved || !s.named) continue;
    s.state = State::readable;
    --reserved_;
    front ? push_newest(recent_, slot) : push_oldest(recent_, slot);
    mark(slot);
    ++admitted;
  }
  return admitted;
}

void SlotTable::abort(Places places, Counters counters, bool limbo) {
  std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const std::uint32_t slot = match(places[i], counters[i]);
    if (slot == kNone || slots_[slot].state != State::reserved) continue;
    forget_name(slot);
    --reserved_;
    if (limbo) {
      slots_[slot].state = State::limbo;
      ++limbo_;
    } else {
      slots_[slot].state = State::free;
      free_.put(slot, 1);
    }
  }
}

void SlotTable::end_limbo(Places places, Counters counters) {
  std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const std::uint32_t slot = match(places[i], counters[i]);
    if (slot == kNone || slots_[slot].state != State::limbo) continue;
    slots_[slot].state = State::free;
    --limbo_;
    free_.put(slot, 1);
  }
}

std::size_t SlotTable::pin(Keys keys) {
  std::lock_guard lock(mutex_);
  find_prefix(keys, false);
  for (const std::uint32_t slot : found_) {
    if (slots_[slot].pins++ == 0) {
      remove(recent_, slot);
      ++pinned_;
    }
  }
  pins_ += found_.size();
  return found_.size();
}

void SlotTable::unpin(Places places, Counters counters) {
  std::lock_guard lock(mutex_);
  for (std::size_t i = places.size(); i-- > 0;) {
    const std::uint32_t slot = match(places[i], counters[i]);
    if (slot == kNone || slots_[slot].pins == 0) continue;
    Slot& s = slots_[slot];
    --pins_;
    if (--s.pins > 0) continue;
    --pinned_;
    if (s.state == State::readable) {
      push_newest(recent_, slot);
    } else {  // retired meanwhile, or its epoch has ended
      set_retired(slot, std::numeric_limits<double>::quiet_NaN());
    }
  }
}

void SlotTable::touch(Places places, Counters counters) {
  std::lock_guard lock(mutex_);
  for (std::size_t i = places.size(); i-- > 0;) {
    const std::uint32_t slot = match(places[i], counters[i]);
    if (slot == kNone || slots_[slot].state != State::readable || slots_[slot].pins > 0) continue;
    remove(recent_, slot);
    push_newest(recent_, slot);
  }
}

std::size_t SlotTable::retire(Keys keys, bool revivable) {
  std::lock_guard lock(mutex_);
  std::size_t retired = 0;
  for (std::size_t i = keys.size(); i-- > 0;) {
    const std::uint32_t slot = find(KeyIndex::hash(keys[i]), keys[i]);
    if (slot == kNone || slots_[slot].state != State::readable) continue;
    if (slots_[slot].pins == 0) {
      remove(recent_, slot);
      set_retired(slot, std::numeric_limits<double>::quiet_NaN());
      if (!revivable) forget_name(slot);
    } else {
      retire_pinned(slot);
      forget_name(slot);  // out of the FIFO it could not be revived
    }
    ++retired;
  }
  return retired;
}

std::vector<SlotTable::Change> SlotTable::take_changes() {
  std::lock_guard lock(mutex_);
  std::vector<Change> changes;
  const auto tell = [&](bool announce, std::uint32_t slot) {
    const bool full = !changes.empty() && changes.back().slots.keys.size() == kChangeSlots;
    if (changes.empty() || full || changes.back().announce != announce)
      changes.push_back({announce, {}});
    Slot& s = slots_[slot];
    s.told = announce;
    append(changes.back().slots, s.told_key, place_of(slot), s.told_counter);
    const Sums one = term(s.told_key, place_of(slot), s.told_counter);
    announce ? told_ += one : told_ -= one;
  };
  // Retractions first: what is gone matters more than what is new.
  for (const std::uint32_t slot : dirty_) {
    const Slot& s = slots_[slot];
    const bool holds = s.state == State::readable && s.counter == s.told_counter;
    if (s.told && !(holds && s.key == s.told_key)) tell(false, slot);
  }
  for (const std::uint32_t slot : dirty_) {
    Slot& s = slots_[slot];
    s.dirty = false;
    if (s.state != State::readable || s.told) continue;
    s.told_key = s.key;
    s.told_counter = s.counter;
    tell(true, slot);
  }
  dirty_.clear();
  return changes;
}

Sums SlotTable::sums() {
  std::lock_guard lock(mutex_);
  return told_;
}

SlotArrays SlotTable::slice(std::uint32_t first, std::uint32_t last) {
  REQUIRE(first <= last, "first: ", first, " lies after last, ", last);
  std::lock_guard lock(mutex_);
  SlotArrays out;
  const std::uint64_t begin = (std::uint64_t{first} + kGranulesPerSlot - 1) / kGranulesPerSlot;
  for (std::uint64_t slot = begin; slot < usable_ && slot * kGranulesPerSlot < last; ++slot) {
    const Slot& s = slots_[slot];
    const Place place = place_of(static_cast<std::uint32_t>(slot));
    if (s.told) append(out, s.told_key, place, s.told_counter);
  }
  return out;
}

SlotTable::Granules SlotTable::granules() {
  std::lock_guard lock(mutex_);
  const auto granules = [](std::uint32_t slots) { return std::uint64_t{slots} * kGranulesPerSlot; };
  return {granules(free_.size()), granules(reserved_),     granules(recent_.size),
          granules(pinned_),      granules(retired_.size), granules(limbo_)};
}

std::uint32_t SlotTable::usable() {
  std::lock_guard lock(mutex_);
  return usable_;
}

std::uint64_t SlotTable::pins() {
  std::lock_guard lock(mutex_);
  return pins_;
}

// ------------------------------------------------------------------ under the mutex

std::uint32_t SlotTable::find(std::uint64_t hash, const Key& key) const {
  return index_.find(hash, [&](std::uint32_t slot) { return slots_[slot].key == key; });
}

// The slot of a place, if it is one of ours and still in the life that the counter names.
std::uint32_t SlotTable::match(const Place& place, std::uint32_t counter) const {
  const std::uint32_t slot = place.first / kGranulesPerSlot;
  if (slot >= usable_ || place_of(slot) != place || slots_[slot].counter != counter) return kNone;
  return slot;
}

void SlotTable::find_prefix(Keys keys, bool retired_too) {
  found_.clear();
  std::uint64_t hashes[kAhead];
  for (std::size_t begin = 0; begin < keys.size(); begin += kAhead) {
    const std::size_t n = std::min(kAhead, keys.size() - begin);
    for (std::size_t i = 0; i < n; ++i) {
      hashes[i] = KeyIndex::hash(keys[begin + i]);
      index_.prefetch(hashes[i]);
    }
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t slot = index_.guess(hashes[i]);
      if (slot != kNone) __builtin_prefetch(&slots_[slot]);
    }
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t slot = find(hashes[i], keys[begin + i]);
      if (slot == kNone) return;
      const State state = slots_[slot].state;
      if (state != State::readable && !(retired_too && state == State::retired)) return;
      found_.push_back(slot);
    }
  }
}

void SlotTable::require_new(Keys keys) const {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const std::uint32_t slot = find(KeyIndex::hash(keys[i]), keys[i]);
    if (slot == kNone) continue;
    const State state = slots_[slot].state;
    REQUIRE(state == State::retired, "keys: number ", i, " is ",
            state == State::readable ? "readable" : "reserved", " already");
  }
  std::vector<Key> sorted(keys.begin(), keys.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const Key& a, const Key& b) { return a.lo != b.lo ? a.lo < b.lo : a.hi < b.hi; });
  REQUIRE(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "keys: one of the ",
          keys.size(), " stands there twice");
}

// The index finds this slot under the key; a retired slot of that key can no longer be revived.
void SlotTable::name(std::uint32_t slot, const Key& key) {
  const std::uint64_t hash = KeyIndex::hash(key);
  if (const std::uint32_t other = find(hash, key); other != kNone) forget_name(other);
  slots_[slot].key = key;
  slots_[slot].named = true;
  index_.insert(hash, slot);
}

void SlotTable::forget_name(std::uint32_t slot) {
  Slot& s = slots_[slot];
  if (s.named) index_.erase(KeyIndex::hash(s.key), slot);
  s.named = false;
}

void SlotTable::set_retired(std::uint32_t slot, double now) {
  slots_[slot].state = State::retired;
  slots_[slot].retired_at = now;
  push_newest(retired_, slot);
  mark(slot);
}

// Its readers go on; the last unpin() puts it into the FIFO.
void SlotTable::retire_pinned(std::uint32_t slot) {
  slots_[slot].state = State::retired;
  mark(slot);
}

void SlotTable::retire_oldest(double now) {
  const std::uint32_t slot = recent_.oldest;
  remove(recent_, slot);
  set_retired(slot, now);
  if (ages_.size() < kAges) ages_.push_back(now - slots_[slot].reserved_at);
}

// Of the slots that were retired for room since the last call: seconds since they were reserved.
std::vector<double> SlotTable::take_ages() {
  std::lock_guard lock(mutex_);
  return std::exchange(ages_, {});
}

// In the order of the pool, so that consecutive keys get what is consecutive among them.
bool SlotTable::take_retired(std::uint32_t n, double now) {
  while (retired_.size < n) retire_oldest(now);
  bool young = false;
  const auto before = static_cast<std::ptrdiff_t>(found_.size());
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::uint32_t slot = retired_.oldest;
    young |= now - slots_[slot].retired_at < reuse_age_;
    remove(retired_, slot);
    forget_name(slot);
    found_.push_back(slot);
  }
  std::sort(found_.begin() + before, found_.end());
  return young;
}

void SlotTable::mark(std::uint32_t slot) {
  if (slots_[slot].dirty) return;
  slots_[slot].dirty = true;
  dirty_.push_back(slot);
}

void SlotTable::push_newest(List& list, std::uint32_t slot) {
  slots_[slot].older = list.newest;
  slots_[slot].newer = kNone;
  (list.newest == kNone ? list.oldest : slots_[list.newest].newer) = slot;
  list.newest = slot;
  ++list.size;
}

void SlotTable::push_oldest(List& list, std::uint32_t slot) {
  slots_[slot].newer = list.oldest;
  slots_[slot].older = kNone;
  (list.oldest == kNone ? list.newest : slots_[list.oldest].older) = slot;
  list.oldest = slot;
  ++list.size;
}

void SlotTable::remove(List& list, std::uint32_t slot) {
  const Slot& s = slots_[slot];
  (s.older == kNone ? list.oldest : slots_[s.older].newer) = s.newer;
  (s.newer == kNone ? list.newest : slots_[s.newer].older) = s.older;
  --list.size;
}

}  // namespace lmkv
