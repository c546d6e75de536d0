// SlotTable for Python: arrays come as bytes and go as bytes, and the interpreter lock is not held
// while the table's mutex is wanted.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "slots/slot_table.h"

namespace lmkv {

namespace {

template <class Work>
auto unlocked(const Work& work) {
  nb::gil_scoped_release release;
  return work();
}

template <class T>
nb::bytes bytes_of(const std::vector<T>& items) {
  return to_bytes(std::span<const T>(items));
}

std::span<const Key> view_keys(const nb::bytes& raw) { return view<Key>(raw, "keys"); }

struct Slots {
  std::span<const Place> places;
  std::span<const std::uint32_t> counters;

  Slots(const nb::bytes& raw_places, const nb::bytes& raw_counters)
      : places(view<Place>(raw_places, "places")),
        counters(view<std::uint32_t>(raw_counters, "counters")) {
    REQUIRE(places.size() == counters.size(), "counters: ", counters.size(), " for ", places.size(),
            " places");
  }
};

// A method that takes (places, counters) and returns nothing.
template <void (SlotTable::*Method)(SlotTable::Places, SlotTable::Counters)>
void on_slots(SlotTable& table, const nb::bytes& places, const nb::bytes& counters) {
  const Slots slots(places, counters);
  unlocked([&] { (table.*Method)(slots.places, slots.counters); });
}

// A method that takes keys and returns (places, counters, n).
template <SlotArrays (SlotTable::*Method)(SlotTable::Keys)>
nb::tuple on_keys(SlotTable& table, const nb::bytes& keys) {
  const auto raw = view_keys(keys);
  const auto found = unlocked([&] { return (table.*Method)(raw); });
  return nb::make_tuple(bytes_of(found.places), bytes_of(found.counters), found.places.size());
}

using Reserve = std::optional<SlotArrays> (SlotTable::*)(SlotTable::Keys, double, SlotTable::Sizes);

template <Reserve Method>
nb::object reserve(SlotTable& table, const nb::bytes& keys, double now, const nb::bytes& granules) {
  const auto raw = view_keys(keys);
  const auto sizes = view<std::uint8_t>(granules, "granules");
  const auto got = unlocked([&] { return (table.*Method)(raw, now, sizes); });
  if (!got) return nb::none();
  return nb::make_tuple(bytes_of(got->places), bytes_of(got->counters));
}

nb::bytes replace(SlotTable& table, const nb::bytes& places, const nb::bytes& counters,
                  const nb::bytes& old_places, const nb::bytes& old_counters) {
  const Slots slots(places, counters), old(old_places, old_counters);
  REQUIRE(slots.places.size() == old.places.size(), "old_places: ", old.places.size(), " for ",
          slots.places.size(), " places");
  return bytes_of(unlocked(
      [&] { return table.replace(slots.places, slots.counters, old.places, old.counters); }));
}

nb::list take_changes(SlotTable& table) {
  const auto changes = unlocked([&] { return table.take_changes(); });
  nb::list out;
  for (const SlotTable::Change& change : changes) {
    out.append(nb::make_tuple(change.announce, bytes_of(change.slots.keys),
                              bytes_of(change.slots.places), bytes_of(change.slots.counters)));
  }
  return out;
}

nb::dict granules(SlotTable& table) {
  const auto by_state = unlocked([&] { return table.granules(); });
  nb::dict out;
  out["free"] = by_state.free;
  out["reserved"] = by_state.reserved;
  out["readable"] = by_state.readable;
  out["pinned"] = by_state.pinned;
  out["retired"] = by_state.retired;
  out["limbo"] = by_state.limbo;
  return out;
}

}  // namespace

void bind_table(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<SlotTable>(m, "SlotTable")
      .def(
          "__init__",
          [](SlotTable* self, std::uint32_t capacity, std::uint32_t segment_slots,
             double retired_share, double reuse_age, std::uint8_t tier) {
            REQUIRE(tier <= std::uint8_t(Tier::device), "tier: ", int(tier),
                    " is not 0 (host) or 1 (device)");
            new (self) SlotTable(capacity, segment_slots, retired_share, reuse_age, Tier(tier));
          },
          "capacity"_a, "segment_slots"_a, "retired_share"_a = 0.03, "reuse_age"_a = 0.1,
          "tier"_a = 0)
      .def("grow", &SlotTable::grow, "slots"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("begin_epoch", &SlotTable::begin_epoch, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "lookup",
          [](SlotTable& table, const nb::bytes& keys, bool use) {
            const auto raw = view_keys(keys);
            return unlocked([&] { return table.lookup(raw, use); });
          },
          "keys"_a, "use"_a = true)
      .def(
          "contains",
          [](SlotTable& table, const nb::bytes& keys) {
            const auto raw = view_keys(keys);
            return bytes_of(unlocked([&] { return table.contains(raw); }));
          },
          "keys"_a)
      .def("places", &on_keys<&SlotTable::places>, "keys"_a)
      .def("reserve", &reserve<&SlotTable::reserve>, "keys"_a, "now"_a,
           "granules"_a = nb::bytes(""))
      .def("reserve_again", &reserve<&SlotTable::reserve_again>, "keys"_a, "now"_a, "granules"_a)
      .def("replace", &replace, "places"_a, "counters"_a, "old_places"_a, "old_counters"_a)
      .def(
          "admit",
          [](SlotTable& table, const nb::bytes& places, const nb::bytes& counters, bool front) {
            const Slots slots(places, counters);
            return unlocked([&] { return table.admit(slots.places, slots.counters, front); });
          },
          "places"_a, "counters"_a, "front"_a = true)
      .def(
          "abort",
          [](SlotTable& table, const nb::bytes& places, const nb::bytes& counters, bool limbo) {
            const Slots slots(places, counters);
            unlocked([&] { table.abort(slots.places, slots.counters, limbo); });
          },
          "places"_a, "counters"_a, "limbo"_a = false)
      .def("end_limbo", &on_slots<&SlotTable::end_limbo>, "places"_a, "counters"_a)
      .def("pin", &on_keys<&SlotTable::pin>, "keys"_a)
      .def("unpin", &on_slots<&SlotTable::unpin>, "places"_a, "counters"_a)
      .def("touch", &on_slots<&SlotTable::touch>, "places"_a, "counters"_a)
      .def(
          "retire",
          [](SlotTable& table, const nb::bytes& keys, bool revivable) {
            const auto raw = view_keys(keys);
            return unlocked([&] { return table.retire(raw, revivable); });
          },
          "keys"_a, "revivable"_a = true)
      .def("take_changes", &take_changes)
      .def("take_ages", &SlotTable::take_ages, nb::call_guard<nb::gil_scoped_release>())
      .def("sums",
           [](SlotTable& table) {
             const Sums sums = unlocked([&] { return table.sums(); });
             return nb::make_tuple(sums.count, sums.first, sums.second);
           })
      .def(
          "slice",
          [](SlotTable& table, std::uint32_t first, std::uint32_t last) {
            const auto slots = unlocked([&] { return table.slice(first, last); });
            return nb::make_tuple(bytes_of(slots.keys), bytes_of(slots.places),
                                  bytes_of(slots.counters));
          },
          "first"_a, "last"_a)
      .def("slice_end", &SlotTable::slice_end, "first"_a, "last"_a, "most"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("granules", &granules)
      .def_prop_ro("capacity", &SlotTable::capacity)
      .def_prop_ro("usable", &SlotTable::usable, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("pins", &SlotTable::pins, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace lmkv
