// Memory of a pool: an address range reserved once, and sealed memfd segments mapped into it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmkv {

// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return fd_; }
  int release();

 private:
  int fd_;
};

// A new memfd of `bytes`, mode 0600, sealed SHRINK, GROW and SEAL: whoever maps it cannot fault for
// a hole that appears later. SystemError.
Descriptor create_segment(std::size_t bytes);

// std::runtime_error with what is missing, unless `fd` is such a segment of exactly `bytes` bytes.
void check_segment(int fd, std::size_t bytes);

// Another descriptor of the same memory. Reopened read-only, it can never be mapped writable.
Descriptor duplicate_segment(int fd, bool readonly);

// Addresses that nothing else in this process can take; PROT_NONE until a segment is mapped.
class AddressRange {
 public:
  // `address` 0: at random, above 2^44. SystemError when a given address is taken.
  AddressRange(std::size_t bytes, std::uintptr_t address);
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;
  ~AddressRange() { unmap(); }

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  // Maps the whole of `fd` over [offset, offset + bytes).
  void map(int fd, std::size_t offset, std::size_t bytes, bool writable);
  // Takes memory for [offset, offset + bytes) now, not at the first touch. SystemError.
  void populate(std::size_t offset, std::size_t bytes);
  // Page table entries for memory that is there already; only a hint, it touches no byte.
  void fault_in(std::size_t offset, std::size_t bytes, bool writable) noexcept;
  // Back to PROT_NONE.
  void hide(std::size_t offset, std::size_t bytes) noexcept;
  void unmap() noexcept;

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace lmkv
