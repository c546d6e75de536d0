#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "buffer.h"
#include "codec/zstd.h"
#include "copy/runs.h"
#include "slots/compressed_slot.h"
#include "slots/slot_format.h"
#include "slots/slot_part.h"

namespace lmkv {

namespace {

std::byte* at(std::uintptr_t address) {
  REQUIRE(address != 0 && address % 64 == 0, "address: ", address, " is not a multiple of 64");
  return reinterpret_cast<std::byte*>(address);
}

std::uint64_t digest(const nb::handle& data, std::uint64_t segment) {
  const Buffer buffer(data);
  const std::size_t bytes = buffer.bytes().size();
  REQUIRE(bytes > 0 && bytes % 16 == 0 && bytes < (1ull << 36), "data: ", bytes,
          " bytes are not a multiple of 16 in 16 .. 2^36 - 16");
  REQUIRE(segment < (1u << 24), "segment: ", segment, " is not below 2^24");
  nb::gil_scoped_release release;
  return lmx64(buffer.bytes().data(), bytes, std::uint32_t(segment));
}

}  // namespace

void bind_slots(nb::module_& m) {
  m.def("lmx64", digest, nb::arg("data"), nb::arg("segment"));

  nb::class_<SlotLayout>(m, "SlotLayout")
      .def(nb::init<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>(),
           nb::arg("segments"), nb::arg("segment_bytes"), nb::arg("page_format"),
           nb::arg("fingerprint"))
      .def_ro("segments", &SlotLayout::segments)
      .def_ro("segment_bytes", &SlotLayout::segment_bytes)
      .def_ro("page_format", &SlotLayout::page_format)
      .def_ro("fingerprint", &SlotLayout::fingerprint)
      .def_prop_ro("payload_offset", &SlotLayout::payload_offset)
      .def_prop_ro("payload_bytes", &SlotLayout::payload_bytes)
      .def_prop_ro("used_bytes", &SlotLayout::used_bytes)
      .def_prop_ro("granule_bytes", &SlotLayout::granule_bytes)
      .def_prop_ro("slot_bytes", &SlotLayout::slot_bytes);

  nb::class_<SlotPart>(m, "SlotPart")
      .def(nb::init<const SlotLayout&, const SlotLayout&, std::uint64_t, std::uint64_t,
                    std::uint64_t, std::uint64_t>(),
           nb::arg("ours"), nb::arg("theirs"), nb::arg("layers"), nb::arg("their_first"),
           nb::arg("our_first"), nb::arg("heads"))
      .def_prop_ro("theirs", &SlotPart::theirs);

  struct Status {};
  nb::class_<Status> status(m, "SlotStatus");
  status.attr("GOOD") = int(SlotStatus::good);
  status.attr("GONE") = int(SlotStatus::gone);
  status.attr("DIGEST") = int(SlotStatus::digest);
  status.attr("INCOMPATIBLE") = int(SlotStatus::incompatible);

  m.def(
      "write_slot",
      [](std::uintptr_t address, const SlotLayout& layout, const nb::bytes& key,
         std::uint64_t generation, const nb::handle& payload) {
        const Buffer buffer(payload);
        const Key name = one_key(key);
        nb::gil_scoped_release release;
        write_slot(at(address), layout, name, generation, buffer.bytes());
      },
      nb::arg("address"), nb::arg("layout"), nb::arg("key"), nb::arg("generation"),
      nb::arg("payload"));
  m.def(
      "check_slot",
      [](std::uintptr_t address, const SlotLayout& layout, const nb::bytes& key,
         std::uint64_t generation, std::uint64_t room) {
        const Key name = one_key(key);
        nb::gil_scoped_release release;
        return int(check_slot(at(address), layout, name, generation, room));
      },
      nb::arg("address"), nb::arg("layout"), nb::arg("key"), nb::arg("generation"),
      nb::arg("room") = kFullSlot);
  m.def(
      "adopt_slot",
      [](std::uintptr_t address, const SlotLayout& layout, const nb::bytes& key,
         std::uint64_t theirs, std::uint64_t ours, std::uint64_t room) {
        const Key name = one_key(key);
        nb::gil_scoped_release release;
        return int(adopt_slot(at(address), layout, name, theirs, ours, room));
      },
      nb::arg("address"), nb::arg("layout"), nb::arg("key"), nb::arg("theirs"), nb::arg("ours"),
      nb::arg("room") = kFullSlot);
  m.def("load_zstd", &load_zstd, nb::arg("path"));
  m.def("zstd_version", &zstd_version);
  m.def(
      "compress_slot",
      [](std::uintptr_t address, const SlotLayout& layout, const nb::bytes& key,
         std::uint64_t generation, std::uint32_t codec) {
        const Key name = one_key(key);
        CompressedSlot made;
        {
          nb::gil_scoped_release release;
          made = compress_slot(at(address), layout, name, generation, codec);
        }
        return nb::make_tuple(int(made.status), nb::bytes(made.image.data(), made.image.size()));
      },
      nb::arg("address"), nb::arg("layout"), nb::arg("key"), nb::arg("generation"),
      nb::arg("codec"));
  m.def(
      "place_compressed",
      [](std::uintptr_t address, std::uint64_t room, const SlotLayout& layout, const nb::bytes& key,
         std::uint64_t generation, std::uint32_t codec, const nb::bytes& image) {
        const Key name = one_key(key);
        const auto bytes = view<std::byte>(image, "image");
        nb::gil_scoped_release release;
        place_compressed(at(address), room, layout, name, generation, codec, bytes);
      },
      nb::arg("address"), nb::arg("room"), nb::arg("layout"), nb::arg("key"), nb::arg("generation"),
      nb::arg("codec"), nb::arg("image"));
  m.def(
      "expand_slot",
      [](std::uintptr_t address, std::uint64_t room, const SlotLayout& layout, const nb::bytes& key,
         std::uint64_t theirs, std::uintptr_t to, std::uint64_t ours) {
        const Key name = one_key(key);
        nb::gil_scoped_release release;
        return int(expand_slot(at(address), room, layout, name, theirs, at(to), ours));
      },
      nb::arg("address"), nb::arg("room"), nb::arg("layout"), nb::arg("key"), nb::arg("theirs"),
      nb::arg("to"), nb::arg("ours"));
  m.def("clear_slot", [](std::uintptr_t address) { clear_slot(at(address)); }, nb::arg("address"));
}

}  // namespace lmkv
