#include "bindings.h"

namespace lmkv {

void bind_nixl(nb::module_&) {}

}  // namespace lmkv
