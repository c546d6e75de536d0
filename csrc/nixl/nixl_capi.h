// The functions of NIXL's C library that lmkv uses, found by dlopen: building needs no NIXL.
//
// The library has no version of its own; the caller checks the wheel's (mover/transport.py holds
// the tested range) and a READ from oneself at start shows that the two sides agree. Every pointer
// below is opaque. A status is 0 for success and 1 for "in progress"; all else is an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace lmkv {

struct NixlAgentConfig {
  bool progress_thread = false;
  bool listen_thread = false;
  int listen_port = 0;
  int thread_sync = 0;  // 1: one lock around the agent
  unsigned workers = 0;
  std::uint64_t progress_delay_us = 0;
  std::uint64_t listen_delay_us = 0;
  bool telemetry = false;
};
static_assert(sizeof(NixlAgentConfig) == 40 && offsetof(NixlAgentConfig, progress_delay_us) == 16);

struct NixlLibrary {
  static constexpr int kSuccess = 0, kInProgress = 1, kHostMemory = 0, kGpuMemory = 1, kRead = 0;

  // Loads `path` once per process and keeps it. std::runtime_error names what is missing.
  static const NixlLibrary& load(const std::string& path);

  int (*is_stub)();
  int (*create_configured_agent)(const char*, const NixlAgentConfig*, void** agent);
  int (*destroy_agent)(void* agent);
  int (*get_plugin_params)(void* agent, const char* plugin, void** memory_list, void** params);
  int (*destroy_mem_list)(void*);
  int (*destroy_params)(void*);
  int (*create_backend)(void* agent, const char* plugin, void* params, void** backend);
  int (*destroy_backend)(void* backend);
  int (*create_opt_args)(void** args);
  int (*destroy_opt_args)(void* args);
  int (*opt_args_add_backend)(void* args, void* backend);
  int (*create_reg_dlist)(int memory, void** list);
  int (*destroy_reg_dlist)(void* list);
  int (*reg_dlist_add_desc)(void* list, std::uintptr_t address, std::size_t length,
                            std::uint64_t device, const void* meta, std::size_t meta_length);
  int (*register_mem)(void* agent, void* list, void* args);
  int (*get_local_md)(void* agent, void** data, std::size_t* length);  // data: free()
  int (*load_remote_md)(void* agent, const void* data, std::size_t length, char** name);
  int (*invalidate_remote_md)(void* agent, const char* name);
  int (*create_xfer_dlist)(int memory, void** list);
  int (*destroy_xfer_dlist)(void* list);
  int (*xfer_dlist_add_desc)(void* list, std::uintptr_t address, std::size_t length,
                             std::uint64_t device);
  int (*create_xfer_req)(void* agent, int operation, void* local, void* remote, const char* peer,
                         void** request, void* args);
  int (*post_xfer_req)(void* agent, void* request, void* args);
  int (*get_xfer_status)(void* agent, void* request);
  int (*release_xfer_req)(void* agent, void* request);
  int (*destroy_xfer_req)(void* request);
};

}  // namespace lmkv
