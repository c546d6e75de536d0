#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>
#include <sys/prctl.h>

#include <csignal>

#include "bindings.h"
#include "cuda/gpu_pool.h"
#include "cuda/gpu_slots.h"
#include "nixl/pull_engine.h"
#include "nixl/transport.h"

namespace lmkv {
namespace {

using Words = std::vector<std::uint64_t>;
using Released = nb::call_guard<nb::gil_scoped_release>;

std::unique_ptr<Transport> make_transport(const std::string& kind, const std::string& name,
                                          const std::string& library, bool progress) {
  if (kind == "loopback") return make_loopback_transport(name);
  REQUIRE(kind == "nixl", "kind \"", kind, "\": nixl and loopback are allowed");
  if (library.empty()) throw std::runtime_error("NIXL is not installed: pip install 'lmkv[nixl]'");
  return make_nixl_transport(name, library, progress);
}

Tier tier_of(int number) {
  REQUIRE(number == int(Tier::host) || number == int(Tier::device), "tier ", number,
          ": 0 (host) and 1 (a GPU's) are memory");
  return Tier(number);
}

std::uint64_t read(Transport& transport, const std::string& peer, const Words& local,
                   const Words& remote, const Words& lengths, int remote_tier) {
  REQUIRE(local.size() == remote.size() && local.size() == lengths.size(), "READ: ", local.size(),
          " local, ", remote.size(), " remote addresses, ", lengths.size(), " lengths");
  std::vector<Range> ranges(local.size());
  for (std::size_t i = 0; i < ranges.size(); ++i) ranges[i] = {local[i], remote[i], lengths[i]};
  return transport.read(peer, ranges, tier_of(remote_tier));
}

struct TransferStates {};

PullPeer pull_peer(const std::string& id, const nb::bytes& metadata, std::uint64_t address,
                   std::uint64_t granule_bytes, std::uint64_t segment_granules,
                   std::uint64_t usable_granules, int tier) {
  return {id,
          std::string(metadata.c_str(), metadata.size()),
          address,
          granule_bytes,
          segment_granules,
          usable_granules,
          tier_of(tier)};
}

// The wire has only the counter of a generation (docs/slots.md).
std::uint64_t generation(std::uint64_t epoch, std::uint32_t counter) {
  return epoch << 32 | counter;
}

std::vector<PullChunk> pull_chunks(std::uint64_t job, std::uint64_t peer_epoch,
                                   std::uint64_t own_epoch, const nb::bytes& keys,
                                   const nb::bytes& remote_places, const nb::bytes& remote_counters,
                                   const nb::bytes& own_places, const nb::bytes& own_counters) {
  const auto key = view<Key>(keys, "keys");
  const auto remote = view<Place>(remote_places, "remote_places");
  const auto theirs = view<std::uint32_t>(remote_counters, "remote_counters");
  const auto own = view<Place>(own_places, "own_places");
  const auto ours = view<std::uint32_t>(own_counters, "own_counters");
  REQUIRE(remote.size() == key.size() && theirs.size() == key.size() && own.size() == key.size() &&
              ours.size() == key.size(),
          "pull ", job, ": unequal counts ", key.size(), ", ", remote.size(), ", ", theirs.size(),
          ", ", own.size(), ", ", ours.size());
  std::vector<PullChunk> chunks(key.size());
  for (std::size_t i = 0; i < chunks.size(); ++i)
    chunks[i] = {key[i], remote[i], own[i], generation(peer_epoch, theirs[i]),
                 generation(own_epoch, ours[i])};
  return chunks;
}

void pull(PullEngine& engine, std::uint64_t job, const PullPeer& peer, const SlotLayout& layout,
          std::uint64_t peer_epoch, std::uint64_t own_epoch, const nb::bytes& keys,
          const nb::bytes& remote_places, const nb::bytes& remote_counters,
          const nb::bytes& own_places, const nb::bytes& own_counters, double deadline) {
  engine.pull(job, peer, layout,
              pull_chunks(job, peer_epoch, own_epoch, keys, remote_places, remote_counters,
                          own_places, own_counters),
              deadline);
}

void pull_parts(PullEngine& engine, std::uint64_t job, const std::vector<PullPeer>& peers,
                const std::vector<SlotPart>& parts, const SlotLayout& layout,
                std::uint64_t peer_epoch, std::uint64_t own_epoch, const nb::bytes& keys,
                const nb::bytes& remote_places, const nb::bytes& remote_counters,
                const nb::bytes& own_places, const nb::bytes& own_counters, double deadline) {
  REQUIRE(peers.size() == parts.size(), "pull ", job, ": ", peers.size(), " peers, ", parts.size(),
          " parts");
  std::vector<PullSource> sources;
  for (std::size_t n = 0; n < peers.size(); ++n) sources.push_back({peers[n], parts[n]});
  engine.pull(job, std::move(sources), layout,
              pull_chunks(job, peer_epoch, own_epoch, keys, remote_places, remote_counters,
                          own_places, own_counters),
              deadline);
}

nb::bytes results(const PullEvent& event) {
  return nb::bytes(reinterpret_cast<const char*>(event.results.data()), event.results.size());
}

}  // namespace

void bind_nixl(nb::module_& m) {
  m.def("die_with_parent", [] {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) throw SystemError("prctl(PR_SET_PDEATHSIG)");
  });

  nb::class_<TransferStates> states(m, "TransferState");
  states.attr("PENDING") = int(TransferState::pending);
  states.attr("DONE") = int(TransferState::done);
  states.attr("FAILED") = int(TransferState::failed);

  nb::class_<Transport>(m, "Transport")
      .def(nb::new_(&make_transport), nb::arg("kind"), nb::arg("name"), nb::arg("library") = "",
           nb::arg("progress") = false)
      .def(
          "register",
          [](Transport& transport, std::uint64_t address, std::uint64_t length, int tier) {
            transport.register_memory(address, length, tier_of(tier));
          },
          nb::arg("address"), nb::arg("length"), nb::arg("tier") = 0, Released())
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
           nb::arg("remote_tier") = 0, Released())
      .def(
          "poll", [](Transport& transport, std::uint64_t n) { return int(transport.poll(n)); },
          nb::arg("transfer"), Released())
      .def_prop_ro("pending", &Transport::pending)
      .def("self_test", &Transport::self_test, nb::arg("serve"), nb::arg("deadline"), Released())
      .def("close", &Transport::close, Released());

  nb::class_<PullPeer>(m, "PullPeer")
      .def(nb::new_(&pull_peer), nb::arg("id"), nb::arg("metadata"), nb::arg("address"),
           nb::arg("granule_bytes"), nb::arg("segment_granules"), nb::arg("usable_granules"),
           nb::arg("tier") = 0)
      .def_ro("id", &PullPeer::id);

  nb::class_<PullEvent>(m, "PullEvent")
      .def_prop_ro("limbo_ended",
                   [](const PullEvent& e) { return e.kind == PullEvent::Kind::limbo_ended; })
      .def_ro("job", &PullEvent::job)
      .def_prop_ro("results", &results)
      .def_ro("seconds", &PullEvent::seconds)
      .def_ro("bytes", &PullEvent::bytes)
      .def_ro("stale", &PullEvent::stale)
      .def_ro("error", &PullEvent::error);

  nb::class_<PullEngine>(m, "PullEngine")
      .def(
          "__init__",
          [](PullEngine* self, Transport& transport, const nb::object& pool, cuda::Gpu* gpu,
             std::uint32_t multiprocessors) {
            if (gpu == nullptr) {
              new (self) PullEngine(transport, nb::cast<const PoolMap&>(pool));
            } else {
              new (self) PullEngine(transport, nb::cast<const cuda::GpuPool&>(pool),
                                    std::make_unique<cuda::GpuSlots>(*gpu, multiprocessors));
            }
          },
          nb::arg("transport"), nb::arg("pool"), nb::arg("gpu").none() = nb::none(),
          nb::arg("multiprocessors") = 1, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
          nb::keep_alive<1, 4>())
      .def("pull", &pull, nb::arg("job"), nb::arg("peer"), nb::arg("layout"), nb::arg("peer_epoch"),
           nb::arg("own_epoch"), nb::arg("keys"), nb::arg("remote_places"),
           nb::arg("remote_counters"), nb::arg("own_places"), nb::arg("own_counters"),
           nb::arg("deadline"))
      .def("pull_parts", &pull_parts, nb::arg("job"), nb::arg("peers"), nb::arg("parts"),
           nb::arg("layout"), nb::arg("peer_epoch"), nb::arg("own_epoch"), nb::arg("keys"),
           nb::arg("remote_places"), nb::arg("remote_counters"), nb::arg("own_places"),
           nb::arg("own_counters"), nb::arg("deadline"))
      .def("connect", &PullEngine::connect, nb::arg("peer"))
      .def("forget", &PullEngine::forget, nb::arg("id"))
      .def("take", &PullEngine::take)
      .def_prop_ro("fd", &PullEngine::fd)
      .def_prop_ro("lost", &PullEngine::lost)
      .def_prop_ro("limbo_slots", &PullEngine::limbo_slots)
      .def_prop_ro("limbo_seconds", &PullEngine::limbo_seconds);
}

}  // namespace lmkv
