#include "bindings.h"

namespace lmkv {

void bind_table(nb::module_&) {}

}  // namespace lmkv
