#include "keys/keys.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>

#include "bindings.h"
#include "isa.h"
#include "token_list.h"

namespace lmkv {
namespace {

// A contiguous buffer, held while it is read.
class HeldBuffer {
 public:
  HeldBuffer(nb::handle object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw nb::python_error();
  }
  ~HeldBuffer() { PyBuffer_Release(&view_); }
  HeldBuffer(const HeldBuffer&) = delete;
  HeldBuffer& operator=(const HeldBuffer&) = delete;

  const uint8_t* data() const { return static_cast<const uint8_t*>(view_.buf); }
  size_t bytes() const { return static_cast<size_t>(view_.len); }
  const Py_buffer& view() const { return view_; }

 private:
  Py_buffer view_{};
};

std::span<const uint8_t> span_of(const nb::bytes& raw) {
  return {reinterpret_cast<const uint8_t*>(raw.c_str()), raw.size()};
}

bool is_u32(const Py_buffer& view) {
  if (view.itemsize != 4 || view.ndim != 1 || view.format == nullptr) return false;
  const char* format = view.format;
  if (*format == '<' || *format == '=' || *format == '@') ++format;
  return (*format == 'I' || *format == 'L') && format[1] == '\0';
}

// Any sequence of ints, also of types that only convert to one. Whatever Python code the items run
// cannot reach `list`: it is a tuple of ours.
std::vector<uint32_t> read_any(nb::handle sequence, size_t start) {
  const nb::tuple items = nb::steal<nb::tuple>(PySequence_Tuple(sequence.ptr()));
  if (!items.is_valid()) throw nb::python_error();
  std::vector<uint32_t> out(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    const nb::object number = nb::steal(PyNumber_Index(nb::handle(items[i]).ptr()));
    if (!number.is_valid()) throw nb::python_error();
    const int64_t value = small_int(number.ptr());
    REQUIRE(value >= 0, "tokens: number ", start + i, " is ", nb::repr(number).c_str(),
            ", outside 0..4294967295");
    out[i] = static_cast<uint32_t>(value);
  }
  return out;
}

// Skips what the chain has of tokens [start, start + count); -1 when nothing new is among them.
int64_t new_from(const KeyChain& chain, size_t start, size_t count) {
  REQUIRE(start <= chain.tokens(), "start ", start, " leaves a gap: the chain has ", chain.tokens(),
          " tokens");
  const size_t skip = chain.tokens() - start;
  return skip >= count ? -1 : static_cast<int64_t>(skip);
}

void extend_from_buffer(KeyChain& chain, const HeldBuffer& buffer, size_t start) {
  const int64_t skip = new_from(chain, start, buffer.bytes() / 4);
  if (skip < 0) return;
  chain.append(buffer.data() + skip * 4, buffer.bytes() / 4 - static_cast<size_t>(skip));
}

void extend_from_list(KeyChain& chain, nb::handle list, size_t start) {
  const auto count = static_cast<size_t>(PyList_GET_SIZE(list.ptr()));
  const int64_t skip = new_from(chain, start, count);
  if (skip < 0) return;
  // All are read before the chain takes any, so that a bad one leaves it as it was. The room is
  // kept: fresh pages for a long prompt cost as much as its hashes.
  static thread_local std::vector<uint32_t> room;
  const auto first = static_cast<size_t>(skip);
  if (room.size() < count - first) room.resize(count - first);
  if (read_tokens(list.ptr(), first, count, room.data()) == count - first) {
    chain.append(reinterpret_cast<const uint8_t*>(room.data()), count - first);
    return;
  }
  const std::vector<uint32_t> tokens = read_any(list, start);
  const int64_t from = new_from(chain, start, tokens.size());
  if (from < 0) return;
  chain.append(reinterpret_cast<const uint8_t*>(tokens.data() + from),
               tokens.size() - static_cast<size_t>(from));
}

void extend_from_any(KeyChain& chain, nb::handle tokens, size_t start) {
  if (PyObject_CheckBuffer(tokens.ptr())) {
    const HeldBuffer buffer(tokens, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS);
    if (is_u32(buffer.view())) return extend_from_buffer(chain, buffer, start);
    REQUIRE(buffer.view().itemsize != 1, "tokens: a buffer of '",
            buffer.view().format == nullptr ? "B" : buffer.view().format,
            "' is not one of u32 ('I')");
  }
  const std::vector<uint32_t> items = read_any(tokens, start);
  const int64_t skip = new_from(chain, start, items.size());
  if (skip < 0) return;
  chain.append(reinterpret_cast<const uint8_t*>(items.data() + skip),
               items.size() - static_cast<size_t>(skip));
}

size_t extend(KeyChain& chain, nb::handle tokens, size_t start, nb::handle extras) {
  if (!extras.is_none()) {
    const nb::object pairs = extras.attr("items")();
    for (const nb::handle pair : pairs) {
      const auto item = nb::cast<nb::tuple>(pair);
      chain.set_extra(nb::cast<size_t>(item[0]), span_of(nb::cast<nb::bytes>(item[1])));
    }
  }
  if (PyList_CheckExact(tokens.ptr())) {
    extend_from_list(chain, tokens, start);
  } else {
    extend_from_any(chain, tokens, start);
  }
  return chain.chunks();
}

nb::bytes keys(const KeyChain& chain, size_t group, size_t first, std::optional<size_t> last) {
  REQUIRE(group < chain.hasher().group_specs.size(), "group ", group, " of ",
          chain.hasher().group_specs.size());
  const size_t end = last.value_or(chain.chunks());
  REQUIRE(first <= end && end <= chain.chunks(), "keys [", first, ", ", end, ") of ",
          chain.chunks(), " whole chunks");
  return to_bytes(chain.keys(group).subspan(first, end - first));
}

nb::bytes hash_of(nb::handle data, std::optional<std::string_view> context) {
  const HeldBuffer buffer(data, PyBUF_C_CONTIGUOUS);
  blake3::Hash hash;
  {
    nb::gil_scoped_release release;
    const blake3::Mode mode = context ? blake3::Mode::derive_key(*context) : blake3::Mode::plain();
    hash = blake3::hash({buffer.data(), buffer.bytes()}, mode);
  }
  return nb::bytes(reinterpret_cast<const char*>(hash.data()), hash.size());
}

}  // namespace

void bind_keys(nb::module_& m) {
  active_isa();  // a wrong LMKV_ISA is told at import
  m.def("isa", [] { return std::string(name(active_isa())); });
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa isa : available_isas()) names.emplace_back(name(isa));
    return names;
  });
  m.def("set_isa", [](std::string_view wanted) { set_isa(wanted); }, nb::arg("name"));
  m.def("blake3", &hash_of, nb::arg("data"), nb::arg("context") = nb::none());

  nb::class_<KeyHasher>(m, "KeyHasher")
      .def(nb::init<std::string_view, std::vector<std::string>, size_t>(), nb::arg("namespace"),
           nb::arg("group_specs"), nb::arg("chunk_tokens"))
      .def(
          "chain",
          [](std::shared_ptr<KeyHasher> hasher, const nb::bytes& extra) {
            return std::make_unique<KeyChain>(std::move(hasher), span_of(extra));
          },
          nb::arg("extra") = nb::bytes("", 0))
      .def_prop_ro("chunk_tokens", [](const KeyHasher& hasher) { return hasher.chunk_tokens; })
      .def_prop_ro("groups", [](const KeyHasher& hasher) { return hasher.group_specs.size(); });

  // The chain keeps the interpreter lock: a long prompt takes a fraction of a millisecond, and
  // taking the lock back may cost the scheduler's thread five.
  nb::class_<KeyChain>(m, "KeyChain")
      .def("extend", &extend, nb::arg("tokens"), nb::arg("start") = 0,
           nb::arg("extras") = nb::none())
      .def("truncate", &KeyChain::truncate, nb::arg("tokens"))
      .def_prop_ro("tokens", &KeyChain::tokens)
      .def("__len__", &KeyChain::chunks)
      .def("keys", &keys, nb::arg("group") = 0, nb::arg("first") = 0, nb::arg("last") = nb::none());
}

}  // namespace lmkv
