#include "bindings.h"

NB_MODULE(_native, m) {
  m.doc() = "lmkv's native part; python/lmkv/_native.pyi is its manual.";
  nb::set_leak_warnings(false);  // objects may outlive the interpreter, which is no news to vLLM
  lmkv::bind_keys(m);
  lmkv::bind_slots(m);
  lmkv::bind_memory(m);
  lmkv::bind_copy(m);
  lmkv::bind_cuda(m);
  lmkv::bind_table(m);
  lmkv::bind_directory(m);
  lmkv::bind_nixl(m);
  lmkv::bind_turns(m);
}
