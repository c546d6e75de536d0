// Checks at the edges: REQUIRE for a caller's mistake (std::invalid_argument, ValueError in
// Python). Inner code trusts what the edge has checked.
#pragma once

#include <cerrno>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>

namespace lmkv {

template <class... Parts>
std::string sentence(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// A call of the system failed: RuntimeError in Python, with the call's name and errno's text.
struct SystemError : std::runtime_error {
  explicit SystemError(const std::string& call, int error = errno)
      : std::runtime_error(call + ": " + std::generic_category().message(error)) {}
};

}  // namespace lmkv

#define REQUIRE(condition, ...)                                                 \
  do {                                                                          \
    if (!(condition)) throw std::invalid_argument(lmkv::sentence(__VA_ARGS__)); \
  } while (0)
