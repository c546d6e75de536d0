#include "extra.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "check.h"

namespace lmkv {

std::string canonical_extra(std::initializer_list<std::span<const uint8_t>> parts) {
  constexpr size_t kHead = 5;  // tag and length
  struct Item {
    uint8_t tag;
    std::string_view value;
    auto operator<=>(const Item&) const = default;
  };
  std::vector<Item> items;
  size_t total = 0;
  for (const auto part : parts) {
    const auto* bytes = reinterpret_cast<const char*>(part.data());
    for (size_t at = 0; at < part.size();) {
      const size_t left = part.size() - at;
      REQUIRE(left >= kHead, "extra: ", left, " bytes at ", at,
              " are no item (tag, length, bytes)");
      uint32_t length;
      std::memcpy(&length, bytes + at + 1, sizeof length);
      REQUIRE(length <= left - kHead, "extra: the item at ", at, " says ", length, " bytes of ",
              left - kHead);
      items.push_back({part[at], {bytes + at + kHead, length}});
      at += kHead + length;
    }
    total += part.size();
  }
  std::sort(items.begin(), items.end());
  std::string out;
  out.reserve(total);
  for (const Item& item : items) {
    const auto length = static_cast<uint32_t>(item.value.size());
    out.push_back(static_cast<char>(item.tag));
    out.append(reinterpret_cast<const char*>(&length), sizeof length);
    out.append(item.value);
  }
  return out;
}

}  // namespace lmkv
