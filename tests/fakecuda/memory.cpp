// Allocations, registrations, and the judgement on what the device touches.
#include "memory.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "say.h"

namespace lmkv::fake {

namespace {

constexpr std::size_t kPage = 4096;
constexpr unsigned char kFresh = 0xA5;

void* at_address(Address at) { return reinterpret_cast<void*>(at); }

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::allocated:
      return "an allocation";
    case Kind::adopted:
      return "an adopted range";
    case Kind::registered:
      return "a registered range";
    case Kind::opened:
      return "an IPC mapping";
    case Kind::freed:
      return "a freed range";
  }
  return "";
}

}  // namespace

std::size_t whole_pages(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// It fetches the pages, as pinning does.
bool is_mapped(Address at, std::size_t bytes, bool to_write) {
  const Address first = at / kPage * kPage;
  const int advice = to_write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
  return madvise(at_address(first), whole_pages(at + bytes - first), advice) == 0;
}

Address map_between_guards(int file, std::size_t bytes) {
  void* const room = mmap(nullptr, whole_pages(bytes) + 2 * kPage, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return 0;
  const Address at = reinterpret_cast<Address>(room) + kPage;
  void* const mapped = mmap(at_address(at), whole_pages(bytes), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_FIXED, file, 0);
  if (mapped != MAP_FAILED) return at;
  munmap(room, whole_pages(bytes) + 2 * kPage);
  return 0;
}

int Memory::allocate(std::size_t bytes, int device, Address& at) {
  const int file = memfd_create("lmkv-fake-device-memory", MFD_CLOEXEC);
  if (file < 0) return cuda::OUT_OF_MEMORY;
  struct stat about {};
  at = 0;
  if (ftruncate(file, off_t(whole_pages(bytes))) == 0 && fstat(file, &about) == 0) {
    at = map_between_guards(file, bytes);
  }
  if (at == 0) return ::close(file), cuda::OUT_OF_MEMORY;
  std::memset(at_address(at), kFresh, whole_pages(bytes));
  ranges_[at] = {Kind::allocated, bytes, device, false, file, about.st_ino, 0};
  return cuda::SUCCESS;
}

int Memory::release(Address at) {
  const auto found = ranges_.find(at);
  if (found == ranges_.end() || found->second.kind != Kind::allocated) return cuda::INVALID_VALUE;
  look_behind(*found);
  ::close(found->second.file);
  retire(found);
  return cuda::SUCCESS;
}

// The addresses stay taken, and are nobody's.
void Memory::retire(Ranges::iterator range) {
  mmap(at_address(range->first), whole_pages(range->second.bytes), PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  range->second.kind = Kind::freed;
}

void Memory::look_behind(const Ranges::value_type& range) {
  const auto* const first = static_cast<const unsigned char*>(at_address(range.first));
  const auto *const end = first + range.second.bytes, *const last =
                                                          first + whole_pages(range.second.bytes);
  const auto* const wrong = std::find_if(end, last, [](unsigned char c) { return c != kFresh; });
  if (wrong == last) return;
  overruns.push_back(say("byte ", wrong - first, " of an allocation of ", range.second.bytes,
                         " bytes was written: it is behind its end"));
}

std::size_t Memory::allocated(int device) const {
  std::size_t bytes = 0;
  for (const auto& [at, range] : ranges_) {
    if (range.kind == Kind::allocated && range.device == device) bytes += range.bytes;
  }
  return bytes;
}

bool Memory::adopt(Address at, std::size_t bytes) {
  if (bytes == 0 || overlaps(at, bytes)) return false;
  ranges_[at] = {Kind::adopted, bytes};
  return true;
}

bool Memory::disown(Address at) {
  const Range* const range = find(at);
  return range != nullptr && range->kind == Kind::adopted && ranges_.erase(at) == 1;
}

int Memory::enter(Address at, std::size_t bytes, bool read_only) {
  if (at == 0 || bytes == 0) return cuda::INVALID_VALUE;
  const Range* with = nullptr;
  if (overlaps(at, bytes, &with)) {
    return with->kind == Kind::registered ? cuda::HOST_MEMORY_ALREADY_REGISTERED
                                          : cuda::INVALID_VALUE;
  }
  if (!is_mapped(at, bytes, !read_only)) return cuda::INVALID_VALUE;
  ranges_[at] = {Kind::registered, bytes, 0, read_only};
  return cuda::SUCCESS;
}

int Memory::leave(Address at) {
  const auto found = ranges_.find(at);
  if (found == ranges_.end() || found->second.kind != Kind::registered) {
    return cuda::HOST_MEMORY_NOT_REGISTERED;
  }
  ranges_.erase(found);
  return cuda::SUCCESS;
}

Memory::Ranges::const_iterator Memory::before(Address at) const {
  const auto next = ranges_.upper_bound(at);
  return next == ranges_.begin() ? ranges_.end() : std::prev(next);
}

const Range* Memory::find(Address at) const {
  const auto found = before(at);
  return found != ranges_.end() && at - found->first < found->second.bytes ? &found->second
                                                                           : nullptr;
}

Address Memory::whole(Address at, std::size_t& bytes) const {
  const auto found = before(at);
  if (found == ranges_.end() || at - found->first >= found->second.bytes) return 0;
  if (found->second.kind != Kind::allocated && found->second.kind != Kind::opened) return 0;
  bytes = found->second.bytes;
  return found->first;
}

bool Memory::overlaps(Address at, std::size_t bytes, const Range** with) const {
  const Range* range = find(at);
  const auto next = ranges_.upper_bound(at);
  if (range == nullptr && next != ranges_.end() && next->first - at < bytes) range = &next->second;
  if (with != nullptr) *with = range;
  return range != nullptr;
}

std::string Memory::fault(Address at, std::size_t bytes, bool write) const {
  const Address end = at + bytes;
  if (end < at) return say(hex(at), ", and addresses end before that");
  while (at < end) {
    const auto found = before(at);
    if (found == ranges_.end()) return say(hex(at), ", memory that the device does not have");
    const Address behind = found->first + found->second.bytes;
    const char* const kind = name_of(found->second.kind);
    if (at >= behind) {
      if (at - behind >= kPage) return say(hex(at), ", memory that the device does not have");
      return say(hex(at), ", ", at - behind, " bytes behind the end of ", kind, " of ",
                 found->second.bytes, " bytes");
    }
    if (found->second.kind == Kind::freed) return say(hex(at), ", memory that was freed");
    if (write && found->second.read_only) {
      return say(hex(at), ", memory that was registered for reading only");
    }
    at = behind;
  }
  return "";
}

void Memory::live(std::vector<std::string>& to) const {
  for (const auto& [at, range] : ranges_) {
    if (range.kind == Kind::adopted || range.kind == Kind::freed) continue;  // the test's; nobody's
    to.push_back(say(name_of(range.kind), " of ", range.bytes, " bytes at ", hex(at)));
    if (range.kind == Kind::allocated && range.opens > 0) {
      to.push_back(say("an IPC mapping of the allocation at ", hex(at)));
    }
  }
}

void Memory::reset() {
  for (const auto& each : ranges_) {
    const auto& [at, range] = each;
    if (range.kind == Kind::adopted || range.kind == Kind::registered) continue;
    if (range.kind == Kind::allocated) look_behind(each), ::close(range.file);
    munmap(at_address(at - kPage), whole_pages(range.bytes) + 2 * kPage);
  }
  ranges_.clear();
}

}  // namespace lmkv::fake
