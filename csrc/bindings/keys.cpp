#include "bindings.h"

namespace lmkv {

void bind_keys(nb::module_&) {}

}  // namespace lmkv
