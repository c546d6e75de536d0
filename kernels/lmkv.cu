// All kernels as one translation unit: one fatbin, or one NVRTC program.
#include "chunk_hash.cu"
#include "gather_scatter.cu"
