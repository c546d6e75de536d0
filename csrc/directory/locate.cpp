// locate(): the longest prefix that others hold, and whom to ask for which part of it.
//
// First the keys are looked up, until one has no usable holder; a sparse locate leaves such keys
// out and goes on. Then runs are chosen greedily: a run goes on while its holder has the next key;
// at a break the holder with the largest (keys it has from here on) * weight is taken. A holder on
// the asker's host weighs four times (one copy instead of a transfer and a copy), one that the
// answer names already a quarter more, and a loaded one 1 / (1 + load).
#include <algorithm>
#include <array>
#include <cmath>

#include "check.h"
#include "directory/directory.h"

namespace lmkv {

namespace {

constexpr double kSameHost = 4, kNamedAlready = 1.25;
constexpr std::size_t kCandidates = 8;  // compared at a break, and as many that reach the end

}  // namespace

struct Directory::Choice {
  Directory& directory;
  const int asker;
  const std::span<const double> loads;
  const std::span<const int> avoid;
  std::vector<std::span<const Holder>> holders = {};  // of each key; sparse: empty for nobody
  std::vector<int> named = {};

  struct Pick {
    int instance = -1;
    std::size_t n = 0;
    double score = 0;
  };
  struct Candidates {
    std::array<Pick, kCandidates> items;  // best first
    std::size_t size = 0;
  };

  Choice(Directory& d, int who, std::span<const double> load, std::span<const int> not_these)
      : directory(d), asker(who), loads(load), avoid(not_these) {
    mark(true);
  }
  ~Choice() {
    mark(false);
    for (const int number : named) directory.instances_[number].used = false;
  }
  Choice(const Choice&) = delete;
  Choice& operator=(const Choice&) = delete;

  void mark(bool value) {
    for (const int number : avoid)
      if (number >= 0 && static_cast<std::size_t>(number) < directory.instances_.size())
        directory.instances_[number].avoid = value;
  }

  const Instance& of(int number) const { return directory.instances_[number]; }
  bool compatible(int number) const { return asker < 0 || of(number).group == of(asker).group; }
  bool usable(const Holder& holder) const {
    return directory.visible(holder) && holder.instance != asker && !of(holder.instance).avoid &&
           compatible(holder.instance);
  }

  double weight(int number) const {
    const double host = asker >= 0 && of(number).host == of(asker).host ? kSameHost : 1;
    const double load = static_cast<std::size_t>(number) < loads.size() ? loads[number] : 0;
    return host * (of(number).used ? kNamedAlready : 1) / (1 + load);
  }

  // The instance as a usable holder of key `at`; `hint` is where in the list it was last.
  const Holder* held(std::size_t at, int number, std::size_t& hint) const {
    const auto& list = holders[at];
    if (hint >= list.size() || list[hint].instance != number) {
      const auto found = std::lower_bound(list.begin(), list.end(), number,
                                          [](const Holder& h, int i) { return h.instance < i; });
      if (found == list.end() || found->instance != number) return nullptr;
      hint = static_cast<std::size_t>(found - list.begin());
    }
    return usable(list[hint]) ? &list[hint] : nullptr;
  }

  std::size_t stretch(int number, std::size_t first, std::size_t end) const {
    std::size_t at = first, hint = 0;
    while (at < end && held(at, number, hint)) ++at;
    return at - first;
  }

  // The heaviest usable holders of key `at`; of equal ones the lower number.
  Candidates heaviest(std::size_t at, int except) const {
    Candidates best;
    for (const Holder& holder : holders[at]) {
      if (holder.instance == except || !usable(holder)) continue;
      const double score = weight(holder.instance);
      std::size_t to = best.size;
      while (to > 0 && best.items[to - 1].score < score) --to;
      if (to == kCandidates) continue;
      best.size = std::min(best.size + 1, kCandidates);
      std::copy_backward(best.items.begin() + to, best.items.begin() + best.size - 1,
                         best.items.begin() + best.size);
      best.items[to] = {holder.instance, 0, score};
    }
    return best;
  }

  // Whom to take from key `first` on, within [first, end). Where many hold `first`, those are
  // compared that weigh most, and those that also hold the last key.
  Pick best(std::size_t first, std::size_t end, int except) const {
    Pick best;
    const auto consider = [&](const Candidates& candidates) {
      for (std::size_t i = 0; i < candidates.size; ++i) {
        const int number = candidates.items[i].instance;
        const std::size_t n = stretch(number, first, end);
        const double score = static_cast<double>(n) * weight(number);
        if (score > best.score) best = {number, n, score};
      }
    };
    const Candidates here = heaviest(first, except);
    consider(here);
    if (here.size == kCandidates) consider(heaviest(end - 1, except));
    return best;
  }

  Run take(Located& out, const Pick& pick, std::size_t first) const {
    const auto offset = static_cast<std::uint32_t>(out.places.size());
    std::size_t hint = 0;
    for (std::size_t at = first; at < first + pick.n; ++at) {
      const Holder* holder = held(at, pick.instance, hint);
      out.places.push_back(holder->place());
      out.counters.push_back(holder->counter);
    }
    return {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(pick.n), pick.instance,
            offset};
  }

  void name(int number) {
    if (of(number).used) return;
    directory.instances_[number].used = true;
    named.push_back(number);
  }
};

Located Directory::locate(Keys keys, int asker, std::span<const double> loads,
                          std::span<const int> avoid, bool sparse) {
  if (asker != -1) live(asker);
  for (const double load : loads)
    REQUIRE(load >= 0 && std::isfinite(load), "loads: ", load, ", allowed 0 and more");
  Located out;
  Choice choice(*this, asker, loads, avoid);

  table_.walk(keys, [&](std::size_t, std::uint64_t, Entry* entry) {
    const auto nobody = [&] {
      if (sparse) choice.holders.emplace_back();
      return sparse;
    };
    if (!entry) return nobody();
    const std::span<const Holder> list = lists_.of(entry->holder);
    const auto is_usable = [&](const Holder& holder) { return choice.usable(holder); };
    if (std::any_of(list.begin(), list.end(), is_usable)) {
      choice.holders.push_back(list);
      ++out.found;
      return true;
    }
    for (const Holder& holder : list)
      if (visible(holder) && !choice.compatible(holder.instance) && out.incompatible < 0)
        out.incompatible = holder.instance;
    return nobody();
  });

  const std::size_t keys_seen = choice.holders.size();
  out.places.reserve(out.found * 2);
  out.counters.reserve(out.found * 2);
  for (std::size_t first = 0; first < keys_seen;) {
    if (choice.holders[first].empty()) {
      ++first;
      continue;
    }
    const Choice::Pick pick = choice.best(first, keys_seen, -1);
    out.runs.push_back(choice.take(out, pick, first));
    choice.name(pick.instance);
    first += pick.n;
  }
  for (const Run& run : out.runs) {
    const std::size_t end = run.first + run.n;
    for (std::size_t first = run.first; first < end; ++first) {
      const Choice::Pick pick = choice.best(first, end, run.instance);
      if (pick.instance < 0) continue;
      out.alternates.push_back(choice.take(out, pick, first));
      break;
    }
  }
  return out;
}

}  // namespace lmkv
