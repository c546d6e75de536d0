// Directory for Python: arrays come as bytes and go as bytes. The interpreter lock stays held: one
// thread uses a directory, and the lock keeps a second one out.
#include "directory/directory.h"

#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>

#include "bindings.h"

namespace lmkv {

namespace {

struct Arrays {
  std::span<const Key> keys;
  std::span<const Place> places;
  std::span<const std::uint32_t> counters;

  Arrays(const nb::bytes& raw_keys, const nb::bytes& raw_places, const nb::bytes& raw_counters)
      : keys(view<Key>(raw_keys, "keys")),
        places(view<Place>(raw_places, "places")),
        counters(view<std::uint32_t>(raw_counters, "counters")) {}
};

template <std::size_t (Directory::*Method)(int, Directory::Keys, Directory::Places,
                                           Directory::Counters)>
std::size_t on_arrays(Directory& directory, int instance, const nb::bytes& keys,
                      const nb::bytes& places, const nb::bytes& counters) {
  const Arrays arrays(keys, places, counters);
  return (directory.*Method)(instance, arrays.keys, arrays.places, arrays.counters);
}

// Any sequence of floats; an array('d') or a numpy array goes without a loop over objects.
std::vector<double> read_loads(const nb::handle& loads) {
  if (loads.is_none()) return {};
  Py_buffer buffer;
  if (PyObject_CheckBuffer(loads.ptr()) &&
      PyObject_GetBuffer(loads.ptr(), &buffer, PyBUF_CONTIG_RO | PyBUF_FORMAT) == 0) {
    std::vector<double> out;
    const bool doubles = buffer.format && std::strcmp(buffer.format, "d") == 0;
    if (doubles) {
      out.resize(static_cast<std::size_t>(buffer.len) / sizeof(double));
      std::memcpy(out.data(), buffer.buf, out.size() * sizeof(double));
    }
    PyBuffer_Release(&buffer);
    if (doubles) return out;
  }
  PyErr_Clear();
  return nb::cast<std::vector<double>>(loads);
}

nb::list runs_list(const std::vector<Run>& runs) {
  nb::list out;
  for (const Run& run : runs)
    out.append(nb::make_tuple(run.first, run.n, run.instance, run.offset));
  return out;
}

nb::tuple locate(Directory& directory, const nb::bytes& keys, int asker, const nb::object& loads,
                 const std::vector<int>& avoid, bool sparse) {
  const Located found =
      directory.locate(view<Key>(keys, "keys"), asker, read_loads(loads), avoid, sparse);
  return nb::make_tuple(runs_list(found.runs), runs_list(found.alternates),
                        to_bytes(std::span<const Place>(found.places)),
                        to_bytes(std::span<const std::uint32_t>(found.counters)), found.found,
                        found.incompatible);
}

}  // namespace

void bind_directory(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<Directory>(m, "Directory")
      .def(nb::init<>())
      .def("add", &Directory::add, "group"_a, "host"_a)
      .def("drop", &Directory::drop, "instance"_a)
      .def("announce", &on_arrays<&Directory::announce>, "instance"_a, "keys"_a, "places"_a,
           "counters"_a)
      .def("retract", &on_arrays<&Directory::retract>, "instance"_a, "keys"_a, "places"_a,
           "counters"_a)
      .def("expect", &Directory::expect, "instance"_a, "keys"_a)
      .def("begin_sync", &Directory::begin_sync, "instance"_a)
      .def(
          "sync_slice",
          [](Directory& directory, int instance, std::uint32_t first, std::uint32_t last,
             const nb::bytes& keys, const nb::bytes& places, const nb::bytes& counters) {
            const Arrays arrays(keys, places, counters);
            const Differing found = directory.sync_slice(instance, first, last, arrays.keys,
                                                         arrays.places, arrays.counters);
            return nb::make_tuple(found.missing, found.moved,
                                  to_bytes(std::span<const Key>(found.missing_keys)),
                                  to_bytes(std::span<const Key>(found.moved_keys)));
          },
          "instance"_a, "first"_a, "last"_a, "keys"_a, "places"_a, "counters"_a)
      .def("end_sync", &Directory::end_sync, "instance"_a)
      .def("watch", &Directory::watch, "instance"_a, "on"_a)
      .def(
          "gone",
          [](const Directory& directory, int instance) {
            return to_bytes(directory.gone(instance));
          },
          "instance"_a)
      .def(
          "sums",
          [](const Directory& directory, int instance) {
            const Sums sums = directory.sums(instance);
            return nb::make_tuple(sums.count, sums.first, sums.second);
          },
          "instance"_a)
      .def("locate", &locate, "keys"_a, "asker"_a, "loads"_a = nb::none(), "avoid"_a = nb::tuple(),
           "sparse"_a = false)
      .def(
          "holders",
          [](Directory& directory, const nb::bytes& key) {
            const auto keys = view<Key>(key, "key");
            REQUIRE(keys.size() == 1, "key: ", key.size(), " bytes, a key has 16");
            return directory.holders(keys[0]);
          },
          "key"_a)
      .def("sweep", &Directory::sweep, "entries"_a)
      .def("__len__", &Directory::size)
      .def_prop_ro("lacking", &Directory::lacking)
      .def_prop_ro("bytes", &Directory::bytes)
      .def_prop_ro("moved", &Directory::moved);
}

}  // namespace lmkv
