#include "codec/zstd.h"

#include <dlfcn.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>

namespace lmkv {
namespace {

constexpr int kLevel = 1;  // more gains nothing on exponents (tried: bench/bench_compress.py)

struct Library {
  unsigned (*version)();
  unsigned (*is_error)(std::size_t);
  void* (*create_compressor)();
  std::size_t (*free_compressor)(void*);
  std::size_t (*compress)(void*, void*, std::size_t, const void*, std::size_t, int);
  void* (*create_decompressor)();
  std::size_t (*free_decompressor)(void*);
  std::size_t (*decompress)(void*, void*, std::size_t, const void*, std::size_t);
};

std::atomic<const Library*> loaded = nullptr;

template <class Function>
void find(void* library, const std::string& path, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) throw std::runtime_error(path + " has no function " + name);
}

std::unique_ptr<const Library> open_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);  // kept until the process ends
  if (!library) {
    const char* error = dlerror();  // NOLINT(concurrency-mt-unsafe): the thread's own
    throw std::runtime_error(error ? error : path + " does not load");
  }
  auto found = std::make_unique<Library>();
  find(library, path, "ZSTD_versionNumber", found->version);
  find(library, path, "ZSTD_isError", found->is_error);
  find(library, path, "ZSTD_createCCtx", found->create_compressor);
  find(library, path, "ZSTD_freeCCtx", found->free_compressor);
  find(library, path, "ZSTD_compressCCtx", found->compress);
  find(library, path, "ZSTD_createDCtx", found->create_decompressor);
  find(library, path, "ZSTD_freeDCtx", found->free_decompressor);
  find(library, path, "ZSTD_decompressDCtx", found->decompress);
  return found;
}

// One thread's: tables of zstd that are worth keeping from call to call.
struct Contexts {
  const Library& zstd = *loaded.load();
  void* compressor = nullptr;
  void* decompressor = nullptr;

  ~Contexts() {
    if (compressor) zstd.free_compressor(compressor);
    if (decompressor) zstd.free_decompressor(decompressor);
  }
};

Contexts& contexts() {
  thread_local Contexts mine;
  return mine;
}

void* made(void* context) {
  if (!context) throw std::bad_alloc();
  return context;
}

}  // namespace

void load_zstd(const std::string& path) {
  static std::mutex mutex;
  static std::unique_ptr<const Library> library;
  const std::lock_guard lock(mutex);
  if (library) return;
  library = open_library(path);
  loaded = library.get();
}

std::string zstd_version() {
  const Library* library = loaded;
  if (!library) return "";
  const unsigned n = library->version();
  return std::to_string(n / 10000) + "." + std::to_string(n / 100 % 100) + "." +
         std::to_string(n % 100);
}

std::size_t zstd_compress(std::span<std::byte> to, std::span<const std::byte> from) {
  Contexts& mine = contexts();
  if (!mine.compressor) mine.compressor = made(mine.zstd.create_compressor());
  const std::size_t bytes =
      mine.zstd.compress(mine.compressor, to.data(), to.size(), from.data(), from.size(), kLevel);
  return mine.zstd.is_error(bytes) ? 0 : bytes;
}

bool zstd_decompress(std::span<std::byte> to, std::span<const std::byte> from) {
  Contexts& mine = contexts();
  if (!mine.decompressor) mine.decompressor = made(mine.zstd.create_decompressor());
  const std::size_t bytes =
      mine.zstd.decompress(mine.decompressor, to.data(), to.size(), from.data(), from.size());
  return !mine.zstd.is_error(bytes) && bytes == to.size();
}

}  // namespace lmkv
