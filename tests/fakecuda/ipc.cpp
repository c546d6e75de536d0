// IPC handles: where another process finds an allocation's file, through /proc, and which file it
// is. A handle of a process that is gone, or of an allocation that was freed, opens nothing. In the
// process that made it (a real driver refuses) a handle opens as the allocation itself.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "memory.h"
#include "say.h"

namespace lmkv::fake {

namespace {

struct Handle {
  std::uint64_t bytes, inode;
  pid_t process;
  int file;
};
static_assert(sizeof(Handle) <= sizeof(CUipcMemHandle));

// The file that the handle means, or -1.
int file_of(const Handle& handle) {
  const std::string path = say("/proc/", handle.process, "/fd/", handle.file);
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  struct stat about {};
  if (file < 0) return -1;
  if (fstat(file, &about) == 0 && about.st_ino == handle.inode) return file;
  ::close(file);
  return -1;
}

}  // namespace

int Memory::make_handle(Address at, CUipcMemHandle& handle) {
  const auto found = ranges_.find(at);
  if (found == ranges_.end() || found->second.kind != Kind::allocated) return cuda::INVALID_VALUE;
  const Handle made{found->second.bytes, found->second.inode, getpid(), found->second.file};
  handle = {};
  std::memcpy(handle.reserved, &made, sizeof(made));
  return cuda::SUCCESS;
}

int Memory::open(const CUipcMemHandle& handle, int device, Address& at) {
  Handle wanted;
  std::memcpy(&wanted, handle.reserved, sizeof(wanted));
  for (auto& [first, range] : ranges_) {
    const bool whole = range.kind == Kind::allocated || range.kind == Kind::opened;
    if (!whole || range.inode != wanted.inode || wanted.inode == 0) continue;
    ++range.opens;
    at = first;
    return cuda::SUCCESS;
  }
  const int file = file_of(wanted);
  if (file < 0) return cuda::INVALID_VALUE;
  at = map_between_guards(file, wanted.bytes);
  ::close(file);
  if (at == 0) return cuda::OUT_OF_MEMORY;
  ranges_[at] = {Kind::opened, wanted.bytes, device, false, -1, wanted.inode, 1};
  return cuda::SUCCESS;
}

int Memory::close(Address at) {
  const auto found = ranges_.find(at);
  if (found == ranges_.end() || found->second.opens == 0) return cuda::INVALID_VALUE;
  if (--found->second.opens == 0 && found->second.kind == Kind::opened) retire(found);
  return cuda::SUCCESS;
}

}  // namespace lmkv::fake
