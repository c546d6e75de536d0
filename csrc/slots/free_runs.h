// Free slots (or granules) as runs, so that consecutive chunks find consecutive slots (DESIGN.md
// 5).
//
// A run never crosses a segment. take() cuts the shortest run that holds all that is wanted, so
// that long runs stay long, and otherwise uses up the longest ones.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace lmkv {

class FreeRuns {
 public:
  explicit FreeRuns(std::uint32_t segment_slots) : segment_slots_(segment_slots) {}

  std::uint32_t size() const { return size_; }

  // Slots [first, first + n) are free now; they were not before.
  void put(std::uint32_t first, std::uint32_t n) {
    size_ += n;
    while (n > 0) {
      const std::uint32_t room = segment_slots_ - first % segment_slots_;
      const std::uint32_t piece = std::min(n, room);
      put_in_segment(first, piece);
      first += piece, n -= piece;
    }
  }

  // The first of n adjacent ones, out of the shortest run that has them, if there is one.
  std::optional<std::uint32_t> take_adjacent(std::uint32_t n) {
    const auto run = by_length_.lower_bound({n, 0});
    if (run == by_length_.end()) return std::nullopt;
    const std::uint32_t first = run->second;
    cut(first, n);
    return first;
  }

  // The one at the start of the longest run; there is one.
  std::uint32_t take_longest() {
    const std::uint32_t first = longest()->second;
    cut(first, 1);
    return first;
  }

  bool contains(std::uint32_t slot) const {
    auto run = by_first_.upper_bound(slot);
    if (run == by_first_.begin()) return false;
    --run;
    return run->first + run->second > slot;
  }

  // [first, first + n), which are free and in one segment, are free no longer.
  void cut(std::uint32_t first, std::uint32_t n) {
    const auto run = std::prev(by_first_.upper_bound(first));
    const std::uint32_t begin = run->first, end = begin + run->second;
    size_ -= n;
    remove(run);
    if (begin < first) add(begin, first - begin);
    if (first + n < end) add(first + n, end - first - n);
  }

  // Appends n slots (n <= size()) to `out`.
  void take(std::uint32_t n, std::vector<std::uint32_t>& out) {
    size_ -= n;
    while (n > 0) {
      auto run = by_length_.lower_bound({n, 0});
      if (run == by_length_.end()) run = longest();
      const auto [length, first] = *run;
      const std::uint32_t used = std::min(length, n);
      for (std::uint32_t i = 0; i < used; ++i) out.push_back(first + i);
      remove(by_first_.find(first));
      if (used < length) add(first + used, length - used);
      n -= used;
    }
  }

 private:
  using Runs = std::map<std::uint32_t, std::uint32_t>;  // first -> length

  // Of the longest runs the first in the pool.
  std::set<std::pair<std::uint32_t, std::uint32_t>>::iterator longest() {
    return by_length_.lower_bound({by_length_.rbegin()->first, 0});
  }

  void add(std::uint32_t first, std::uint32_t n) {
    by_first_[first] = n;
    by_length_.insert({n, first});
  }

  void remove(Runs::iterator run) {
    by_length_.erase({run->second, run->first});
    by_first_.erase(run);
  }

  void put_in_segment(std::uint32_t first, std::uint32_t n) {
    const auto same = [&](std::uint32_t a, std::uint32_t b) {
      return a / segment_slots_ == b / segment_slots_;
    };
    auto next = by_first_.lower_bound(first);
    if (next != by_first_.begin()) {
      auto before = std::prev(next);
      if (before->first + before->second == first && same(before->first, first)) {
        first = before->first, n += before->second;
        remove(before);
      }
    }
    if (next != by_first_.end() && next->first == first + n && same(next->first, first)) {
      n += next->second;
      remove(next);
    }
    add(first, n);
  }

  std::uint32_t segment_slots_;
  std::uint32_t size_ = 0;
  Runs by_first_;
  std::set<std::pair<std::uint32_t, std::uint32_t>> by_length_;  // (length, first)
};

}  // namespace lmkv
