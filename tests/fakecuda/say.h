// Sentences for tests to read.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>

namespace lmkv::fake {

template <class... Part>
std::string say(const Part&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

inline std::string hex(std::uint64_t number) { return say("0x", std::hex, number); }

}  // namespace lmkv::fake
