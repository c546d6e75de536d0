// The driver's functions: memory of the device, registered memory of the host, IPC.
#include <algorithm>

#include "driver.h"

using namespace lmkv::cuda;
using namespace lmkv::fake;

namespace {

constexpr unsigned kRegisterFlags =
    HOST_REGISTER_PORTABLE | HOST_REGISTER_DEVICEMAP | HOST_REGISTER_READ_ONLY;

// What goes away is not in use at this moment. (Work that comes later finds it gone.)
template <class Body>
int remove(const char* symbol, Body&& body) {
  return call(symbol, Needs::cleanup, [&](Driver& driver) -> int {
    if (!driver.quiet()) driver.complaints.push_back("an operation on memory does not end");
    return body(driver);
  });
}

}  // namespace

extern "C" {

CUresult cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  return call(__func__, Needs::context, [&](Driver& driver) {
    const std::size_t all = driver.settings.memory;
    const std::size_t taken = driver.memory.allocated(driver.current());
    *total = all;
    *free = all - std::min(all, taken);
    return SUCCESS;
  });
}

CUresult cuMemAlloc_v2(CUdeviceptr* address, std::size_t bytes) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    if (address == nullptr || bytes == 0) return INVALID_VALUE;
    const int device = driver.current();
    const std::size_t taken = driver.memory.allocated(device);
    if (bytes > driver.settings.memory - std::min(driver.settings.memory, taken)) {
      return OUT_OF_MEMORY;
    }
    Address at = 0;
    const int error = driver.memory.allocate(bytes, device, at);
    if (error == SUCCESS) *address = at;
    return error;
  });
}

CUresult cuMemFree_v2(CUdeviceptr address) {
  return remove(__func__, [&](Driver& driver) { return driver.memory.release(address); });
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr address) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    const Address first = driver.memory.whole(address, *bytes);
    if (first == 0) return INVALID_VALUE;
    *base = first;
    return SUCCESS;
  });
}

CUresult cuMemHostRegister_v2(void* address, std::size_t bytes, unsigned int flags) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    if ((flags & ~kRegisterFlags) != 0) return INVALID_VALUE;
    const bool read_only = (flags & HOST_REGISTER_READ_ONLY) != 0;
    if (read_only && !driver.settings.read_only_registration) return NOT_SUPPORTED;
    return driver.memory.enter(Address(address), bytes, read_only);
  });
}

CUresult cuMemHostUnregister(void* address) {
  return remove(__func__, [&](Driver& driver) { return driver.memory.leave(Address(address)); });
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* address, unsigned int flags) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    const Range* const range = driver.memory.find(Address(address));
    if (device == nullptr || flags != 0) return INVALID_VALUE;
    if (range == nullptr || range->kind != Kind::registered) return INVALID_VALUE;
    *device = Address(address);
    return SUCCESS;
  });
}

CUresult cuIpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr address) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    if (handle == nullptr) return INVALID_VALUE;
    return driver.memory.make_handle(address, *handle);
  });
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* address, CUipcMemHandle handle, unsigned int flags) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    if (address == nullptr || flags != IPC_LAZY_PEER_ACCESS) return INVALID_VALUE;
    Address at = 0;
    const int error = driver.memory.open(handle, driver.current(), at);
    if (error == SUCCESS) *address = at;
    return error;
  });
}

CUresult cuIpcCloseMemHandle(CUdeviceptr address) {
  return remove(__func__, [&](Driver& driver) { return driver.memory.close(address); });
}
}
