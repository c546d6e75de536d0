#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "buffer.h"
#include "copy/copier.h"

namespace lmkv {

namespace {

Pages make_pages(const std::vector<std::uintptr_t>& layers, std::uint64_t blocks,
                 std::uint64_t heads, std::uint64_t tokens, std::uint64_t run_bytes,
                 std::int64_t block_stride, std::int64_t head_stride, std::int64_t token_stride,
                 std::uint64_t planes, std::int64_t plane_stride) {
  Pages pages{.layers = {},
              .blocks = blocks,
              .heads = heads,
              .tokens = tokens,
              .run_bytes = run_bytes,
              .block_stride = block_stride,
              .head_stride = head_stride,
              .token_stride = token_stride,
              .planes = planes,
              .plane_stride = plane_stride};
  for (const std::uintptr_t layer : layers) {
    pages.layers.push_back(reinterpret_cast<std::byte*>(layer));
  }
  pages.check(kLeastPiece);
  return pages;
}

// A slot's bytes may be used by the engine's thread while these run: the lock is dropped.
std::byte* slot_at(std::uintptr_t address) {
  REQUIRE(address != 0 && address % LMKV_SLOT_ALIGN == 0, "slot_address: ", address,
          " is not a multiple of ", LMKV_SLOT_ALIGN);
  return reinterpret_cast<std::byte*>(address);
}

// The limit that a bench holds gather and scatter against.
void copy_runs(const nb::handle& to, const nb::handle& from, std::size_t bytes) {
  const Buffer targets(to), sources(from);
  const std::size_t n = targets.bytes().size() / sizeof(void*);
  REQUIRE(targets.bytes().size() == sources.bytes().size(), "copy_runs: ", n, " targets, ",
          sources.bytes().size() / sizeof(void*), " sources");
  const auto* target = reinterpret_cast<void* const*>(targets.bytes().data());
  const auto* source = reinterpret_cast<const void* const*>(sources.bytes().data());
  nb::gil_scoped_release release;
  for (std::size_t i = 0; i < n; ++i) std::memcpy(target[i], source[i], bytes);
}

}  // namespace

void bind_copy(nb::module_& m) {
  using Blocks = std::vector<std::uint32_t>;

  nb::class_<Pages>(m, "Pages")
      .def(
          "__init__",
          [](Pages* self, const std::vector<std::uintptr_t>& layers, std::uint64_t blocks,
             std::uint64_t heads, std::uint64_t tokens, std::uint64_t run_bytes,
             std::int64_t block_stride, std::int64_t head_stride, std::int64_t token_stride,
             std::uint64_t planes, std::int64_t plane_stride) {
            new (self) Pages(make_pages(layers, blocks, heads, tokens, run_bytes, block_stride,
                                        head_stride, token_stride, planes, plane_stride));
          },
          nb::arg("layers"), nb::arg("blocks"), nb::arg("heads"), nb::arg("tokens"),
          nb::arg("run_bytes"), nb::arg("block_stride"), nb::arg("head_stride"),
          nb::arg("token_stride") = 0, nb::arg("planes") = 1, nb::arg("plane_stride") = 0)
      .def_ro("blocks", &Pages::blocks)
      .def("segment_bytes", &Pages::segment_bytes, nb::arg("blocks_per_chunk"));

  m.def("copy_runs", copy_runs, nb::arg("to"), nb::arg("from_"), nb::arg("bytes"));

  m.attr("SKIPPED_BLOCK") = kSkippedBlock;
  nb::class_<Copier>(m, "Copier")
      .def(nb::init<const SlotLayout&, Pages, std::uint64_t>(), nb::arg("layout"), nb::arg("pages"),
           nb::arg("blocks_per_chunk"))
      .def(
          "gather",
          [](const Copier& copier, std::uintptr_t slot_address, const nb::bytes& key,
             std::uint64_t generation, const Blocks& blocks) {
            const Key name = one_key(key);
            copier.check_blocks(blocks);
            nb::gil_scoped_release release;
            copier.gather(slot_at(slot_address), name, generation, blocks);
          },
          nb::arg("slot_address"), nb::arg("key"), nb::arg("generation"), nb::arg("blocks"))
      .def(
          "audit",
          [](const Copier& copier, std::uintptr_t slot_address, const Blocks& blocks) {
            copier.check_blocks(blocks);
            nb::gil_scoped_release release;
            return copier.audit(slot_at(slot_address), blocks);
          },
          nb::arg("slot_address"), nb::arg("blocks"))
      .def(
          "scatter",
          [](const Copier& copier, std::uintptr_t slot_address, const nb::bytes& key,
             std::uint64_t generation, const Blocks& blocks, std::uint64_t room) {
            const Key name = one_key(key);
            copier.check_blocks(blocks, true);
            nb::gil_scoped_release release;
            return int(copier.scatter(slot_at(slot_address), name, generation, blocks, room));
          },
          nb::arg("slot_address"), nb::arg("key"), nb::arg("generation"), nb::arg("blocks"),
          nb::arg("room") = kFullSlot)
      .def(
          "scatter_part",
          [](const Copier& copier, std::uintptr_t slot_address, const SlotPart& part,
             const nb::bytes& key, std::uint64_t generation, const Blocks& blocks,
             std::uint64_t room) {
            const Key name = one_key(key);
            copier.check_blocks(blocks, true);
            nb::gil_scoped_release release;
            return int(
                copier.scatter_part(slot_at(slot_address), part, name, generation, blocks, room));
          },
          nb::arg("slot_address"), nb::arg("part"), nb::arg("key"), nb::arg("generation"),
          nb::arg("blocks"), nb::arg("room") = kFullSlot);
}

}  // namespace lmkv
