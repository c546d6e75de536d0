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
// Slots of either kind, a frame: the shortest ones, and nearly as many that are to be retracted.
constexpr std::uint32_t kNumbers = 2 * kGranulesPerSlot;

void make_room(SlotArrays& out, std::size_t slots) {
  out.places.reserve(slots);
  out.counters.reserve(slots);
}

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
    : capacity_(checked_capacity(capacity)),
      index_(capacity),
      free_(segment_slots),
      retired_share_(retired_share),
      reuse_age_(reuse_age),
      tier_(tier),
      last_counter_(last_counter),
      spare_(std::min(segment_slots, capacity) * kGranulesPerSlot) {
  REQUIRE(segment_slots > 0, "segment_slots: 0, allowed 1 and more");
  REQUIRE(retired_share >= 0 && retired_share <= 0.5, "retired_share: ", retired_share,
          ", allowed 0 to 0.5");
  REQUIRE(reuse_age >= 0 && std::isfinite(reuse_age), "reuse_age: ", reuse_age,
          " seconds, allowed 0 and more");
  slots_.reserve(std::uint64_t{kNumbers} * capacity);  // addresses; memory when they are used
  slots_.resize(capacity);
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
  for (std::uint32_t slot = 0; slot < usable_; ++slot) end_life(slot);
  for (std::uint32_t slot = capacity_; slot < slots_.size(); ++slot) end_life(slot);
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
  return found();
}

std::optional<SlotArrays> SlotTable::reserve(Keys keys, double now, Sizes granules) {
  return reserve_all(keys, now, granules, false);
}

std::optional<SlotArrays> SlotTable::reserve_again(Keys keys, double now, Sizes granules) {
  return reserve_all(keys, now, granules, true);
}

std::optional<SlotArrays> SlotTable::reserve_all(Keys keys, double now, Sizes granules,
                                                 bool again) {
  REQUIRE(std::isfinite(now), "now: ", now, " is no time");
  REQUIRE(granules.empty() || granules.size() == keys.size(), "granules: ", granules.size(),
          " for ", keys.size(), " keys");
  for (const std::uint8_t n : granules)
    REQUIRE(n >= 1 && n <= kGranulesPerSlot, "granules: ", int(n), ", allowed 1 to 16");
  std::lock_guard lock(mutex_);
  if (!again) require_new(keys);
  const std::uint32_t held = reserved_.full + pinned_.full + limbo_.full + held_splits_;  // frames
  if (keys.size() > usable_ - held) return std::nullopt;
  if (keys.size() > last_counter_ - counter_)
    throw std::overflow_error("admission counters are used up: begin a new epoch");

  for (std::uint32_t slot = retired_.newest; slot != kNone && std::isnan(slots_[slot].retired_at);
       slot = slots_[slot].older)
    slots_[slot].retired_at = now;

  const auto wanted = static_cast<std::uint32_t>(keys.size());
  const auto whole =
      granules.empty()
          ? wanted
          : std::uint32_t(std::ranges::count(granules, std::uint8_t{kGranulesPerSlot}));
  const std::uint32_t fresh = std::min(whole, free_.size());
  found_.clear();
  free_.take(fresh, found_);
  bool young = take_retired(whole - fresh, now);
  if (whole < wanted && !take_shorts(granules, now, young)) {  // what is left lies too far apart
    for (const std::uint32_t slot : found_) free_place(slot);
    return std::nullopt;
  }

  reserved_.full += whole;

  SlotArrays out;
  make_room(out, wanted);
  for (std::uint32_t i = 0; i < wanted; ++i) {
    const std::uint32_t slot = found_[i];
    Slot& s = slots_[slot];
    s.state = again ? State::again : State::reserved;
    s.reserved_at = now;
    s.counter = ++counter_;
    if (again)
      s.key = keys[i];
    else
      name(slot, keys[i]);
    out.places.push_back(place_of(slot));
    out.counters.push_back(s.counter);
  }

  // Ahead of need; twice as far when this call had to take slots that a reader may still be at.
  const auto ahead =
      static_cast<std::uint32_t>(std::ceil(retired_share_ * usable_ * (young ? 2 : 1)));
  while (free_.size() + retired_.granules / kGranulesPerSlot < ahead && recent_.oldest != kNone)
    retire_oldest(now);
  return out;
}

std::vector<SlotTable::Replaced> SlotTable::replace(Places places, Counters counters, Places old,
                                                    Counters old_counters) {
  std::lock_guard lock(mutex_);
  std::vector<Replaced> answer(places.size(), Replaced::gone);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const std::uint32_t slot = match(places[i], counters[i]);
    const std::uint32_t other = match(old[i], old_counters[i]);
    if (slot == kNone || other == kNone) continue;
    Slot& s = slots_[slot];
    const Slot& before = slots_[other];
    if (s.state != State::again) continue;
    if (before.state != State::readable || before.key != s.key) continue;
    if (before.pins > 0) {
      answer[i] = Replaced::pinned;
      continue;
    }
    let_go(slot, reserved_);
    s.state = State::readable;
    insert_behind(recent_, other, slot);
    remove(recent_, other);
    set_retired(other, std::numeric_limits<double>::quiet_NaN());
    name(slot, s.key);
    mark(slot);
    answer[i] = Replaced::good;
  }
  return answer;
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
    let_go(slot, reserved_);
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
    if (slot == kNone) continue;
    const State state = slots_[slot].state;
    if (state != State::reserved && state != State::again) continue;
    forget_name(slot);
    let_go(slot, reserved_);
    if (limbo) {
      slots_[slot].state = State::limbo;
      hold(slot, limbo_);
    } else {
      free_place(slot);
    }
  }
}

void SlotTable::end_limbo(Places places, Counters counters) {
  std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const std::uint32_t slot = match(places[i], counters[i]);
    if (slot == kNone || slots_[slot].state != State::limbo) continue;
    let_go(slot, limbo_);
    free_place(slot);
  }
}

SlotArrays SlotTable::pin(Keys keys) {
  std::lock_guard lock(mutex_);
  find_prefix(keys, false);
  for (const std::uint32_t slot : found_) {
    if (slots_[slot].pins++ == 0) {
      remove(recent_, slot);
      hold(slot, pinned_);
    }
  }
  pins_ += found_.size();
  return found();
}

void SlotTable::unpin(Places places, Counters counters) {
  std::lock_guard lock(mutex_);
  for (std::size_t i = places.size(); i-- > 0;) {
    const std::uint32_t slot = match(places[i], counters[i]);
    if (slot == kNone || slots_[slot].pins == 0) continue;
    Slot& s = slots_[slot];
    --pins_;
    if (--s.pins > 0) continue;
    let_go(slot, pinned_);
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
    if (slot == kNone) continue;
    if (slots_[slot].state == State::retired && !revivable) forget_name(slot);
    if (slots_[slot].state != State::readable) continue;
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
    const Place place = place_of(slot);
    append(changes.back().slots, s.told_key, place, s.told_counter);
    const Sums one = term(s.told_key, place, s.told_counter);
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
    if (s.state == State::free && !full(slot)) forget_short(slot);
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
  const auto add = [&](std::uint32_t slot) {
    const Slot& s = slots_[slot];
    if (s.told) append(out, s.told_key, place_of(slot), s.told_counter);
  };
  auto at = short_at_.lower_bound(first);
  const auto add_short = [&](std::uint64_t below) {
    for (; at != short_at_.end() && at->first < below; ++at) add(at->second);
  };
  const std::uint64_t begin = (std::uint64_t{first} + kGranulesPerSlot - 1) / kGranulesPerSlot;
  for (std::uint64_t slot = begin; slot < usable_ && slot * kGranulesPerSlot < last; ++slot) {
    add_short(slot * kGranulesPerSlot);
    add(static_cast<std::uint32_t>(slot));
  }
  add_short(last);
  return out;
}

std::uint32_t SlotTable::slice_end(std::uint32_t first, std::uint32_t last, std::uint32_t most) {
  REQUIRE(first <= last, "first: ", first, " lies after last, ", last);
  REQUIRE(most >= 1, "most: ", most, ", allowed 1 and more");
  std::lock_guard lock(mutex_);
  auto at = short_at_.lower_bound(first);
  std::uint32_t slots = 0;
  std::uint64_t begin = first;
  while (begin < last) {
    const std::uint64_t end = (begin / kGranulesPerSlot + 1) * kGranulesPerSlot;
    ++slots;  // the full one, if there is one
    for (; at != short_at_.end() && at->first < end; ++at) slots += slots_[at->second].told;
    if (slots > most && begin != first) return static_cast<std::uint32_t>(begin);
    begin = end;
  }
  return last;
}

SlotTable::Granules SlotTable::granules() {
  std::lock_guard lock(mutex_);
  return {std::uint64_t{free_.size()} * kGranulesPerSlot + spare_.size(),
          reserved_.granules(),
          recent_.granules,
          pinned_.granules(),
          retired_.granules,
          limbo_.granules()};
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
  if (slot >= usable_ || full_place(slot) != place) return match_short(place, counter);
  return slots_[slot].counter == counter ? slot : kNone;
}

std::uint32_t SlotTable::match_short(const Place& place, std::uint32_t counter) const {
  const auto [begin, end] = short_at_.equal_range(place.first);
  for (auto at = begin; at != end; ++at) {
    const Slot& s = slots_[at->second];
    const bool is = place_of(at->second) == place && s.counter == counter;
    if (is && s.state != State::free) return at->second;
  }
  return kNone;
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

SlotArrays SlotTable::found() const {
  SlotArrays out;
  make_room(out, found_.size());
  for (const std::uint32_t slot : found_) {
    out.places.push_back(place_of(slot));
    out.counters.push_back(slots_[slot].counter);
  }
  return out;
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

// The oldest retired slot, out of the FIFO; `young` if a reader may still be at it.
inline std::uint32_t SlotTable::take_oldest(double now, bool& young) {
  if (retired_.oldest == kNone) retire_oldest(now);
  const std::uint32_t slot = retired_.oldest;
  young |= now - slots_[slot].retired_at < reuse_age_;
  remove(retired_, slot);
  forget_name(slot);
  return slot;
}

// In the order of the pool, so that consecutive keys get what is consecutive among them.
bool SlotTable::take_retired(std::uint32_t n, double now) {
  bool young = false;
  const std::size_t before = found_.size();
  while (found_.size() < before + n) {
    const std::uint32_t slot = take_oldest(now, young);
    if (full(slot)) {
      found_.push_back(slot);
      continue;
    }
    free_place(slot);
    const auto left = static_cast<std::uint32_t>(before + n - found_.size());
    free_.take(std::min(left, free_.size()), found_);
  }
  std::sort(found_.begin() + static_cast<std::ptrdiff_t>(before), found_.end());
  return young;
}

// Held, and in the order of the keys between the full ones that are there. False: see take_short().
bool SlotTable::take_shorts(Sizes granules, double now, bool& young) {
  const std::size_t whole = found_.size();
  for (const std::uint8_t n : granules)
    if (n < kGranulesPerSlot && !take_short(n, now, young)) return false;
  for (std::size_t i = whole; i < found_.size(); ++i) hold_short(found_[i], reserved_);
  const std::vector<std::uint32_t> taken = found_;
  std::size_t next[] = {0, whole};  // of the full ones, of the short ones
  for (std::size_t i = 0; i < granules.size(); ++i)
    found_[i] = taken[next[granules[i] < kGranulesPerSlot]++];
  return true;
}

// False: there is no such run, and nothing more to evict.
bool SlotTable::take_short(std::uint32_t granules, double now, bool& young) {
  if (unused_.empty() && slots_.size() == slots_.capacity()) return false;
  std::optional<std::uint32_t> first;
  while (!(first = spare_.take_adjacent(granules))) {
    if (free_.size() > 0)
      split_frame();
    else if (retired_.granules + recent_.granules > 0)
      free_place(take_oldest(now, young));
    else
      return false;
  }
  std::uint32_t slot;
  if (!unused_.empty()) {
    slot = unused_.back();
    unused_.pop_back();
  } else {
    slot = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
    short_.emplace_back();
    index_.grow(slot + 1);
  }
  short_[slot - capacity_] = *first;
  slots_[slot].granules = std::uint8_t(granules);
  short_at_.emplace(*first, slot);
  each_frame(slot, [&](std::uint32_t frame, std::uint32_t part) {
    split_[frame].used += std::uint8_t(part);
  });
  found_.push_back(slot);
  return true;
}

// The next one after the last, if it is free, so that a run goes on from one into the other.
void SlotTable::split_frame() {
  std::uint32_t frame = next_frame_;
  if (free_.contains(frame))
    free_.cut(frame, 1);
  else
    frame = free_.take_longest();
  next_frame_ = frame + 1;
  split_[frame] = {};
  spare_.put(frame * kGranulesPerSlot, kGranulesPerSlot);
}

void SlotTable::free_place(std::uint32_t slot) {
  slots_[slot].state = State::free;
  if (full(slot))
    free_.put(slot, 1);
  else
    free_short(slot);
}

void SlotTable::free_short(std::uint32_t slot) {
  const Place place = place_of(slot);
  spare_.put(place.first, place.granules);
  each_frame(slot, [&](std::uint32_t frame, std::uint32_t part) {
    Split& split = split_[frame];
    split.used -= std::uint8_t(part);
    if (split.used > 0) return;
    split_.erase(frame);
    spare_.cut(frame * kGranulesPerSlot, kGranulesPerSlot);
    free_.put(frame, 1);
  });
  if (!slots_[slot].dirty) forget_short(slot);  // else it is retracted first, from its place
}

void SlotTable::forget_short(std::uint32_t slot) {
  auto at = short_at_.lower_bound(place_of(slot).first);
  while (at->second != slot) ++at;
  short_at_.erase(at);
  unused_.push_back(slot);
}

// Calls do(frame, granules of the short slot in it) for the one or two that it lies in.
template <class Do>
void SlotTable::each_frame(std::uint32_t slot, const Do& action) {
  const Place place = place_of(slot);
  const std::uint32_t frame = place.first / kGranulesPerSlot;
  const std::uint32_t room = (frame + 1) * kGranulesPerSlot - place.first;
  action(frame, std::min<std::uint32_t>(room, place.granules));
  if (place.granules > room) action(frame + 1, place.granules - room);
}

void SlotTable::hold_short(std::uint32_t slot, Held& held) {
  held.short_granules += slots_[slot].granules;
  each_frame(
      slot, [&](std::uint32_t frame, std::uint32_t) { held_splits_ += split_[frame].held++ == 0; });
}

void SlotTable::let_go_short(std::uint32_t slot, Held& held) {
  held.short_granules -= slots_[slot].granules;
  each_frame(
      slot, [&](std::uint32_t frame, std::uint32_t) { held_splits_ -= --split_[frame].held == 0; });
}

// Of a slot whose epoch has ended.
void SlotTable::end_life(std::uint32_t slot) {
  Slot& s = slots_[slot];
  s.named = false;
  if (s.state == State::again) s.state = State::reserved;
  if (s.state != State::readable) return;
  if (s.pins == 0) {
    remove(recent_, slot);
    set_retired(slot, std::numeric_limits<double>::quiet_NaN());
  } else {
    retire_pinned(slot);
  }
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
  list.granules += slots_[slot].granules;
}

void SlotTable::push_oldest(List& list, std::uint32_t slot) {
  slots_[slot].newer = list.oldest;
  slots_[slot].older = kNone;
  (list.oldest == kNone ? list.newest : slots_[list.oldest].older) = slot;
  list.oldest = slot;
  list.granules += slots_[slot].granules;
}

// The next older than `newer`, which is in the list.
void SlotTable::insert_behind(List& list, std::uint32_t newer, std::uint32_t slot) {
  const std::uint32_t older = slots_[newer].older;
  slots_[slot].newer = newer;
  slots_[slot].older = older;
  (older == kNone ? list.oldest : slots_[older].newer) = slot;
  slots_[newer].older = slot;
  list.granules += slots_[slot].granules;
}

void SlotTable::remove(List& list, std::uint32_t slot) {
  const Slot& s = slots_[slot];
  (s.older == kNone ? list.oldest : slots_[s.older].newer) = s.newer;
  (s.newer == kNone ? list.newest : slots_[s.newer].older) = s.older;
  list.granules -= s.granules;
}

}  // namespace lmkv
