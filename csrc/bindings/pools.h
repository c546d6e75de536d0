// What Python sees of every pool: its sizes, and where slots and segments lie.
#pragma once

#include "bindings.h"
#include "buffer.h"
#include "memory/pool.h"

namespace lmkv {

// A copier trusts its layout: a place of fewer granules could end where the mapping does.
template <class Range>
std::uintptr_t slot_address(const Range& pool, const nb::bytes& place, std::uint64_t room) {
  const Place there = one_place(place);
  std::byte* slot = pool.slot(there);
  const std::uint64_t bytes = there.granules * pool.granule_bytes();
  REQUIRE(bytes >= room, "place: ", int(there.granules), " granules are ", bytes,
          " bytes, a slot of this layout has ", room);
  return reinterpret_cast<std::uintptr_t>(slot);
}

template <class Range>
nb::tuple segment(const Range& pool, std::uint32_t n) {
  const std::span<std::byte> bytes = pool.segment(n);
  return nb::make_tuple(reinterpret_cast<std::uintptr_t>(bytes.data()), bytes.size());
}

template <class Range>
void bind_range(nb::class_<Range>& pool) {
  pool.def_prop_ro("address", &Range::address)
      .def_prop_ro("tier", [](const Range& range) { return int(range.tier()); })
      .def_prop_ro("slots", &Range::slots)
      .def_prop_ro("segment_slots", &Range::segment_slots)
      .def_prop_ro("segments", &Range::segments)
      .def_prop_ro("granule_bytes", &Range::granule_bytes)
      .def_prop_ro("slot_bytes", &Range::slot_bytes)
      .def("segment", &segment<Range>, nb::arg("n"))
      .def("slot_address", &slot_address<Range>, nb::arg("place"), nb::arg("room") = 0);
}

}  // namespace lmkv
