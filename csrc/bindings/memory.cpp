#include "bindings.h"

namespace lmkv {

void bind_memory(nb::module_&) {}

}  // namespace lmkv
