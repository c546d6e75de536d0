// Fixed-width words and the marks of functions, for g++, nvcc and NVRTC (which has no headers).
//
// LMKV_HOST_DEVICE: formats and hashes, called from anywhere. LMKV_BODY: what a team of threads
// does; nvcc compiles it for GPUs only, g++ for tests that run it on a CPU.
#pragma once

#if defined(__CUDACC_RTC__)
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#else
#include <stdint.h>
#endif

#if defined(__CUDACC__)
#define LMKV_HOST_DEVICE __host__ __device__ __forceinline__
#define LMKV_BODY __device__ __forceinline__
#define LMKV_UNROLL _Pragma("unroll")
#else
#define LMKV_HOST_DEVICE inline __attribute__((always_inline))
#define LMKV_BODY inline
#define LMKV_UNROLL
#endif
