// READs by NIXL's UCX backend. UCX is set up by the environment of the process (worker/supervise.py
// writes it): parameters given here would be overruled by it.
#include <algorithm>
#include <cstdlib>
#include <functional>

#include "check.h"
#include "keys/blake3.h"
#include "nixl/nixl_capi.h"
#include "nixl/transport.h"

namespace lmkv {
namespace {

// How often a serving agent's own thread looks for work: without a delay it burns a core for ever.
constexpr std::uint64_t kProgressDelayUs = 100;

// Behind NIXL's metadata stand this many bytes of its BLAKE3. NIXL drops an agent that it is given
// torn metadata of, and never takes it again (tried: status -6, then -1 for the right ones).
constexpr std::size_t kDigestBytes = 8;

std::string digest(std::string_view metadata) {
  const std::span data(reinterpret_cast<const std::uint8_t*>(metadata.data()), metadata.size());
  const blake3::Hash hash = blake3::hash(data, blake3::Mode::plain());
  return {hash.begin(), hash.begin() + kDigestBytes};
}

// Of NIXL's lists. A mover sees one GPU, whose number is 0 then.
int segment(Tier tier) {
  return tier == Tier::device ? NixlLibrary::kGpuMemory : NixlLibrary::kHostMemory;
}

struct Freed {
  std::function<void()> free;
  ~Freed() { free(); }
};

class NixlTransport final : public Transport {
 public:
  NixlTransport(const std::string& name, const std::string& path, bool progress)
      : Transport(name), nixl_(NixlLibrary::load(path)) {
    if (nixl_.is_stub()) throw std::runtime_error("the NIXL library at " + path + " is a stub");
    NixlAgentConfig config;
    config.progress_thread = progress;
    config.thread_sync = 1;
    config.progress_delay_us = kProgressDelayUs;
    check(nixl_.create_configured_agent(name.c_str(), &config, &agent_), "create agent");
    try {
      create_backend();
    } catch (...) {
      do_close();
      throw;
    }
  }
  // With a READ under way the agent is left alone: only the end of the process ends the READ.
  ~NixlTransport() override {
    if (pending() == 0) do_close();
  }

 protected:
  void do_register(std::uint64_t address, std::uint64_t length, Tier tier) override {
    void* list = nullptr;
    check(nixl_.create_reg_dlist(segment(tier), &list), "create registration list");
    Freed freed{[&] { nixl_.destroy_reg_dlist(list); }};
    check(nixl_.reg_dlist_add_desc(list, address, length, 0, nullptr, 0), "add to the list");
    check(nixl_.register_mem(agent_, list, args_),
          tier == Tier::device ? "register memory of the GPU" : "register memory");
  }

  std::string do_metadata() override {
    void* data = nullptr;
    std::size_t length = 0;
    check(nixl_.get_local_md(agent_, &data, &length), "get metadata");
    Freed freed{[&] { std::free(data); }};
    const std::string metadata(static_cast<const char*>(data), length);
    return metadata + digest(metadata);
  }

  std::string do_connect(std::string_view metadata) override {
    const std::size_t length = std::max(metadata.size(), kDigestBytes) - kDigestBytes;
    if (metadata.substr(length) != digest(metadata.substr(0, length)))
      throw std::runtime_error(sentence("NIXL ", name(), ": metadata: ", metadata.size(),
                                        " bytes that do not have their digest at the end"));
    char* peer = nullptr;
    check(nixl_.load_remote_md(agent_, metadata.data(), length, &peer), "load metadata");
    Freed freed{[&] { std::free(peer); }};
    return peer;
  }

  void do_forget(const std::string& peer) override {
    check(nixl_.invalidate_remote_md(agent_, peer.c_str()), "forget peer");
  }

  Handle do_read(const std::string& peer, std::span<const Range> ranges, Tier local_tier,
                 Tier remote_tier) override {
    void *local = nullptr, *remote = nullptr, *request = nullptr;
    check(nixl_.create_xfer_dlist(segment(local_tier), &local), "create local list");
    Freed free_local{[&] { nixl_.destroy_xfer_dlist(local); }};
    check(nixl_.create_xfer_dlist(segment(remote_tier), &remote), "create remote list");
    Freed free_remote{[&] { nixl_.destroy_xfer_dlist(remote); }};
    for (const Range& range : ranges) {
      check(nixl_.xfer_dlist_add_desc(local, range.local, range.length, 0), "add local range");
      check(nixl_.xfer_dlist_add_desc(remote, range.remote, range.length, 0), "add remote range");
    }
    check(nixl_.create_xfer_req(agent_, NixlLibrary::kRead, local, remote, peer.c_str(), &request,
                                args_),
          "prepare READ");
    const int status = nixl_.post_xfer_req(agent_, request, nullptr);
    if (status != NixlLibrary::kSuccess && status != NixlLibrary::kInProgress) {
      release(request);
      check(status, "post READ");
    }
    return request;
  }

  TransferState do_poll(Handle request) override {
    const int status = nixl_.get_xfer_status(agent_, request);
    if (status == NixlLibrary::kInProgress) return TransferState::pending;
    release(request);
    return status == NixlLibrary::kSuccess ? TransferState::done : TransferState::failed;
  }

  void do_close() override {
    if (args_) nixl_.destroy_opt_args(args_);
    if (backend_) nixl_.destroy_backend(backend_);
    if (agent_) nixl_.destroy_agent(agent_);
    args_ = backend_ = agent_ = nullptr;
  }

 private:
  void create_backend() {
    void *memories = nullptr, *params = nullptr;
    const int found = nixl_.get_plugin_params(agent_, "UCX", &memories, &params);
    if (found != NixlLibrary::kSuccess)
      throw std::runtime_error("NIXL finds no UCX plugin beside its library");
    Freed free_memories{[&] { nixl_.destroy_mem_list(memories); }};
    Freed free_params{[&] { nixl_.destroy_params(params); }};
    check(nixl_.create_backend(agent_, "UCX", params, &backend_),
          "create the UCX backend (is the data interface's name right, and a data port free?)");
    check(nixl_.create_opt_args(&args_), "create arguments");
    check(nixl_.opt_args_add_backend(args_, backend_), "choose the UCX backend");
  }

  void release(void* request) {
    nixl_.release_xfer_req(agent_, request);
    nixl_.destroy_xfer_req(request);
  }

  void check(int status, const char* what) const {
    if (status != NixlLibrary::kSuccess)
      throw std::runtime_error(sentence("NIXL ", name(), ": ", what, ": status ", status));
  }

  const NixlLibrary& nixl_;
  void* agent_ = nullptr;
  void* backend_ = nullptr;
  void* args_ = nullptr;
};

}  // namespace

std::unique_ptr<Transport> make_nixl_transport(const std::string& name, const std::string& library,
                                               bool progress) {
  return std::make_unique<NixlTransport>(name, library, progress);
}

}  // namespace lmkv
