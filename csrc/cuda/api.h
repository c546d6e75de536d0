// The functions of CUDA's driver library that lmkv calls, with the types they need, as cuda.h of
// CUDA 12 and 13 has them (tests/cpp/cuda_header.cpp holds both side by side where there is one).
// Declared here so that a build needs no toolkit; driver.h finds them in libcuda.so.1.
// event_elapsed is for measurements and tests, ipc_* and mem_range for pools in a GPU's memory.
#pragma once

#include <cstddef>
#include <cstdint>

using CUresult = int;
using CUdevice = int;
using CUdevice_attribute = int;
using CUdeviceptr = unsigned long long;
using CUstreamCaptureMode = int;
using CUcontext = struct CUctx_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;

struct CUipcMemHandle {
  char reserved[64];
};

struct CUmemLocation {
  int type, id;
};
struct CUmemcpyAttributes {
  int srcAccessOrder;
  CUmemLocation srcLocHint, dstLocHint;
  unsigned int flags;
};

namespace lmkv::cuda {

// X(name in lmkv, symbol in libcuda.so.1, its arguments)
#define LMKV_CUDA_FUNCTIONS(X)                                                                    \
  X(init, cuInit, (unsigned int flags))                                                           \
  X(driver_version, cuDriverGetVersion, (int* version))                                           \
  X(error_name, cuGetErrorName, (CUresult error, const char** name))                              \
  X(error_string, cuGetErrorString, (CUresult error, const char** text))                          \
  X(device_count, cuDeviceGetCount, (int* count))                                                 \
  X(device, cuDeviceGet, (CUdevice * device, int ordinal))                                        \
  X(device_name, cuDeviceGetName, (char* name, int length, CUdevice device))                      \
  X(device_bus_id, cuDeviceGetPCIBusId, (char* id, int length, CUdevice device))                  \
  X(device_attribute, cuDeviceGetAttribute,                                                       \
    (int* value, CUdevice_attribute attribute, CUdevice device))                                  \
  X(primary_retain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))             \
  X(primary_release, cuDevicePrimaryCtxRelease_v2, (CUdevice device))                             \
  X(set_current, cuCtxSetCurrent, (CUcontext context))                                            \
  X(priority_range, cuCtxGetStreamPriorityRange, (int* least, int* greatest))                     \
  X(capture_mode, cuThreadExchangeStreamCaptureMode, (CUstreamCaptureMode * mode))                \
  X(module_load, cuModuleLoadData, (CUmodule * module, const void* image))                        \
  X(module_unload, cuModuleUnload, (CUmodule module))                                             \
  X(module_function, cuModuleGetFunction,                                                         \
    (CUfunction * function, CUmodule module, const char* name))                                   \
  X(launch, cuLaunchKernel,                                                                       \
    (CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,          \
     unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes, \
     CUstream stream, void** parameters, void** extra))                                           \
  X(stream_create, cuStreamCreateWithPriority,                                                    \
    (CUstream * stream, unsigned int flags, int priority))                                        \
  X(stream_destroy, cuStreamDestroy_v2, (CUstream stream))                                        \
  X(stream_wait, cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned int flags))         \
  X(event_create, cuEventCreate, (CUevent * event, unsigned int flags))                           \
  X(event_destroy, cuEventDestroy_v2, (CUevent event))                                            \
  X(event_record, cuEventRecord, (CUevent event, CUstream stream))                                \
  X(event_query, cuEventQuery, (CUevent event))                                                   \
  X(event_elapsed, cuEventElapsedTime, (float* milliseconds, CUevent start, CUevent end))         \
  X(mem_info, cuMemGetInfo_v2, (std::size_t * free, std::size_t * total))                         \
  X(mem_alloc, cuMemAlloc_v2, (CUdeviceptr * address, std::size_t bytes))                         \
  X(mem_free, cuMemFree_v2, (CUdeviceptr address))                                                \
  X(mem_range, cuMemGetAddressRange_v2,                                                           \
    (CUdeviceptr * base, std::size_t * bytes, CUdeviceptr address))                               \
  X(host_register, cuMemHostRegister_v2, (void* address, std::size_t bytes, unsigned int flags))  \
  X(host_unregister, cuMemHostUnregister, (void* address))                                        \
  X(host_pointer, cuMemHostGetDevicePointer_v2,                                                   \
    (CUdeviceptr * device, void* address, unsigned int flags))                                    \
  X(copy, cuMemcpyAsync, (CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream))  \
  X(fill, cuMemsetD32Async,                                                                       \
    (CUdeviceptr to, unsigned int word, std::size_t words, CUstream stream))                      \
  X(ipc_export, cuIpcGetMemHandle, (CUipcMemHandle * handle, CUdeviceptr address))                \
  X(ipc_open, cuIpcOpenMemHandle_v2,                                                              \
    (CUdeviceptr * address, CUipcMemHandle handle, unsigned int flags))                           \
  X(ipc_close, cuIpcCloseMemHandle, (CUdeviceptr address))

// Those that an older driver lacks: many copies in one call, from CUDA 12.8 on; from 13.0 on
// without `fail`.
#define LMKV_CUDA_NEWER_FUNCTIONS(X)                                                              \
  X(copy_batch, cuMemcpyBatchAsync_v2,                                                            \
    (CUdeviceptr * to, CUdeviceptr * from, std::size_t * bytes, std::size_t count,                \
     CUmemcpyAttributes * attributes, std::size_t * attribute_first, std::size_t attribute_count, \
     CUstream stream))                                                                            \
  X(copy_batch_12, cuMemcpyBatchAsync,                                                            \
    (CUdeviceptr * to, CUdeviceptr * from, std::size_t * bytes, std::size_t count,                \
     CUmemcpyAttributes * attributes, std::size_t * attribute_first, std::size_t attribute_count, \
     std::size_t * fail, CUstream stream))

// cuda.h's numbers, of its enumerations and flags.
enum : int {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  DEINITIALIZED = 4,
  STUB_LIBRARY = 34,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY_FOR_GPU = 209,
  UNSUPPORTED_PTX_VERSION = 222,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  HOST_MEMORY_ALREADY_REGISTERED = 712,
  HOST_MEMORY_NOT_REGISTERED = 713,
  LAUNCH_FAILED = 719,
  NOT_PERMITTED = 800,
  NOT_SUPPORTED = 801,
  SYSTEM_DRIVER_MISMATCH = 803,
  STREAM_CAPTURE_UNSUPPORTED = 900,
};

enum : int {  // CUdevice_attribute
  MULTIPROCESSOR_COUNT = 16,
  COMPUTE_CAPABILITY_MAJOR = 75,
  COMPUTE_CAPABILITY_MINOR = 76,
  HOST_REGISTER_SUPPORTED = 99,
  READ_ONLY_HOST_REGISTER_SUPPORTED = 113,
};

enum : unsigned int {
  STREAM_NON_BLOCKING = 1,
  EVENT_DISABLE_TIMING = 2,
  HOST_REGISTER_PORTABLE = 1,
  HOST_REGISTER_DEVICEMAP = 2,
  HOST_REGISTER_READ_ONLY = 8,
  IPC_LAZY_PEER_ACCESS = 1,
};

enum : int { COPY_IN_STREAM_ORDER = 1 };                 // CUmemcpySrcAccessOrder
enum : int { CAPTURE_GLOBAL = 0, CAPTURE_RELAXED = 2 };  // CUstreamCaptureMode

}  // namespace lmkv::cuda
