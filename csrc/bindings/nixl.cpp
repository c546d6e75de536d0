#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "nixl/transport.h"

namespace lmkv {
namespace {

using Words = std::vector<std::uint64_t>;
using Released = nb::call_guard<nb::gil_scoped_release>;

std::unique_ptr<Transport> make_transport(const std::string& kind, const std::string& name,
                                          const std::string& library, bool progress) {
  if (kind == "loopback") return make_loopback_transport(name);
  REQUIRE(kind == "nixl", "kind \"", kind, "\": nixl and loopback are allowed");
  if (library.empty())
    throw std::runtime_error("NIXL is not installed: pip install 'lmkv[nixl]'");
  return make_nixl_transport(name, library, progress);
}

std::uint64_t read(Transport& transport, const std::string& peer, const Words& local,
                   const Words& remote, const Words& lengths) {
  REQUIRE(local.size() == remote.size() && local.size() == lengths.size(), "READ: ", local.size(),
          " local, ", remote.size(), " remote addresses, ", lengths.size(), " lengths");
  std::vector<Range> ranges(local.size());
  for (std::size_t i = 0; i < ranges.size(); ++i) ranges[i] = {local[i], remote[i], lengths[i]};
  return transport.read(peer, ranges);
}

struct TransferStates {};

}  // namespace

void bind_nixl(nb::module_& m) {
  nb::class_<TransferStates> states(m, "TransferState");
  states.attr("PENDING") = int(TransferState::pending);
  states.attr("DONE") = int(TransferState::done);
  states.attr("FAILED") = int(TransferState::failed);

  nb::class_<Transport>(m, "Transport")
      .def(nb::new_(&make_transport), nb::arg("kind"), nb::arg("name"), nb::arg("library") = "",
           nb::arg("progress") = false)
      .def("register", &Transport::register_memory, nb::arg("address"), nb::arg("length"),
           Released())
      .def("metadata",
           [](Transport& transport) {
             std::string blob;
             {
               nb::gil_scoped_release released;
               blob = transport.metadata();
             }
             return nb::bytes(blob.data(), blob.size());
           })
      .def(
          "connect",
          [](Transport& transport, const nb::bytes& metadata) {
            const std::string blob(metadata.c_str(), metadata.size());
            nb::gil_scoped_release released;
            return transport.connect(blob);
          },
          nb::arg("metadata"))
      .def("forget", &Transport::forget, nb::arg("peer"), Released())
      .def("read", &read, nb::arg("peer"), nb::arg("local"), nb::arg("remote"), nb::arg("lengths"),
           Released())
      .def(
          "poll", [](Transport& transport, std::uint64_t n) { return int(transport.poll(n)); },
          nb::arg("transfer"), Released())
      .def_prop_ro("pending", &Transport::pending)
      .def("self_test", &Transport::self_test, nb::arg("serve"), nb::arg("deadline"), Released())
      .def("close", &Transport::close, Released());
}

}  // namespace lmkv
