// Holders of keys that more than one instance has: a block per key, sorted by instance.
//
// Blocks hold 2, 4, 8, ... holders and come from chunks of 64 KiB (larger blocks from chunks of
// their own). The key's entry has kind `many`, and then `first` is the block's number, `counter`
// how many holders there are and `granules` the block's class: 2 << class holders fit.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "directory/key_table.h"

namespace lmkv {

class HolderLists {
 public:
  // An entry's holders, wherever they are; valid until the next change.
  std::span<Holder> of(Holder& head) {
    if (head.kind == Holder::one) return {&head, 1};
    return {block(head.granules, head.first), head.counter};
  }

  // Adds a holder whose instance is not there yet.
  void add(Holder& head, const Holder& holder) {
    if (head.kind == Holder::one) {
      const Holder alone = head;
      head = Holder{.first = allocate(0), .counter = 1, .kind = Holder::many};
      block(0, head.first)[0] = alone;
    } else if (head.counter == capacity(head.granules)) {
      move(head, head.granules + 1);
    }
    Holder* items = block(head.granules, head.first);
    std::uint32_t at = head.counter++;
    for (; at > 0 && items[at - 1].instance > holder.instance; --at) items[at] = items[at - 1];
    items[at] = holder;
  }

  // Takes one of an entry's several holders out; of two, the other goes back into the entry.
  void remove(Holder& head, std::size_t at) {
    Holder* items = block(head.granules, head.first);
    std::memmove(items + at, items + at + 1, (--head.counter - at) * sizeof(Holder));
    if (head.counter == 1) {
      const Holder alone = items[0];
      release(head.granules, head.first);
      head = alone;
    } else if (head.granules > 0 && head.counter <= capacity(head.granules) / 4) {
      move(head, head.granules - 1);
    }
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (int size = 0; size < kClasses; ++size) {
      sum += classes_[size].chunks.size() * chunk_blocks(size) * capacity(size) * sizeof(Holder);
      sum += classes_[size].free.capacity() * sizeof(std::uint32_t);
    }
    return sum;
  }

 private:
  static constexpr int kClasses = 16;  // up to 2^16 holders, as many as there are instances
  struct Class {
    std::vector<std::unique_ptr<Holder[]>> chunks;
    std::vector<std::uint32_t> free;  // block numbers
  };

  static constexpr std::uint32_t capacity(int size) { return 2u << size; }
  static constexpr std::uint32_t chunk_blocks(int size) {
    return capacity(size) >= 4096 ? 1 : 4096 / capacity(size);
  }

  Holder* block(int size, std::uint32_t number) {
    const std::uint32_t blocks = chunk_blocks(size);
    return &classes_[size].chunks[number / blocks][std::size_t{number % blocks} * capacity(size)];
  }

  std::uint32_t allocate(int size) {
    Class& c = classes_[size];
    if (c.free.empty()) {
      const std::uint32_t blocks = chunk_blocks(size);
      const auto first = static_cast<std::uint32_t>(c.chunks.size() * blocks);
      c.chunks.push_back(std::make_unique<Holder[]>(std::size_t{blocks} * capacity(size)));
      for (std::uint32_t i = blocks; i-- > 0;) c.free.push_back(first + i);
    }
    const std::uint32_t number = c.free.back();
    c.free.pop_back();
    return number;
  }

  void release(int size, std::uint32_t number) { classes_[size].free.push_back(number); }

  void move(Holder& head, int size) {
    const std::uint32_t to = allocate(size);
    std::memcpy(block(size, to), block(head.granules, head.first), head.counter * sizeof(Holder));
    release(head.granules, head.first);
    head.first = to;
    head.granules = static_cast<std::uint8_t>(size);
  }

  Class classes_[kClasses];
};

}  // namespace lmkv
