// A Python list of token ids to u32, at memory speed. Bindings only: it needs Python.h.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>

namespace lmkv {

// The value of an exact int within u32, else -1. No reference is taken, no Python code runs.
inline int64_t small_int(PyObject* item) {
  if (!PyLong_CheckExact(item)) return -1;
#if PY_VERSION_HEX >= 0x030C0000
  if (PyUnstable_Long_IsCompact(reinterpret_cast<PyLongObject*>(item))) {
    return PyUnstable_Long_CompactValue(reinterpret_cast<PyLongObject*>(item));
  }
#else
  const auto* number = reinterpret_cast<PyLongObject*>(item);
  if (Py_SIZE(number) == 1) return number->ob_digit[0];
  if (Py_SIZE(number) == 0) return 0;
#endif
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
  return overflow != 0 || value < 0 || value > 0xFFFFFFFFLL ? -1 : value;
}

// items[first, last) of a list into out. Returns how many were exact ints within u32: where it
// stops short, the item there needs the caller's slow way, or is wrong.
inline size_t read_tokens(PyObject* list, size_t first, size_t last, uint32_t* out) {
  constexpr size_t kAhead = 24;  // ints are scattered objects: fetch them before they are needed
  PyObject** items = PySequence_Fast_ITEMS(list);
  for (size_t i = first; i < last; ++i) {
    if (i + kAhead < last) __builtin_prefetch(items[i + kAhead]);
    const int64_t value = small_int(items[i]);
    if (value < 0) return i - first;
    out[i - first] = static_cast<uint32_t>(value);
  }
  return last - first;
}

}  // namespace lmkv
