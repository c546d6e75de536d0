#include "directory/directory.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "check.h"

namespace lmkv {

namespace {

void require_equal(std::size_t keys, std::size_t places, std::size_t counters) {
  REQUIRE(places == keys, "places: ", places, " for ", keys, " keys");
  REQUIRE(counters == keys, "counters: ", counters, " for ", keys, " keys");
}

// Where in a key's holders (sorted) the instance is, or would be.
std::size_t seek(std::span<const Holder> holders, std::uint16_t instance) {
  const auto at = std::lower_bound(holders.begin(), holders.end(), instance,
                                   [](const Holder& h, std::uint16_t i) { return h.instance < i; });
  return static_cast<std::size_t>(at - holders.begin());
}

}  // namespace

int Directory::add(std::int64_t group, std::int64_t host) {
  int number = static_cast<int>(instances_.size());
  if (!free_numbers_.empty()) {
    number = free_numbers_.back();
    free_numbers_.pop_back();
  } else {
    REQUIRE(number <= std::numeric_limits<std::uint16_t>::max(),
            "instance: all 65536 numbers are taken; sweep what was dropped");
    instances_.emplace_back();
  }
  Instance& instance = instances_[number];
  instance = {};
  instance.oldest = 0;
  instance.group = group;
  instance.host = host;
  return number;
}

void Directory::drop(int number) {
  Instance& instance = live(number);
  hidden_ += instance.visible.count;
  instance.visible = instance.stated = {};
  instance.oldest = kDead;
  set_coming(instance, 0);
  free_if_gone(number);
}

std::size_t Directory::announce(int number, Keys keys, Places places, Counters counters) {
  std::size_t added = 0;
  put_all(number, keys, places, counters,
          [&](std::size_t, Put how) { added += how == Put::added ? 1 : 0; });
  return added;
}

std::size_t Directory::retract(int number, Keys keys, Places places, Counters counters) {
  live(number);
  require_equal(keys.size(), places.size(), counters.size());
  std::size_t removed = 0;
  table_.walk_all(keys, [&](std::size_t i, std::uint64_t hash, Entry* entry) {
    if (!entry) return;
    const std::span<Holder> holders = lists_.of(entry->holder);
    const std::size_t at = seek(holders, static_cast<std::uint16_t>(number));
    if (at == holders.size() || holders[at].instance != number || !visible(holders[at])) return;
    const Place place{places[i].first, places[i].granules, places[i].tier};
    if (holders[at].place() != place || holders[at].counter != counters[i]) return;
    lose(keys[i], holders[at]);
    if (entry->holder.kind == Holder::many)
      lists_.remove(entry->holder, at);
    else
      table_.erase(keys[i], hash);
    ++removed;
  });
  return removed;
}

// The next sync of this instance states so many keys, as far as is known: the table grows for them
// at once. They need not come.
void Directory::expect(int number, std::size_t keys) {
  Instance& instance = live(number);
  keys = std::min(keys, kMostExpected);
  set_coming(instance, keys - std::min<std::uint64_t>(keys, instance.visible.count));
}

void Directory::begin_sync(int number) {
  Instance& instance = live(number);
  if (instance.stamp == std::numeric_limits<std::uint16_t>::max()) restamp(number);
  ++instance.stamp;
  instance.stated = {};
  instance.syncing = true;
}

Differing Directory::sync_slice(int number, std::uint32_t first, std::uint32_t last, Keys keys,
                                Places places, Counters counters) {
  REQUIRE(live(number).syncing, "instance: ", number, " has begun no sync");
  REQUIRE(first <= last, "first: ", first, " lies after last, ", last);
  for (const Place& place : places)
    REQUIRE(place.first >= first && place.first < last, "places: first granule ", place.first,
            " lies outside [", first, ", ", last, ")");
  Differing out;
  const auto note = [&](std::size_t& n, std::vector<Key>& shown, const Key& key) {
    if (n++ < Differing::kShown) shown.push_back(key);
  };
  std::vector<Put> found(keys.size());
  put_all(number, keys, places, counters, [&](std::size_t i, Put how) { found[i] = how; });
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (found[i] == Put::added) note(out.missing, out.missing_keys, keys[i]);
    if (found[i] == Put::moved) note(out.moved, out.moved_keys, keys[i]);
  }
  const std::uint64_t coming = instances_[number].coming;
  set_coming(instances_[number], coming - std::min<std::uint64_t>(coming, out.missing));
  return out;
}

std::size_t Directory::end_sync(int number) {
  Instance& instance = live(number);
  REQUIRE(instance.syncing, "instance: ", number, " has begun no sync");
  const std::uint64_t gone = instance.visible.count - instance.stated.count;
  hidden_ += gone;
  instance.syncing = false;
  instance.oldest = instance.stamp;
  instance.visible = instance.stated;
  set_coming(instance, 0);
  return gone;
}

// From now on (`on`) note the keys that a sync of this instance has hidden, as sweeps come across
// them; the first 256.
void Directory::watch(int number, bool on) {
  Instance& instance = live(number);
  instance.watched = on;
  instance.gone = {};
}

Sums Directory::sums(int number) const { return live(number).visible; }

std::vector<int> Directory::holders(const Key& key) {
  std::vector<int> out;
  Entry* entry = table_.find(key, KeyTable::hash(key));
  if (!entry) return out;
  for (const Holder& holder : lists_.of(entry->holder))
    if (visible(holder)) out.push_back(holder.instance);
  return out;
}

// Whole sub-tables, until at least `entries` have been looked at; then room for keys that did not
// come is given back.
bool Directory::sweep(std::size_t entries) {
  for (std::size_t seen = 0; hidden_ > 0 && seen < entries;) {
    seen += std::max<std::size_t>(1, table_.sub_size(swept_));
    table_.filter(swept_, [&](Entry& entry) { return drop_hidden(entry); });
    swept_ = (swept_ + 1) % KeyTable::kSubTables;
  }
  return hidden_ == 0 && table_.fit();
}

// Counted by hand only while something waits to be swept.
std::size_t Directory::size() {
  if (hidden_ == 0) return table_.size();
  std::size_t count = 0;
  table_.each([&](Entry& entry) {
    const auto holders = lists_.of(entry.holder);
    count += std::any_of(holders.begin(), holders.end(),
                         [&](const Holder& holder) { return visible(holder); });
  });
  return count;
}

std::size_t Directory::bytes() {
  return table_.bytes() + lists_.bytes() + instances_.capacity() * sizeof(Instance);
}

// ------------------------------------------------------------------ inside

const Directory::Instance& Directory::live(int number) const {
  REQUIRE(number >= 0 && static_cast<std::size_t>(number) < instances_.size() &&
              instances_[number].oldest != kDead,
          "instance: ", number, " is not in the directory");
  return instances_[number];
}

Directory::Instance& Directory::live(int number) {
  return const_cast<Instance&>(std::as_const(*this).live(number));
}

// A holder with the current stamp has come.
void Directory::gain(const Key& key, const Holder& holder) {
  Instance& instance = instances_[holder.instance];
  const Sums one = term(key, holder.place(), holder.counter);
  ++instance.held;
  instance.visible += one;
  instance.stated += one;
}

// A holder goes, hidden or not.
void Directory::lose(const Key& key, const Holder& holder) {
  Instance& instance = instances_[holder.instance];
  --instance.held;
  if (!visible(holder)) {
    --hidden_;
    free_if_gone(holder.instance);
    return;
  }
  const Sums one = term(key, holder.place(), holder.counter);
  instance.visible -= one;
  if (holder.stamp == instance.stamp) instance.stated -= one;
}

template <typename Each>
void Directory::put_all(int number, Keys keys, Places places, Counters counters, Each each) {
  const std::uint16_t stamp = live(number).stamp;
  require_equal(keys.size(), places.size(), counters.size());
  table_.walk_all(keys, [&](std::size_t i, std::uint64_t hash, Entry* entry) {
    const Place& place = places[i];
    each(i, put(keys[i], hash, entry,
                {place.first, counters[i], static_cast<std::uint16_t>(number), stamp,
                 place.granules, place.tier, Holder::one, 0}));
  });
}

// Whether the instance (visibly) held the key before, and there.
Directory::Put Directory::put(const Key& key, std::uint64_t hash, Entry* entry,
                              const Holder& holder) {
  if (!entry) {
    table_.insert(key, hash).holder = holder;
    gain(key, holder);
    return Put::added;
  }
  const std::span<Holder> holders = lists_.of(entry->holder);
  const std::size_t at = seek(holders, holder.instance);
  const bool known = at < holders.size() && holders[at].instance == holder.instance;
  const bool seen = known && visible(holders[at]);
  const bool same =
      seen && holders[at].place() == holder.place() && holders[at].counter == holder.counter;
  const bool alone = entry->holder.kind == Holder::one;
  if (known || (alone && !visible(entry->holder))) {  // its own old place, or a hidden one's
    Holder& old = known ? holders[at] : entry->holder;
    lose(key, old);
    old = holder;
  } else {
    lists_.add(entry->holder, holder);
  }
  gain(key, holder);
  if (!seen) return Put::added;
  return same ? Put::same : Put::moved;
}

bool Directory::drop_hidden(Entry& entry) {
  for (std::size_t at = lists_.of(entry.holder).size(); at-- > 0;) {
    const Holder holder = lists_.of(entry.holder)[at];
    if (visible(holder)) continue;
    Instance& owner = instances_[holder.instance];
    if (owner.watched && owner.gone.size() < kGone) owner.gone.push_back(entry.key);
    lose(entry.key, holder);
    if (entry.holder.kind == Holder::one) return false;
    lists_.remove(entry.holder, at);
  }
  return true;
}

// Stamps have run out, after 65,535 syncs: take away what is hidden and begin again from 0.
void Directory::restamp(int number) {
  for (int sub = 0; sub < KeyTable::kSubTables; ++sub) {
    table_.filter(sub, [&](Entry& entry) {
      if (!drop_hidden(entry)) return false;
      for (Holder& holder : lists_.of(entry.holder))
        if (holder.instance == number) holder.stamp = 0;
      return true;
    });
  }
  instances_[number].stamp = 0;
  instances_[number].oldest = 0;
}

void Directory::free_if_gone(int number) {
  const Instance& instance = instances_[number];
  if (instance.oldest == kDead && instance.held == 0) free_numbers_.push_back(number);
}

// Only the table's growth depends on it.
void Directory::set_coming(Instance& instance, std::uint64_t keys) {
  coming_ += keys - instance.coming;
  instance.coming = keys;
  table_.expect(coming_);
}

}  // namespace lmkv
