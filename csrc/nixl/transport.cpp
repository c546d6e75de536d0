#include "nixl/transport.h"

#include <chrono>
#include <cstring>
#include <thread>

#include "check.h"
#include "memory/pages_for_good.h"

namespace lmkv {

Transport::Transport(std::string name) : name_(std::move(name)) {
  REQUIRE(!name_.empty() && name_.size() < 128, "transport name \"", name_, "\": ", name_.size(),
          " characters, 1 to 127 are allowed");
}

void Transport::require_open() const { REQUIRE(open_, "transport ", name_, " is closed"); }

void Transport::register_memory(std::uint64_t address, std::uint64_t length, Tier tier) {
  std::lock_guard lock(mutex_);
  require_open();
  REQUIRE(address != 0 && length != 0 && address + length > address, "register: address ", address,
          ", length ", length);
  std::uint64_t first = address, end = address + length;
  auto next = registered_.lower_bound(first);
  REQUIRE(next == registered_.end() || next->first >= end, "register: [", first, ", ", end,
          ") overlaps registered memory at ", next->first);
  const bool before = next != registered_.begin();
  REQUIRE(!before || std::prev(next)->second.end <= first, "register: [", first, ", ", end,
          ") overlaps registered memory at ", before ? std::prev(next)->first : 0);
  do_register(address, length, tier);
  registered_.emplace(first, Registered{end, tier});
}

std::string Transport::metadata() {
  std::lock_guard lock(mutex_);
  require_open();
  return do_metadata();
}

std::string Transport::connect(std::string_view metadata) {
  std::lock_guard lock(mutex_);
  require_open();
  REQUIRE(!metadata.empty(), "metadata is empty");
  std::string peer = do_connect(metadata);
  peers_.try_emplace(peer, 0);
  return peer;
}

void Transport::forget(const std::string& peer) {
  std::lock_guard lock(mutex_);
  require_open();
  auto found = peers_.find(peer);
  REQUIRE(found != peers_.end(), "peer \"", peer, "\" is not connected");
  REQUIRE(found->second == 0, "peer \"", peer, "\" has ", found->second, " READs under way");
  do_forget(peer);
  peers_.erase(found);
}

std::uint64_t Transport::read(const std::string& peer, std::span<const Range> ranges, Tier remote) {
  std::lock_guard lock(mutex_);
  require_open();
  auto found = peers_.find(peer);
  REQUIRE(found != peers_.end(), "peer \"", peer, "\" is not connected");
  REQUIRE(!ranges.empty(), "a READ of no ranges");
  Tier local = Tier::host;
  bool first = true;
  for (const Range& range : ranges) {
    auto after = registered_.upper_bound(range.local);
    const Registered* const there =
        after == registered_.begin() ? nullptr : &std::prev(after)->second;
    const bool inside = there && range.length != 0 && range.local < there->end &&
                        range.length <= there->end - range.local;
    REQUIRE(inside, "READ: local range at ", range.local, " of ", range.length,
            " bytes is not in one registered region");
    REQUIRE(first || local == there->tier, "READ: local range at ", range.local,
            " is in memory of another kind than those before it");
    local = there->tier;
    first = false;
  }
  Handle handle = do_read(peer, ranges, local, remote);
  transfers_.emplace(next_, Transfer{peer, handle});
  ++found->second;
  return next_++;
}

TransferState Transport::poll(std::uint64_t transfer) {
  std::lock_guard lock(mutex_);
  require_open();
  auto found = transfers_.find(transfer);
  REQUIRE(found != transfers_.end(), "transfer ", transfer, " is not under way");
  const TransferState state = do_poll(found->second.handle);
  if (state != TransferState::pending) {
    --peers_.at(found->second.peer);
    transfers_.erase(found);
  }
  return state;
}

std::size_t Transport::pending() const {
  std::lock_guard lock(mutex_);
  return transfers_.size();
}

void Transport::close() {
  std::lock_guard lock(mutex_);
  if (!open_) return;
  REQUIRE(transfers_.empty(), "transport ", name_, " has ", transfers_.size(), " READs under way");
  open_ = false;
  do_close();
}

void Transport::self_test(Transport& serve, double deadline_seconds) {
  constexpr std::size_t kPage = 4096, kBytes = 64;
  std::byte* theirs = pages_for_good(2 * kPage);
  std::byte* ours = theirs + kPage;
  for (std::size_t i = 0; i < kBytes; ++i) theirs[i] = std::byte(i * 37 + 11);
  const auto address = [](std::byte* at) { return reinterpret_cast<std::uint64_t>(at); };
  serve.register_memory(address(theirs), kPage);
  register_memory(address(ours), kPage);
  const std::string peer = connect(serve.metadata());
  const Range range{address(ours), address(theirs), kBytes};
  const std::uint64_t transfer = read(peer, {&range, 1});
  const auto end =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(deadline_seconds);
  TransferState state;
  while ((state = poll(transfer)) == TransferState::pending) {
    if (std::chrono::steady_clock::now() > end)
      throw std::runtime_error(
          sentence("a READ from oneself did not end in ", deadline_seconds, " seconds"));
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  if (state == TransferState::failed) throw std::runtime_error("a READ from oneself failed");
  if (std::memcmp(ours, theirs, kBytes) != 0)
    throw std::runtime_error("a READ from oneself brought other bytes");
  forget(peer);
}

}  // namespace lmkv
