// Memory that READs may land in until the process ends.
#pragma once

#include <cstddef>

namespace lmkv {

// Zeroed pages that are never given back. std::runtime_error: there are none.
std::byte* pages_for_good(std::size_t bytes);

}  // namespace lmkv
