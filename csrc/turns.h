// How long a turn on a processor is that this thread asks the kernel's scheduler for.
#pragma once

#include <cstdint>

namespace lmkv {

// Ask for turns of so many microseconds, for this thread and those that it starts; returns what it
// has then, 0 where the kernel does not say (Linux before 6.12) or does not allow it. Its share of
// the processors stays the same: who has short turns gets them sooner after it has waited.
std::uint32_t set_turn(std::uint32_t microseconds);

}  // namespace lmkv
