#include "bindings.h"

namespace lmkv {

void bind_copy(nb::module_&) {}

}  // namespace lmkv
