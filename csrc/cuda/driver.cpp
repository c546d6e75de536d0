#include "cuda/driver.h"

#include <dlfcn.h>

#include <memory>
#include <mutex>
#include <unordered_map>

#include "check.h"

namespace lmkv::cuda {
namespace {

std::string version_text(int version) { return sentence(version / 1000, ".", version % 1000 / 10); }

template <class... Arguments>
void find(void* library, const Driver& driver, const char* symbol,
          Call<CUresult(Arguments...)>& call) {
  call = {&driver, symbol, reinterpret_cast<CUresult (*)(Arguments...)>(dlsym(library, symbol))};
}

template <class Signature>
void need(const Call<Signature>& call) {
  if (!call) throw Error(sentence("the CUDA driver has no ", call.symbol), SUCCESS);
}

}  // namespace

Driver::Driver(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // kept until the process ends
  if (!library) {
    const char* error = dlerror();  // NOLINT(concurrency-mt-unsafe): the thread's own
    throw Error(sentence("there is no CUDA driver: ", error ? error : path), SUCCESS);
  }
#define FIND(name, symbol, arguments) find(library, *this, #symbol, (name));
  LMKV_CUDA_FUNCTIONS(FIND)
  LMKV_CUDA_NEWER_FUNCTIONS(FIND)
#undef FIND
  if (driver_version) driver_version(&version);
  if (version < kOldestDriver) {
    throw Error(sentence("the CUDA driver is for CUDA ", version_text(version), ", lmkv needs ",
                         version_text(kOldestDriver), " or newer"),
                SUCCESS);
  }
#define NEED(name, symbol, arguments) need(name);
  LMKV_CUDA_FUNCTIONS(NEED)
#undef NEED
}

const Driver& Driver::load(const std::string& path) {
  static std::mutex mutex;
  static std::unordered_map<std::string, std::unique_ptr<Driver>> loaded;
  std::lock_guard lock(mutex);
  auto& driver = loaded[path];
  if (!driver) driver = std::make_unique<Driver>(path);
  return *driver;
}

void Driver::fail(const char* symbol, CUresult result) const {
  const char *name = nullptr, *text = nullptr;
  error_name.raw(result, &name);
  error_string.raw(result, &text);
  throw Error(sentence(symbol, ": ", text ? text : "an error that the driver does not know", " (",
                       name ? name : std::to_string(result), ")"),
              result);
}

}  // namespace lmkv::cuda
