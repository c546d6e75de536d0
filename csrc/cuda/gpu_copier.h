// Gather and scatter between vLLM's blocks in GPU memory and slots: what Copier is for a host, with
// many chunks in a launch.
//
// For slots in host memory there are two paths (docs/kernels.md): `direct`, where kernels read and
// write slots across the link, and `staged`, where they use slots in the GPU's memory that are
// copied across as a whole. Slots that are not registered with the GPU are always staged. Those in
// a GPU's memory are used where they are, and no host thread touches them: kernels clear and
// publish them too.
#pragma once

#include <span>
#include <vector>

#include "copy/pages.h"
#include "cuda/channel.h"
#include "cuda/fence.h"
#include "jobs.h"
#include "slots/slot_format.h"
#include "slots/slot_part.h"

namespace lmkv::cuda {

enum class CopyPath : std::uint8_t { direct, staged };

struct GpuChunk {
  std::byte* slot;
  Key key;
  std::uint64_t generation;
  std::span<const std::uint32_t> blocks;  // vLLM's
  bool device = false;                    // the slot is in a GPU's memory
};

// One cache group's. Immutable but for the channels' rooms: each is used by one thread at a time.
class GpuCopier {
 public:
  // `pages` describes kernel blocks, `kernel_blocks` of which are one of vLLM's blocks, and
  // `multiprocessors` are taken from the engine at most. std::invalid_argument when a chunk of
  // these pages does not make the layout's segments.
  GpuCopier(Gpu& gpu, const SlotLayout& layout, Pages pages, std::uint64_t blocks_per_chunk,
            std::uint64_t kernel_blocks, std::uint32_t multiprocessors);

  // All of these return when it is done. The kernels run after `after`, if there is one, and after
  // what it comes after. Error: of the driver, and then nothing was done as far as anybody reads.

  // Blocks to reserved slots. `fence` hears what reads the blocks.
  void gather(Channel& channel, std::span<const GpuChunk> chunks, const Event* after, CopyPath path,
              Fence* fence = nullptr) const;
  // Do the blocks still have the digests of the slots' tables?
  std::vector<SlotStatus> audit(Channel& channel, std::span<const GpuChunk> chunks) const;
  // Are these slots, all in a GPU's memory, what they say they are, to the last byte? No blocks.
  std::vector<SlotStatus> verify(Channel& channel, std::span<const GpuChunk> chunks) const;
  // No reader accepts these slots, all in a GPU's memory, from here on.
  void clear(Channel& channel, std::span<const GpuChunk> chunks) const;
  // Slots to blocks; these hold rubbish unless the answer is good. With a `part`, slots of a peer
  // that has some of our heads.
  std::vector<SlotStatus> scatter(Channel& channel, std::span<const GpuChunk> chunks,
                                  const SlotPart* part, const Event* after, CopyPath path) const;

  // std::invalid_argument for another number of blocks, or a block that is not there.
  void check_blocks(std::span<const std::uint32_t> blocks, bool may_skip = false) const;
  std::uint32_t piece() const { return piece_; }  // bytes of an access to pages

 private:
  enum class Kind : std::uint8_t { gather, scatter, audit, verify, clear };
  struct Round;

  std::vector<SlotStatus> copy(Kind kind, Channel& channel, std::span<const GpuChunk> chunks,
                               const SlotPart* part, const Event* after, CopyPath path,
                               Fence* fence = nullptr) const;
  void launch(Round& round, const Event* after, Fence* fence) const;
  void lay_out(Round& round) const;
  void tell(const Round& round) const;
  CopyJob job_of(const Round& round) const;
  void bring_in(const Round& round) const;
  void bring_out(const Round& round) const;
  void end(Round& round, std::vector<SlotStatus>& statuses) const;
  CUfunction function(Kind kind) const;
  void launch_headers(const Round& round, CUfunction function) const;

  Gpu& gpu_;
  SlotLayout layout_;
  Pages pages_;
  std::uint64_t blocks_per_chunk_, kernel_blocks_;
  std::uint32_t piece_ = 0, grid_ = 0;
  CUfunction gather_ = nullptr, scatter_ = nullptr, audit_ = nullptr, verify_ = nullptr;
  CUfunction clear_ = nullptr, publish_ = nullptr;
};

}  // namespace lmkv::cuda
