#include "bindings.h"

namespace lmkv {

void bind_slots(nb::module_&) {}

}  // namespace lmkv
