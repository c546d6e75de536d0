#include "memory/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <random>
#include <utility>

#include "check.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

namespace lmkv {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr std::uintptr_t kLowest = 1ull << 44, kHighest = 1ull << 46, kAlign = 2ull << 20;

// The range at exactly `address`, or nullptr when that is taken.
void* reserve(std::uintptr_t address, std::size_t bytes) {
  void* wanted = reinterpret_cast<void*>(address);
  void* got = mmap(wanted, bytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (got == MAP_FAILED) {
    if (errno == EEXIST) return nullptr;
    throw SystemError(sentence("mmap: reserve ", bytes, " bytes at ", wanted));
  }
  if (got == wanted) return got;
  munmap(got, bytes);  // a kernel that takes MAP_FIXED_NOREPLACE for a hint
  return nullptr;
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

int Descriptor::release() { return std::exchange(fd_, -1); }

Descriptor create_segment(std::size_t bytes) {
  Descriptor fd(memfd_create("lmkv-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0) throw SystemError("memfd_create");
  if (fchmod(fd.get(), 0600) != 0) throw SystemError("fchmod 0600 of a pool segment");
  if (ftruncate(fd.get(), off_t(bytes)) != 0) {
    throw SystemError(sentence("ftruncate of a pool segment to ", bytes, " bytes"));
  }
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) throw SystemError("fcntl F_ADD_SEALS");
  return fd;
}

void check_segment(int fd, std::size_t bytes) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) throw SystemError(sentence("pool segment: descriptor ", fd, " has no seals"));
  std::string missing;
  if (!(seals & F_SEAL_SHRINK)) missing += " SHRINK";
  if (!(seals & F_SEAL_GROW)) missing += " GROW";
  if (!(seals & F_SEAL_SEAL)) missing += " SEAL";
  if (!missing.empty()) {
    throw std::runtime_error(sentence("pool segment: not sealed:", missing, " missing"));
  }
  struct stat status {};
  if (fstat(fd, &status) != 0) throw SystemError("fstat of a pool segment");
  if (std::size_t(status.st_size) != bytes) {
    throw std::runtime_error(
        sentence("pool segment: ", status.st_size, " bytes, announced are ", bytes));
  }
}

Descriptor duplicate_segment(int fd, bool readonly) {
  Descriptor copy(readonly ? open(sentence("/proc/self/fd/", fd).c_str(), O_RDONLY | O_CLOEXEC)
                           : fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (copy.get() < 0) {
    throw SystemError(readonly ? "open a pool segment read-only" : "fcntl F_DUPFD_CLOEXEC");
  }
  return copy;
}

AddressRange::AddressRange(std::size_t bytes, std::uintptr_t address) : bytes_(bytes) {
  if (address != 0) {
    data_ = static_cast<std::byte*>(reserve(address, bytes));
    if (data_ == nullptr) {
      throw SystemError(sentence("pool: ", bytes, " bytes at address 0x", std::hex, address),
                        EEXIST);
    }
    return;
  }
  std::random_device entropy;
  for (int attempt = 0; attempt < 64 && data_ == nullptr; ++attempt) {
    const std::uint64_t random = std::uint64_t{entropy()} << 32 | entropy();
    const std::uintptr_t at = kLowest + random % (kHighest - kLowest);
    data_ = static_cast<std::byte*>(reserve(at / kAlign * kAlign, bytes));
  }
  if (data_ == nullptr) throw SystemError(sentence("pool: no room for ", bytes, " bytes"), ENOMEM);
}

void AddressRange::map(int fd, std::size_t offset, std::size_t bytes, bool writable) {
  const int access = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  if (mmap(data_ + offset, bytes, access, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
    const int error = errno;
    hide(offset, bytes);
    throw SystemError(sentence("mmap a pool segment of ", bytes, " bytes"), error);
  }
  madvise(data_ + offset, bytes, MADV_HUGEPAGE);  // only where the system gives them
}

void AddressRange::populate(std::size_t offset, std::size_t bytes) {
  if (madvise(data_ + offset, bytes, MADV_POPULATE_WRITE) == 0) return;
  if (errno != EINVAL) throw SystemError(sentence("populate ", bytes, " bytes of the pool"));
  for (std::size_t at = 0; at < bytes; at += 4096) {  // a kernel before 5.14
    *reinterpret_cast<volatile unsigned char*>(data_ + offset + at) = 0;
  }
}

void AddressRange::fault_in(std::size_t offset, std::size_t bytes, bool writable) noexcept {
  madvise(data_ + offset, bytes, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
}

void AddressRange::hide(std::size_t offset, std::size_t bytes) noexcept {
  [[maybe_unused]] void* hidden =
      mmap(data_ + offset, bytes, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void AddressRange::unmap() noexcept {
  if (data_ != nullptr) munmap(data_, bytes_);
  data_ = nullptr;
}

}  // namespace lmkv
