// The driver's functions that lmkv does not call, and UCX does: with them NIXL's own UCX takes the
// fake's memory for a GPU's (tests/contract/test_gpu_movers.py). What a card may lack, this one
// does.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "driver.h"

using namespace lmkv::cuda;
using namespace lmkv::fake;

namespace {

enum : int {  // CUpointer_attribute
  CONTEXT = 1,
  MEMORY_TYPE = 2,
  DEVICE_POINTER = 3,
  BUFFER_ID = 7,
  IS_MANAGED = 8,
  DEVICE_ORDINAL = 9,
  RANGE_START = 11,
  RANGE_BYTES = 12,
};
constexpr unsigned kHost = 1, kDevice = 2;  // CUmemorytype
constexpr std::size_t kWidest = 8;

thread_local std::vector<std::uint64_t> below;  // contexts under the current one

template <class Value>
void put(void* to, Value value) {
  *static_cast<Value*>(to) = value;
}

std::uint64_t context_of(const Driver& driver) {
  const int device = driver.current();
  return device < 0 ? 0 : driver.devices[std::size_t(device)].context;
}

void tell(const Driver& driver, int attribute, void* to, Address at) {
  const Range* const range = driver.memory.find(at);
  const bool device = range != nullptr && range->kind != Kind::registered;
  switch (attribute) {
    case CONTEXT:
      return put(to, range ? driver.devices[std::size_t(range->device)].context : 0ull);
    case MEMORY_TYPE:
      return put(to, range == nullptr ? 0u : device ? kDevice : kHost);
    case DEVICE_POINTER:
      return put(to, std::uint64_t(range ? at : 0));
    case BUFFER_ID:
      return put(to, range ? 1 + range->inode : 0ull);
    case DEVICE_ORDINAL:
      return put(to, range ? range->device : -1);
    case RANGE_START:
    case RANGE_BYTES: {
      std::size_t bytes = 0;
      const Address first = driver.memory.whole(at, bytes);
      return put(to, std::uint64_t(attribute == RANGE_START ? first : bytes));
    }
    default:
      return put(to, 0u);  // it has none of the rest
  }
}

bool ended(Driver& driver, const Stream& stream) {
  return driver.changed.wait_for(driver.lock, std::chrono::seconds(10),
                                 [&] { return stream.empty(); });
}

}  // namespace

#define LMKV_FAKE(type) LMKV_FAKE_EXPORT type

extern "C" {

LMKV_FAKE(CUresult) cuCtxGetCurrent(CUcontext* context) {
  return call(__func__, Needs::init, [&](Driver& driver) {
    *context = handle<CUcontext>(context_of(driver));
    return SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuCtxPushCurrent_v2(CUcontext context) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    const std::uint64_t before = context_of(driver);
    if (!driver.set_current(number(context))) return INVALID_CONTEXT;
    below.push_back(before);
    return SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuCtxPopCurrent_v2(CUcontext* context) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (below.empty()) return INVALID_CONTEXT;
    if (context != nullptr) *context = handle<CUcontext>(context_of(driver));
    driver.set_current(below.back());
    below.pop_back();
    return SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuCtxGetDevice(CUdevice* device) {
  return call(__func__, Needs::context, [&](Driver& driver) {
    *device = driver.current();
    return SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuCtxGetFlags(unsigned int* flags) {
  return call(__func__, Needs::context, [&](Driver&) { return *flags = 0, SUCCESS; });
}

LMKV_FAKE(CUresult) cuCtxGetId(CUcontext context, unsigned long long* id) {
  return call(__func__, Needs::init, [&](Driver& driver) {
    *id = context == nullptr ? context_of(driver) : number(context);
    return SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuDevicePrimaryCtxGetState(CUdevice device, unsigned int* flags, int* active) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (device < 0 || device >= driver.settings.devices) return INVALID_DEVICE;
    *flags = 0;
    *active = driver.devices[std::size_t(device)].retained > 0;
    return SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuDeviceGetUuid_v2(void* uuid, CUdevice device) {
  return call(__func__, Needs::init, [&](Driver&) {
    std::fill_n(static_cast<unsigned char*>(uuid), 16, static_cast<unsigned char>(device + 1));
    return SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuDeviceTotalMem_v2(std::size_t* bytes, CUdevice) {
  return call(__func__, Needs::init,
              [&](Driver& driver) { return *bytes = driver.settings.memory, SUCCESS; });
}

LMKV_FAKE(CUresult)
cuPointerGetAttributes(unsigned int count, int* attributes, void** data, CUdeviceptr at) {
  return call(__func__, Needs::init, [&](Driver& driver) {
    for (unsigned int n = 0; n < count; ++n) tell(driver, attributes[n], data[n], at);
    return SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuPointerGetAttribute(void* data, int attribute, CUdeviceptr at) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (driver.memory.find(at) == nullptr) return INVALID_VALUE;
    return tell(driver, attribute, data, at), SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuPointerSetAttribute(const void*, int, CUdeviceptr at) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    return driver.memory.find(at) == nullptr ? INVALID_VALUE : SUCCESS;
  });
}

LMKV_FAKE(CUresult) cuStreamCreate(CUstream* stream, unsigned int flags) {
  return cuStreamCreateWithPriority(stream, flags, 0);
}

LMKV_FAKE(CUresult) cuStreamSynchronize(CUstream stream) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    const Stream* const found = driver.streams.find(number(stream), driver.current());
    if (found == nullptr) return INVALID_HANDLE;
    return ended(driver, *found) ? SUCCESS : LAUNCH_FAILED;
  });
}

LMKV_FAKE(CUresult)
cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  return cuMemcpyAsync(to, from, bytes, stream);
}

LMKV_FAKE(CUresult) cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, std::size_t bytes) {
  const CUresult result = cuMemcpyAsync(to, reinterpret_cast<CUdeviceptr>(from), bytes, nullptr);
  return result == SUCCESS ? cuStreamSynchronize(nullptr) : result;
}

LMKV_FAKE(CUresult)
cuGetProcAddress_v2(const char* symbol, void** found, int, std::uint64_t, int* status) {
  *found = dlsym(RTLD_DEFAULT, symbol);
  if (status != nullptr) *status = *found == nullptr ? 1 : 0;
  return *found == nullptr ? NOT_FOUND : SUCCESS;
}

// What this driver has not: memory in pools, by virtual addresses, managed, and callbacks.
#define LMKV_FAKE_LACKS(name) \
  LMKV_FAKE(CUresult) name() { return NOT_SUPPORTED; }
LMKV_FAKE_LACKS(cuMemAddressFree)
LMKV_FAKE_LACKS(cuMemAddressReserve)
LMKV_FAKE_LACKS(cuMemAllocManaged)
LMKV_FAKE_LACKS(cuMemCreate)
LMKV_FAKE_LACKS(cuMemExportToShareableHandle)
LMKV_FAKE_LACKS(cuMemGetAllocationGranularity)
LMKV_FAKE_LACKS(cuMemGetAllocationPropertiesFromHandle)
LMKV_FAKE_LACKS(cuMemImportFromShareableHandle)
LMKV_FAKE_LACKS(cuMemMap)
LMKV_FAKE_LACKS(cuMemPoolDestroy)
LMKV_FAKE_LACKS(cuMemPoolExportPointer)
LMKV_FAKE_LACKS(cuMemPoolExportToShareableHandle)
LMKV_FAKE_LACKS(cuMemPoolImportFromShareableHandle)
LMKV_FAKE_LACKS(cuMemPoolImportPointer)
LMKV_FAKE_LACKS(cuMemPoolSetAccess)
LMKV_FAKE_LACKS(cuMemRangeGetAttribute)
LMKV_FAKE_LACKS(cuMemRelease)
LMKV_FAKE_LACKS(cuMemRetainAllocationHandle)
LMKV_FAKE_LACKS(cuMemSetAccess)
LMKV_FAKE_LACKS(cuMemUnmap)
LMKV_FAKE_LACKS(cuStreamAddCallback)
}
