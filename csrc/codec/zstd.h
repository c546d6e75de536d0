// zstd, by the C functions of a library that is loaded at run time: the one inside the Python
// module `_zstd` (or its backport), or the system's. Building needs none of them.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace lmkv {

// Loads it from the file, once for the process; how often it is called does not matter, and neither
// does the file of a later call. std::runtime_error: it does not load, or lacks a function.
void load_zstd(const std::string& path);

// "1.5.7", or "" while none is loaded.
std::string zstd_version();

// One frame of `from` in `to`; 0 when it does not fit. A library is loaded.
std::size_t zstd_compress(std::span<std::byte> to, std::span<const std::byte> from);

// Whether `from` is a frame of exactly `to`'s bytes, which are there then. A library is loaded.
bool zstd_decompress(std::span<std::byte> to, std::span<const std::byte> from);

}  // namespace lmkv
