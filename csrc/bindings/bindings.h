// One binding file per concept; module.cpp calls each.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <span>

#include "check.h"

namespace nb = nanobind;

namespace lmkv {

void bind_keys(nb::module_& m);
void bind_slots(nb::module_& m);
void bind_memory(nb::module_& m);
void bind_copy(nb::module_& m);
void bind_cuda(nb::module_& m);
void bind_table(nb::module_& m);
void bind_directory(nb::module_& m);
void bind_nixl(nb::module_& m);
void bind_turns(nb::module_& m);

// A bulk array on the wire (keys, places, counters) as the C++ type it holds; refuses a torn one.
template <class T>
std::span<const T> view(const nb::bytes& raw, const char* name) {
  REQUIRE(raw.size() % sizeof(T) == 0, name, ": ", raw.size(), " bytes are not a multiple of ",
          sizeof(T));
  return {reinterpret_cast<const T*>(raw.c_str()), raw.size() / sizeof(T)};
}

template <class T>
nb::bytes to_bytes(std::span<const T> items) {
  return nb::bytes(reinterpret_cast<const char*>(items.data()), items.size_bytes());
}

}  // namespace lmkv
