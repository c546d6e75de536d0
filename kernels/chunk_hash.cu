// Chunk hashing's entry points: lmkv_hash_<what the chunks' addresses are multiples of>. Blocks of
// kHashThreads (jobs.h).
#include "hash_chunks.h"

using HashTeam = lmkv::GpuTeam<lmkv::kHashThreads>;

#define LMKV_HASH(piece)                                           \
  extern "C" __global__ void __launch_bounds__(lmkv::kHashThreads) \
      lmkv_hash_##piece(const lmkv::HashJob job) {                 \
    __shared__ lmkv::HashShared<HashTeam> shared;                  \
    HashTeam team;                                                 \
    lmkv::hash_chunks<piece>(team, job, shared);                   \
  }

LMKV_HASH(16)
LMKV_HASH(4)
