// Python's buffers and single keys as C++ sees them.
#pragma once

#include <cstring>

#include "bindings.h"
#include "slots/place.h"

namespace lmkv {

// A contiguous buffer, held for as long as this lives; create and destroy it with the lock held.
class Buffer {
 public:
  explicit Buffer(const nb::handle& object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { PyBuffer_Release(&view_); }
  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(view_.buf), std::size_t(view_.len)};
  }

 private:
  Py_buffer view_;
};

inline Key one_key(const nb::bytes& raw) {
  REQUIRE(raw.size() == sizeof(Key), "key: ", raw.size(), " bytes, not ", sizeof(Key));
  Key key;
  std::memcpy(&key, raw.c_str(), sizeof key);
  return key;
}

inline Place one_place(const nb::bytes& raw) {
  REQUIRE(raw.size() == sizeof(Place), "place: ", raw.size(), " bytes, not ", sizeof(Place));
  Place place;
  std::memcpy(&place, raw.c_str(), sizeof place);
  return place;
}

}  // namespace lmkv
