#include "turns.h"

#include "bindings.h"

namespace lmkv {

void bind_turns(nb::module_& m) {
  using namespace nb::literals;
  m.def("set_turn", &set_turn, "microseconds"_a);
}

}  // namespace lmkv
