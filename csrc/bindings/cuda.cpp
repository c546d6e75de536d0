#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bindings.h"
#include "buffer.h"
#include "cuda/gpu_copier.h"

namespace lmkv {

namespace {

using cuda::Channel;
using cuda::CopyPath;
using cuda::Event;
using cuda::Gpu;
using cuda::GpuChunk;
using cuda::GpuCopier;

// (slot address, key, generation, blocks), as C++ holds it while Python's lock is dropped.
class Chunks {
 public:
  Chunks(const GpuCopier& copier, const nb::sequence& chunks, bool may_skip) {
    blocks_.reserve(nb::len(chunks));
    for (const nb::handle each : chunks) {
      const auto chunk = nb::cast<nb::tuple>(each);
      REQUIRE(chunk.size() == 4, "chunk: ", chunk.size(), " fields, not 4");
      const auto address = nb::cast<std::uintptr_t>(chunk[0]);
      REQUIRE(address != 0 && address % LMKV_SLOT_ALIGN == 0, "slot_address: ", address,
              " is not a multiple of ", LMKV_SLOT_ALIGN);
      blocks_.push_back(nb::cast<std::vector<std::uint32_t>>(chunk[3]));
      copier.check_blocks(blocks_.back(), may_skip);
      chunks_.push_back({reinterpret_cast<std::byte*>(address),
                         one_key(nb::cast<nb::bytes>(chunk[1])), nb::cast<std::uint64_t>(chunk[2]),
                         blocks_.back()});
    }
  }
  std::span<const GpuChunk> all() const { return chunks_; }

 private:
  std::vector<std::vector<std::uint32_t>> blocks_;
  std::vector<GpuChunk> chunks_;
};

std::vector<int> numbers(const std::vector<SlotStatus>& statuses) {
  std::vector<int> found(statuses.size());
  std::ranges::transform(statuses, found.begin(), [](SlotStatus status) { return int(status); });
  return found;
}

CopyPath path(bool staged) { return staged ? CopyPath::staged : CopyPath::direct; }

std::unique_ptr<Event> mark(const Gpu& gpu, std::uintptr_t stream) {
  auto event = std::make_unique<Event>(gpu);
  event->record(reinterpret_cast<CUstream>(stream));
  return event;
}

void bind_gpu(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;

  nb::class_<Event>(m, "GpuMark").def("done", &Event::done);

  nb::class_<Gpu>(m, "Gpu")
      .def(
          "__init__",
          [](Gpu* self, int ordinal, const std::string& library) {
            new (self) Gpu(library, ordinal);
          },
          nb::arg("ordinal"), nb::arg("library") = "libcuda.so.1", Release())
      .def(
          "load",
          [](Gpu& gpu, const nb::bytes& image) {
            const Buffer held(image);
            nb::gil_scoped_release release;
            gpu.load(held.bytes());
          },
          nb::arg("image"))
      .def_prop_ro("ordinal", &Gpu::ordinal)
      .def_prop_ro("name", &Gpu::name)
      .def_prop_ro("bus_id", &Gpu::bus_id)
      .def_prop_ro("capability", &Gpu::capability)
      .def_prop_ro("multiprocessors", &Gpu::multiprocessors)
      .def_prop_ro("driver_version", [](const Gpu& gpu) { return gpu.driver().version; })
      .def("mark", &mark, nb::arg("stream"), nb::keep_alive<0, 1>())
      .def(
          "register_host",
          [](Gpu& gpu, std::uintptr_t address, std::size_t bytes, bool readonly) {
            const auto entered = gpu.enter();
            gpu.register_host(reinterpret_cast<void*>(address), bytes, readonly);
          },
          nb::arg("address"), nb::arg("bytes"), nb::arg("readonly") = false, Release())
      .def(
          "unregister_host",
          [](Gpu& gpu, std::uintptr_t address) {
            gpu.unregister_host(reinterpret_cast<void*>(address));
          },
          nb::arg("address"), Release());

  nb::class_<Channel>(m, "GpuChannel")
      .def(
          "__init__",
          [](Channel* self, Gpu& gpu, bool urgent, std::size_t staging_bytes) {
            new (self) Channel(gpu, urgent, staging_bytes);
          },
          nb::arg("gpu"), nb::arg("urgent"), nb::arg("staging_bytes"), nb::keep_alive<1, 2>());
}

}  // namespace

void bind_cuda(nb::module_& m) {
  bind_gpu(m);
  nb::class_<GpuCopier>(m, "GpuCopier")
      .def(nb::init<Gpu&, const SlotLayout&, Pages, std::uint64_t, std::uint64_t, std::uint32_t>(),
           nb::arg("gpu"), nb::arg("layout"), nb::arg("pages"), nb::arg("blocks_per_chunk"),
           nb::arg("kernel_blocks") = 1, nb::arg("multiprocessors") = 8, nb::keep_alive<1, 2>())
      .def_prop_ro("piece", &GpuCopier::piece)
      .def(
          "gather",
          [](const GpuCopier& copier, Channel& channel, const nb::sequence& chunks,
             const Event* after, bool staged) {
            const Chunks all(copier, chunks, false);
            nb::gil_scoped_release release;
            copier.gather(channel, all.all(), after, path(staged));
          },
          nb::arg("channel"), nb::arg("chunks"), nb::arg("after").none() = nb::none(),
          nb::arg("staged") = false)
      .def(
          "audit",
          [](const GpuCopier& copier, Channel& channel, const nb::sequence& chunks) {
            const Chunks all(copier, chunks, false);
            std::vector<SlotStatus> statuses;
            {
              nb::gil_scoped_release release;
              statuses = copier.audit(channel, all.all());
            }
            return numbers(statuses);
          },
          nb::arg("channel"), nb::arg("chunks"))
      .def(
          "scatter",
          [](const GpuCopier& copier, Channel& channel, const nb::sequence& chunks,
             const SlotPart* part, const Event* after, bool staged) {
            const Chunks all(copier, chunks, true);
            std::vector<SlotStatus> statuses;
            {
              nb::gil_scoped_release release;
              statuses = copier.scatter(channel, all.all(), part, after, path(staged));
            }
            return numbers(statuses);
          },
          nb::arg("channel"), nb::arg("chunks"), nb::arg("part").none() = nb::none(),
          nb::arg("after").none() = nb::none(), nb::arg("staged") = false);
}

}  // namespace lmkv
