#include "bindings.h"
#include "buffer.h"
#include "memory/pool.h"

namespace lmkv {

namespace {

// A copier trusts its layout: a place of fewer granules could end where the mapping does.
template <class Mapped>
std::uintptr_t slot_address(const Mapped& pool, const nb::bytes& place, std::uint64_t room) {
  const Place there = one_place(place);
  std::byte* slot = pool.slot(there);
  const std::uint64_t bytes = there.granules * pool.granule_bytes();
  REQUIRE(bytes >= room, "place: ", int(there.granules), " granules are ", bytes,
          " bytes, a slot of this layout has ", room);
  return reinterpret_cast<std::uintptr_t>(slot);
}

template <class Mapped>
nb::tuple segment(const Mapped& pool, std::uint32_t n) {
  const std::span<std::byte> bytes = pool.segment(n);
  return nb::make_tuple(reinterpret_cast<std::uintptr_t>(bytes.data()), bytes.size());
}

}  // namespace

void bind_memory(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;

  nb::class_<Pool>(m, "Pool")
      .def(nb::init<std::uint64_t, std::uint64_t, std::uint64_t, std::uintptr_t>(),
           nb::arg("granule_bytes"), nb::arg("slots"), nb::arg("segment_slots"),
           nb::arg("address") = 0)
      .def("add_segment", &Pool::add_segment, nb::arg("populate") = true, Release())
      .def(
          "segment_fd",
          [](Pool& pool, std::uint32_t segment, bool readonly) {
            return pool.segment_fd(segment, readonly).release();
          },
          nb::arg("segment"), nb::arg("readonly") = false)
      .def_prop_ro("address", &Pool::address)
      .def_prop_ro("slots", &Pool::slots)
      .def_prop_ro("segment_slots", &Pool::segment_slots)
      .def_prop_ro("segments", &Pool::segments)
      .def_prop_ro("granule_bytes", &Pool::granule_bytes)
      .def_prop_ro("slot_bytes", &Pool::slot_bytes)
      .def("segment", &segment<Pool>, nb::arg("n"))
      .def("slot_address", &slot_address<Pool>, nb::arg("place"), nb::arg("room") = 0)
      .def("close", &Pool::close, Release());

  nb::class_<PoolMap>(m, "PoolMap")
      .def(nb::init<std::uint64_t, std::uint64_t, std::uint64_t, std::uintptr_t, bool>(),
           nb::arg("granule_bytes"), nb::arg("slots"), nb::arg("segment_slots"),
           nb::arg("address") = 0, nb::arg("writable") = false)
      .def("add_segment", &PoolMap::add_segment, nb::arg("fd"), Release())
      .def("fault_in", &PoolMap::fault_in, nb::arg("segment"), Release())
      .def_prop_ro("address", &PoolMap::address)
      .def_prop_ro("segments", &PoolMap::segments)
      .def_prop_ro("granule_bytes", &PoolMap::granule_bytes)
      .def_prop_ro("slot_bytes", &PoolMap::slot_bytes)
      .def("segment", &segment<PoolMap>, nb::arg("n"))
      .def("slot_address", &slot_address<PoolMap>, nb::arg("place"), nb::arg("room") = 0)
      .def("close", &PoolMap::close, Release());
}

}  // namespace lmkv
