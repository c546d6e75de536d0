// One-sided reads between processes: register -> metadata -> connect -> read -> poll.
//
// The base class keeps what every transport must keep the same way: which memory is registered,
// which peers are known, which READs are under way. A READ cannot be aborted, so a peer with a READ
// under way is never forgotten. Calls are serialised by one mutex; a transport is driven by one
// thread, and other threads may register memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "slots/place.h"

namespace lmkv {

enum class TransferState : int { pending = 0, done = 1, failed = 2 };

struct Range {
  std::uint64_t local = 0, remote = 0, length = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  const std::string& name() const { return name_; }
  // Of the host or of the one GPU that this process sees.
  void register_memory(std::uint64_t address, std::uint64_t length, Tier tier = Tier::host);
  std::string metadata();
  // The peer's agent name. A peer that is known takes further metadata (it has registered more).
  std::string connect(std::string_view metadata);
  void forget(const std::string& peer);
  // `remote`: where the peer has registered what is read; all of it goes to memory of one tier.
  // Throws std::runtime_error when the post fails. The number is valid until poll() says done or
  // failed.
  std::uint64_t read(const std::string& peer, std::span<const Range> ranges,
                     Tier remote = Tier::host);
  TransferState poll(std::uint64_t transfer);
  std::size_t pending() const;
  // READs under way end with the process only: their memory must outlive it.
  void close();
  // READ 64 bytes of `serve`'s in this process; std::runtime_error unless they come, and unchanged.
  void self_test(Transport& serve, double deadline_seconds);

 protected:
  explicit Transport(std::string name);

  using Handle = void*;
  virtual void do_register(std::uint64_t address, std::uint64_t length, Tier tier) = 0;
  virtual std::string do_metadata() = 0;
  virtual std::string do_connect(std::string_view metadata) = 0;
  virtual void do_forget(const std::string& peer) = 0;
  virtual Handle do_read(const std::string& peer, std::span<const Range> ranges, Tier local,
                         Tier remote) = 0;
  // Anything but pending has released the handle.
  virtual TransferState do_poll(Handle handle) = 0;
  virtual void do_close() = 0;

 private:
  struct Transfer {
    std::string peer;
    Handle handle;
  };
  struct Registered {
    std::uint64_t end;
    Tier tier;
  };
  void require_open() const;

  std::string name_;
  mutable std::mutex mutex_;
  bool open_ = true;
  std::map<std::uint64_t, Registered> registered_;      // by address
  std::unordered_map<std::string, std::size_t> peers_;  // name -> READs under way
  std::unordered_map<std::uint64_t, Transfer> transfers_;
  std::uint64_t next_ = 1;
};

// `library` is the path of libnixl_capi.so; `progress`: a thread answers peers while nobody polls.
std::unique_ptr<Transport> make_nixl_transport(const std::string& name, const std::string& library,
                                               bool progress);
// Agents of one process that find each other by name; for contract and property tests.
std::unique_ptr<Transport> make_loopback_transport(const std::string& name);

}  // namespace lmkv
