// Agents of one process find each other by name. A READ moves one range per poll, so that tests see
// it under way; a closed peer fails it.
#include <cstring>

#include "check.h"
#include "nixl/transport.h"

namespace lmkv {
namespace {

constexpr std::string_view kPrefix = "lmkv loopback ";

struct Memory {
  std::uint64_t address, length;
  Tier tier;
};

// What a peer may read, by agent name; a closed agent is not in it.
struct Agents {
  std::mutex mutex;
  std::unordered_map<std::string, std::vector<Memory>> open;
};

Agents& agents() {
  static Agents all;
  return all;
}

struct Read {
  std::string peer;
  Tier remote;
  std::vector<Range> ranges;
  std::size_t next = 0;
};

class LoopbackTransport final : public Transport {
 public:
  explicit LoopbackTransport(const std::string& name) : Transport(name) {
    std::lock_guard lock(agents().mutex);
    REQUIRE(agents().open.try_emplace(name).second, "loopback agent \"", name, "\" exists already");
  }
  ~LoopbackTransport() override { do_close(); }

 protected:
  void do_register(std::uint64_t address, std::uint64_t length, Tier tier) override {
    std::lock_guard lock(agents().mutex);
    agents().open.at(name()).push_back({address, length, tier});
  }

  std::string do_metadata() override { return std::string(kPrefix) + name(); }

  std::string do_connect(std::string_view metadata) override {
    std::string peer;
    if (metadata.starts_with(kPrefix)) peer = metadata.substr(kPrefix.size());
    std::lock_guard lock(agents().mutex);
    if (!agents().open.contains(peer))
      throw std::runtime_error("metadata names no loopback agent of this process");
    return peer;
  }

  void do_forget(const std::string&) override {}

  Handle do_read(const std::string& peer, std::span<const Range> ranges, Tier,
                 Tier remote) override {
    std::lock_guard lock(agents().mutex);
    for (const Range& range : ranges)
      if (!readable(peer, range, remote))
        throw std::runtime_error(sentence("READ from ", peer, " at ", range.remote, " of ",
                                          range.length, " bytes: not registered there"));
    return new Read{peer, remote, {ranges.begin(), ranges.end()}};
  }

  TransferState do_poll(Handle handle) override {
    Read* read = static_cast<Read*>(handle);
    std::lock_guard lock(agents().mutex);
    const Range range = read->ranges[read->next];
    TransferState state = TransferState::failed;
    if (readable(read->peer, range, read->remote)) {
      std::memcpy(reinterpret_cast<void*>(range.local), reinterpret_cast<void*>(range.remote),
                  range.length);
      const bool last = ++read->next == read->ranges.size();
      state = last ? TransferState::done : TransferState::pending;
    }
    if (state != TransferState::pending) delete read;
    return state;
  }

  void do_close() override {
    std::lock_guard lock(agents().mutex);
    agents().open.erase(name());
  }

 private:
  static bool readable(const std::string& peer, const Range& range, Tier tier) {
    auto found = agents().open.find(peer);
    if (found == agents().open.end()) return false;
    for (const Memory& memory : found->second)
      if (memory.tier == tier && range.remote >= memory.address && range.length <= memory.length &&
          range.remote - memory.address <= memory.length - range.length)
        return true;
    return false;
  }
};

}  // namespace

std::unique_ptr<Transport> make_loopback_transport(const std::string& name) {
  return std::make_unique<LoopbackTransport>(name);
}

}  // namespace lmkv
