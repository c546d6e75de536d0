// csrc/cuda/api.h beside a real cuda.h: the same numbers, the same signatures, and types of the
// same layout. Compiled and not run (tests/fakecuda/test_cuda_header.py), where there is a cuda.h.
#include <cstddef>
#include <cstdint>
#include <type_traits>

// lmkv's own types; its macros know no namespace, and mean cuda.h's types below.
namespace own {
#include "cuda/api.h"
}

// cuda.h also declares what has the plain names of functions that have a later version, and takes
// away its macros that turn the one into the other.
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>

namespace numbers = own::lmkv::cuda;

#define SAME(name, in_cuda) \
  static_assert(static_cast<long long>(numbers::name) == static_cast<long long>(in_cuda), #name);
#define SAME_ERROR(name) SAME(name, CUDA_ERROR_##name)
#define SAME_ATTRIBUTE(name) SAME(name, CU_DEVICE_ATTRIBUTE_##name)

SAME(SUCCESS, CUDA_SUCCESS)
SAME_ERROR(INVALID_VALUE)
SAME_ERROR(OUT_OF_MEMORY)
SAME_ERROR(NOT_INITIALIZED)
SAME_ERROR(DEINITIALIZED)
SAME_ERROR(STUB_LIBRARY)
SAME_ERROR(NO_DEVICE)
SAME_ERROR(INVALID_DEVICE)
SAME_ERROR(INVALID_IMAGE)
SAME_ERROR(INVALID_CONTEXT)
SAME_ERROR(NO_BINARY_FOR_GPU)
SAME_ERROR(UNSUPPORTED_PTX_VERSION)
SAME_ERROR(INVALID_HANDLE)
SAME_ERROR(NOT_FOUND)
SAME_ERROR(NOT_READY)
SAME_ERROR(ILLEGAL_ADDRESS)
SAME_ERROR(HOST_MEMORY_ALREADY_REGISTERED)
SAME_ERROR(HOST_MEMORY_NOT_REGISTERED)
SAME_ERROR(LAUNCH_FAILED)
SAME_ERROR(NOT_PERMITTED)
SAME_ERROR(NOT_SUPPORTED)
SAME_ERROR(SYSTEM_DRIVER_MISMATCH)
SAME_ERROR(STREAM_CAPTURE_UNSUPPORTED)

SAME_ATTRIBUTE(MULTIPROCESSOR_COUNT)
SAME_ATTRIBUTE(COMPUTE_CAPABILITY_MAJOR)
SAME_ATTRIBUTE(COMPUTE_CAPABILITY_MINOR)
SAME_ATTRIBUTE(HOST_REGISTER_SUPPORTED)
SAME_ATTRIBUTE(READ_ONLY_HOST_REGISTER_SUPPORTED)

SAME(STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING)
SAME(EVENT_DISABLE_TIMING, CU_EVENT_DISABLE_TIMING)
SAME(HOST_REGISTER_PORTABLE, CU_MEMHOSTREGISTER_PORTABLE)
SAME(HOST_REGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_DEVICEMAP)
SAME(HOST_REGISTER_READ_ONLY, CU_MEMHOSTREGISTER_READ_ONLY)
SAME(IPC_LAZY_PEER_ACCESS, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
SAME(CAPTURE_GLOBAL, CU_STREAM_CAPTURE_MODE_GLOBAL)
SAME(CAPTURE_RELAXED, CU_STREAM_CAPTURE_MODE_RELAXED)

// What is passed by value or through a pointer is as large. Handles are pointers to what nobody
// looks into.
#define AS_LARGE(type)                                                                            \
  static_assert(sizeof(own::type) == sizeof(type) && alignof(own::type) == alignof(type), #type); \
  static_assert(std::is_pointer_v<own::type> == std::is_pointer_v<type>, #type);
AS_LARGE(CUresult)
AS_LARGE(CUdevice)
AS_LARGE(CUdevice_attribute)
AS_LARGE(CUcontext)
AS_LARGE(CUmodule)
AS_LARGE(CUfunction)
AS_LARGE(CUstream)
AS_LARGE(CUevent)
AS_LARGE(CUstreamCaptureMode)
AS_LARGE(CUipcMemHandle)
static_assert(std::is_same_v<own::CUdeviceptr, CUdeviceptr>);

#define SIGNATURE(name, symbol, arguments) \
  static_assert(std::is_same_v<decltype(&symbol), CUresult(*) arguments>, #symbol);

LMKV_CUDA_FUNCTIONS(SIGNATURE)

// The newer ones, where this cuda.h has them: the plain name from 12.8 on, _v2 from 13.0 on.
#define NEWER(name, symbol, arguments) NEWER_##name(name, symbol, arguments)
#define NEWER_copy_batch(name, symbol, arguments)
#define NEWER_copy_batch_12(name, symbol, arguments)
#if CUDA_VERSION >= 13000
#undef NEWER_copy_batch
#define NEWER_copy_batch(name, symbol, arguments) SIGNATURE(name, symbol, arguments)
#endif
#if CUDA_VERSION >= 12080
#undef NEWER_copy_batch_12
#define NEWER_copy_batch_12(name, symbol, arguments) SIGNATURE(name, symbol, arguments)

SAME(COPY_IN_STREAM_ORDER, CU_MEMCPY_SRC_ACCESS_ORDER_STREAM)
AS_LARGE(CUmemLocation)
AS_LARGE(CUmemcpyAttributes)
static_assert(offsetof(own::CUmemcpyAttributes, srcLocHint) ==
              offsetof(CUmemcpyAttributes, srcLocHint));
static_assert(offsetof(own::CUmemcpyAttributes, dstLocHint) ==
              offsetof(CUmemcpyAttributes, dstLocHint));
static_assert(offsetof(own::CUmemcpyAttributes, flags) == offsetof(CUmemcpyAttributes, flags));
#endif

LMKV_CUDA_NEWER_FUNCTIONS(NEWER)
