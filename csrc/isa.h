// The instruction set that keys and copies use: the best one of this build and processor, or the
// one that LMKV_ISA names. Chosen once per process; every set gives the same bytes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lmkv {

// Each has what those before it have: code without a path of its own for the active one takes the
// best below it (`active_isa() >= Isa::avx2`).
enum class Isa { scalar = 0, avx2 = 1, avx512 = 2 };

std::string_view name(Isa isa);

// What this build and processor have, scalar first.
const std::vector<Isa>& available_isas();

// std::invalid_argument on the first call if LMKV_ISA names a set that is not available.
Isa active_isa();

// For tests and benches: the whole process. std::invalid_argument for one that is not available.
void set_isa(std::string_view name);

}  // namespace lmkv
