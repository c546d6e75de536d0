// The fake's memory. "Device memory" is memory of the host, so that a device's address is one that
// a test can look at; who touches what is checked against this list of ranges.
//
// Allocations lie between pages that nobody may touch, and begin as 0xA5. They are files in memory,
// which another process opens by an IPC handle. Freed addresses are not used again before a reset,
// so that a late access is seen as one. All members are called under the driver's lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cuda/api.h"

namespace lmkv::fake {

using Address = std::uintptr_t;

std::size_t whole_pages(std::size_t bytes);
// This process may read or write these addresses.
bool is_mapped(Address at, std::size_t bytes, bool to_write);
// The file, mapped between two pages that fault; 0: no room.
Address map_between_guards(int file, std::size_t bytes);

enum class Kind { allocated, adopted, registered, opened, freed };

struct Range {
  Kind kind;
  std::size_t bytes;
  int device = 0;
  bool read_only = false;   // registered: the device may not write
  int file = -1;            // allocated
  std::uint64_t inode = 0;  // allocated, opened: tells files apart
  unsigned opens = 0;       // IPC mappings of it in this process
};

class Memory {
 public:
  int allocate(std::size_t bytes, int device, Address& at);
  int release(Address at);
  std::size_t allocated(int device) const;

  // Memory of the test that plays the device's, until it is disowned. False: it overlaps.
  bool adopt(Address at, std::size_t bytes);
  bool disown(Address at);

  int enter(Address at, std::size_t bytes, bool read_only);  // host_register
  int leave(Address at);

  // Where the allocation or mapping that has this address begins, and its bytes; 0: there is none.
  Address whole(Address at, std::size_t& bytes) const;

  int make_handle(Address at, CUipcMemHandle& handle);
  int open(const CUipcMemHandle& handle, int device, Address& at);
  int close(Address at);

  // The range that has this address, or nullptr.
  const Range* find(Address at) const;
  // Why the device may not touch this, or nothing. Ranges that touch are as good as one.
  std::string fault(Address at, std::size_t bytes, bool write) const;

  void live(std::vector<std::string>& to) const;
  // What was written behind an allocation's end is said in `overruns`.
  void reset();
  std::vector<std::string> overruns;

 private:
  using Ranges = std::map<Address, Range>;

  Ranges::const_iterator before(Address at) const;  // the last that begins at `at` or earlier
  bool overlaps(Address at, std::size_t bytes, const Range** with = nullptr) const;
  void retire(Ranges::iterator range);
  void look_behind(const Ranges::value_type& range);

  Ranges ranges_;
};

}  // namespace lmkv::fake
