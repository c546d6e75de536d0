// CUDA's driver library, found by dlopen: an extension built without CUDA runs with it, and one
// that knows CUDA runs without.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/api.h"

namespace lmkv::cuda {

inline constexpr int kOldestDriver = 12000;  // as cuDriverGetVersion counts: CUDA 12.0

// A call failed; the text has the driver's sentence, its name for it, and the call.
struct Error : std::runtime_error {
  Error(const std::string& text, CUresult result) : std::runtime_error(text), result(result) {}
  CUresult result;  // SUCCESS: it is no call's
};

class Driver;

// One of the driver's functions.
template <class Signature>
struct Call;
template <class... Arguments>
struct Call<CUresult(Arguments...)> {
  const Driver* driver = nullptr;
  const char* symbol = nullptr;
  CUresult (*raw)(Arguments...) = nullptr;

  explicit operator bool() const { return raw != nullptr; }
  // Error unless it succeeds.
  void operator()(Arguments... arguments) const;
};

class Driver {
 public:
  // Loaded once and kept until the process ends, by path; `libcuda.so.1` is the machine's driver.
  // It is not initialised yet. Error: there is none, or it is too old.
  static const Driver& load(const std::string& path);

  int version = 0;  // of CUDA, 12080 for 12.8
#define LMKV_CUDA_MEMBER(name, symbol, arguments) Call<CUresult arguments> name;
  LMKV_CUDA_FUNCTIONS(LMKV_CUDA_MEMBER)
  LMKV_CUDA_NEWER_FUNCTIONS(LMKV_CUDA_MEMBER)
#undef LMKV_CUDA_MEMBER

  [[noreturn]] void fail(const char* symbol, CUresult result) const;
  explicit Driver(const std::string& path);
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;
};

template <class... Arguments>
void Call<CUresult(Arguments...)>::operator()(Arguments... arguments) const {
  const CUresult result = raw(arguments...);
  if (result != SUCCESS) driver->fail(symbol, result);
}

}  // namespace lmkv::cuda
