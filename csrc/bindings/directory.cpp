#include "bindings.h"

namespace lmkv {

void bind_directory(nb::module_&) {}

}  // namespace lmkv
