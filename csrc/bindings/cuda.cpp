#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>

#include "bindings.h"
#include "buffer.h"
#include "cuda/gpu_copier.h"
#include "cuda/gpu_pool.h"
#include "pools.h"

namespace lmkv {

namespace {

using cuda::Channel;
using cuda::CopyPath;
using cuda::Event;
using cuda::Fence;
using cuda::Gpu;
using cuda::GpuChunk;
using cuda::GpuCopier;
using cuda::GpuPool;
using cuda::SharedMemory;

enum class Blocks { all, may_skip, none };

// (slot address, key, generation, blocks, whether the slot is in a GPU's memory: no by default), as
// C++ holds it while Python's lock is dropped.
class Chunks {
 public:
  Chunks(const GpuCopier& copier, const nb::sequence& chunks, Blocks needed) {
    blocks_.reserve(nb::len(chunks));
    for (const nb::handle each : chunks) {
      const auto chunk = nb::cast<nb::tuple>(each);
      REQUIRE(chunk.size() == 4 || chunk.size() == 5, "chunk: ", chunk.size(),
              " fields, not 4 or 5");
      const auto address = nb::cast<std::uintptr_t>(chunk[0]);
      REQUIRE(address != 0 && address % LMKV_SLOT_ALIGN == 0, "slot_address: ", address,
              " is not a multiple of ", LMKV_SLOT_ALIGN);
      blocks_.push_back(nb::cast<std::vector<std::uint32_t>>(chunk[3]));
      if (needed != Blocks::none) copier.check_blocks(blocks_.back(), needed == Blocks::may_skip);
      chunks_.push_back({reinterpret_cast<std::byte*>(address),
                         one_key(nb::cast<nb::bytes>(chunk[1])), nb::cast<std::uint64_t>(chunk[2]),
                         blocks_.back(), chunk.size() == 5 && nb::cast<bool>(chunk[4])});
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
      .def_prop_ro("image", [](const Gpu& gpu) { return to_bytes(gpu.image()); })
      .def_prop_ro("ordinal", &Gpu::ordinal)
      .def_prop_ro("name", &Gpu::name)
      .def_prop_ro("bus_id", &Gpu::bus_id)
      .def_prop_ro("capability", &Gpu::capability)
      .def_prop_ro("multiprocessors", &Gpu::multiprocessors)
      .def_prop_ro("driver_version", [](const Gpu& gpu) { return gpu.driver().version; })
      .def("memory", &Gpu::memory, Release())
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

  nb::class_<Fence>(m, "GpuFence")
      .def(nb::init<const Gpu&, std::size_t>(), nb::arg("gpu"), nb::arg("gathers"),
           nb::keep_alive<1, 2>())
      .def("end", &Fence::end)
      .def(
          "hold",
          [](Fence& fence, std::uintptr_t stream, double seconds) {
            return fence.hold(reinterpret_cast<CUstream>(stream), seconds);
          },
          nb::arg("stream"), nb::arg("seconds"), Release());

  nb::class_<Channel>(m, "GpuChannel")
      .def(
          "__init__",
          [](Channel* self, Gpu& gpu, bool urgent, std::size_t staging_bytes) {
            new (self) Channel(gpu, urgent, staging_bytes);
          },
          nb::arg("gpu"), nb::arg("urgent"), nb::arg("staging_bytes"), nb::keep_alive<1, 2>());
}

cuda::IpcHandle ipc_handle(const nb::bytes& raw) {
  cuda::IpcHandle handle;
  REQUIRE(raw.size() == handle.size(), "handle: ", raw.size(), " bytes, not ", handle.size());
  std::memcpy(handle.data(), raw.c_str(), handle.size());
  return handle;
}

nb::bytes read(const SharedMemory& memory, std::size_t offset, std::size_t bytes) {
  std::vector<std::byte> found(bytes);
  {
    nb::gil_scoped_release release;
    memory.read(offset, found);
  }
  return to_bytes(std::span<const std::byte>(found));
}

void bind_gpu_pool(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;

  nb::class_<SharedMemory>(m, "GpuMemory")
      .def(
          "__init__",
          [](SharedMemory* self, const Gpu& gpu, std::size_t bytes, const nb::object& handle) {
            if (handle.is_none()) {
              new (self) SharedMemory(gpu, bytes);
            } else {
              new (self) SharedMemory(gpu, ipc_handle(nb::cast<nb::bytes>(handle)), bytes);
            }
          },
          nb::arg("gpu"), nb::arg("size"), nb::arg("handle").none() = nb::none(),
          nb::keep_alive<1, 2>())
      .def_prop_ro("address",
                   [](const SharedMemory& memory) { return std::uintptr_t(memory.data()); })
      .def_prop_ro("size", &SharedMemory::bytes)
      .def("handle",
           [](const SharedMemory& memory) {
             const cuda::IpcHandle handle = memory.handle();
             return to_bytes(std::span<const std::byte>(handle));
           })
      .def(
          "write",
          [](SharedMemory& memory, std::size_t offset, const nb::bytes& data) {
            memory.write(offset, {reinterpret_cast<const std::byte*>(data.c_str()), data.size()});
          },
          nb::arg("offset"), nb::arg("data"))
      .def("read", &read, nb::arg("offset"), nb::arg("size"))
      .def("close", &SharedMemory::close, Release());

  auto pool = nb::class_<GpuPool>(m, "GpuPool");
  pool.def(nb::init<SharedMemory&, std::uint64_t, std::uint64_t>(), nb::arg("memory"),
           nb::arg("granule_bytes"), nb::arg("slots"), nb::keep_alive<1, 2>())
      .def("close", &GpuPool::close, Release());
  bind_range(pool);
}

}  // namespace

void bind_cuda(nb::module_& m) {
  bind_gpu(m);
  bind_gpu_pool(m);
  nb::class_<GpuCopier>(m, "GpuCopier")
      .def(nb::init<Gpu&, const SlotLayout&, Pages, std::uint64_t, std::uint64_t, std::uint32_t>(),
           nb::arg("gpu"), nb::arg("layout"), nb::arg("pages"), nb::arg("blocks_per_chunk"),
           nb::arg("kernel_blocks") = 1, nb::arg("multiprocessors") = 8, nb::keep_alive<1, 2>())
      .def_prop_ro("piece", &GpuCopier::piece)
      .def(
          "gather",
          [](const GpuCopier& copier, Channel& channel, const nb::sequence& chunks,
             const Event* after, bool staged, Fence* fence) {
            const Chunks all(copier, chunks, Blocks::all);
            nb::gil_scoped_release release;
            copier.gather(channel, all.all(), after, path(staged), fence);
          },
          nb::arg("channel"), nb::arg("chunks"), nb::arg("after").none() = nb::none(),
          nb::arg("staged") = false, nb::arg("fence").none() = nb::none())
      .def(
          "audit",
          [](const GpuCopier& copier, Channel& channel, const nb::sequence& chunks) {
            const Chunks all(copier, chunks, Blocks::all);
            std::vector<SlotStatus> statuses;
            {
              nb::gil_scoped_release release;
              statuses = copier.audit(channel, all.all());
            }
            return numbers(statuses);
          },
          nb::arg("channel"), nb::arg("chunks"))
      .def(
          "verify",
          [](const GpuCopier& copier, Channel& channel, const nb::sequence& chunks) {
            const Chunks all(copier, chunks, Blocks::none);
            std::vector<SlotStatus> statuses;
            {
              nb::gil_scoped_release release;
              statuses = copier.verify(channel, all.all());
            }
            return numbers(statuses);
          },
          nb::arg("channel"), nb::arg("chunks"))
      .def(
          "clear",
          [](const GpuCopier& copier, Channel& channel, const nb::sequence& chunks) {
            const Chunks all(copier, chunks, Blocks::none);
            nb::gil_scoped_release release;
            copier.clear(channel, all.all());
          },
          nb::arg("channel"), nb::arg("chunks"))
      .def(
          "scatter",
          [](const GpuCopier& copier, Channel& channel, const nb::sequence& chunks,
             const SlotPart* part, const Event* after, bool staged) {
            const Chunks all(copier, chunks, Blocks::may_skip);
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
