// The copies' entry points: lmkv_<copy>_<bytes of an access to pages>, and what stands around them.
// Blocks of kCopyThreads (jobs.h); two of them fit one multiprocessor.
#include "gather_scatter.h"

using CopyTeam = lmkv::GpuTeam<lmkv::kCopyThreads>;

#define LMKV_COPY(copy, piece)                                        \
  extern "C" __global__ void __launch_bounds__(lmkv::kCopyThreads, 2) \
      lmkv_##copy##_##piece(const lmkv::CopyJob job) {                \
    __shared__ lmkv::CopyShared<CopyTeam> shared;                     \
    CopyTeam team;                                                    \
    lmkv::copy_chunks<lmkv::Copy::copy, piece>(team, job, shared);    \
  }

LMKV_COPY(gather, 16)
LMKV_COPY(gather, 8)
LMKV_COPY(gather, 4)
LMKV_COPY(scatter, 16)
LMKV_COPY(scatter, 8)
LMKV_COPY(scatter, 4)
LMKV_COPY(audit, 16)
LMKV_COPY(audit, 8)
LMKV_COPY(audit, 4)
LMKV_COPY(verify, 16)

extern "C" __global__ void lmkv_clear(const lmkv::HeaderJob job) {
  lmkv::clear_slot(job, blockIdx.x * blockDim.x + threadIdx.x);
}

extern "C" __global__ void lmkv_publish(const lmkv::HeaderJob job) {
  lmkv::publish_slot(job, blockIdx.x * blockDim.x + threadIdx.x);
}
