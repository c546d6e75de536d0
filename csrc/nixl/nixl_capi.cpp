#include "nixl/nixl_capi.h"

#include <dlfcn.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <unordered_map>

namespace lmkv {
namespace {

template <class Function>
void find(void* library, const char* name, Function& function) {
  const std::string symbol = std::string("nixl_capi_") + name;
  function = reinterpret_cast<Function>(dlsym(library, symbol.c_str()));
  if (!function) throw std::runtime_error("the NIXL library has no function " + symbol);
}

std::unique_ptr<NixlLibrary> open_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // kept until the process ends
  if (!library) {
    const char* error = dlerror();  // NOLINT(concurrency-mt-unsafe): the thread's own
    throw std::runtime_error(std::string("NIXL does not load: ") + (error ? error : path.c_str()));
  }
  auto found = std::make_unique<NixlLibrary>();
#define FIND(name) find(library, #name, found->name)
  FIND(is_stub);
  FIND(create_configured_agent);
  FIND(destroy_agent);
  FIND(get_plugin_params);
  FIND(destroy_mem_list);
  FIND(destroy_params);
  FIND(create_backend);
  FIND(destroy_backend);
  FIND(create_opt_args);
  FIND(destroy_opt_args);
  FIND(opt_args_add_backend);
  FIND(create_reg_dlist);
  FIND(destroy_reg_dlist);
  FIND(reg_dlist_add_desc);
  FIND(register_mem);
  FIND(get_local_md);
  FIND(load_remote_md);
  FIND(invalidate_remote_md);
  FIND(create_xfer_dlist);
  FIND(destroy_xfer_dlist);
  FIND(xfer_dlist_add_desc);
  FIND(create_xfer_req);
  FIND(post_xfer_req);
  FIND(get_xfer_status);
  FIND(release_xfer_req);
  FIND(destroy_xfer_req);
#undef FIND
  return found;
}

}  // namespace

const NixlLibrary& NixlLibrary::load(const std::string& path) {
  static std::mutex mutex;
  static std::unordered_map<std::string, std::unique_ptr<NixlLibrary>> loaded;
  std::lock_guard lock(mutex);
  auto& library = loaded[path];
  if (!library) library = open_library(path);
  return *library;
}

}  // namespace lmkv
