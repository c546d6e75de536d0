#include "bindings.h"
#include "buffer.h"
#include "memory/pool.h"
#include "pools.h"

namespace lmkv {

namespace {

template <class Range>
void bind_clear(nb::class_<Range>& pool) {
  pool.def(
      "clear", [](const Range& range, const nb::bytes& place) { range.clear(one_place(place)); },
      nb::arg("place"));
}

}  // namespace

void bind_memory(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;

  auto pool = nb::class_<Pool>(m, "Pool");
  pool.def(nb::init<std::uint64_t, std::uint64_t, std::uint64_t, std::uintptr_t>(),
           nb::arg("granule_bytes"), nb::arg("slots"), nb::arg("segment_slots"),
           nb::arg("address") = 0)
      .def("add_segment", &Pool::add_segment, nb::arg("populate") = true, Release())
      .def(
          "segment_fd",
          [](Pool& pool, std::uint32_t segment, bool readonly) {
            return pool.segment_fd(segment, readonly).release();
          },
          nb::arg("segment"), nb::arg("readonly") = false)
      .def("close", &Pool::close, Release());
  bind_range(pool);
  bind_clear(pool);

  auto map = nb::class_<PoolMap>(m, "PoolMap");
  map.def(nb::init<std::uint64_t, std::uint64_t, std::uint64_t, std::uintptr_t, bool>(),
          nb::arg("granule_bytes"), nb::arg("slots"), nb::arg("segment_slots"),
          nb::arg("address") = 0, nb::arg("writable") = false)
      .def("add_segment", &PoolMap::add_segment, nb::arg("fd"), Release())
      .def("fault_in", &PoolMap::fault_in, nb::arg("segment"), Release())
      .def("close", &PoolMap::close, Release());
  bind_range(map);
  bind_clear(map);
}

}  // namespace lmkv
