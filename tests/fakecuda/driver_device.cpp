// The driver's functions: devices, contexts, modules, and what errors are called.
#include <cstring>

#include "driver.h"
#include "say.h"

using namespace lmkv::cuda;
using namespace lmkv::fake;

namespace {

struct ErrorText {
  int error;
  const char *name, *text;
};

constexpr ErrorText kErrors[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "an argument is wrong"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "there is not so much memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "cuInit was not called"},
    {DEINITIALIZED, "CUDA_ERROR_DEINITIALIZED", "the driver is shutting down"},
    {STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "this is the stub, not a driver"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "there is no device"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "there is no such device"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "this is no image of kernels"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "this thread has no such context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "the image has nothing for this device"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX is too new"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "there is no such object"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "there is no such name"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "it is not done yet"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "memory was touched that is not the device's"},
    {HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "some of this memory is registered already"},
    {HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "this memory is not registered"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "an address is no multiple of what is loaded"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed"},
    {NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED", "this is not permitted"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "this is not supported"},
    {SYSTEM_DRIVER_MISMATCH, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "kernel driver and library are of different versions"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "not while a graph is captured"},
};

int text_of(CUresult error, const char** to, const char* ErrorText::*which) {
  for (const ErrorText& one : kErrors) {
    if (one.error == error) return *to = one.*which, SUCCESS;
  }
  *to = nullptr;
  return INVALID_VALUE;
}

enum : int { PCI_BUS_ID = 33, UNIFIED_ADDRESSING = 41 };  // CUdevice_attribute, that UCX asks for

bool exists(const Driver& driver, CUdevice device) {
  return device >= 0 && device < driver.settings.devices;
}

int write_text(char* to, int length, const std::string& text) {
  if (to == nullptr || length < 1) return INVALID_VALUE;
  std::strncpy(to, text.c_str(), std::size_t(length) - 1);
  to[length - 1] = 0;
  return SUCCESS;
}

bool is_image(const void* image) {
  const auto begins = [&](const char* with) {
    return std::strncmp(static_cast<const char*>(image), with, std::strlen(with)) == 0;
  };
  return begins("\x50\xED\x55\xBA") || begins("\x7F\x45LF") || begins("//") || begins(".version");
}

}  // namespace

extern "C" {

CUresult cuGetErrorName(CUresult error, const char** name) {
  return text_of(error, name, &ErrorText::name);
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  return text_of(error, text, &ErrorText::text);
}

CUresult cuInit(unsigned int flags) {
  return call(__func__, Needs::nothing, [&](Driver& driver) -> int {
    if (flags != 0) return INVALID_VALUE;
    if (driver.settings.devices == 0) return NO_DEVICE;
    driver.initialized = true;
    return SUCCESS;
  });
}

CUresult cuDriverGetVersion(int* version) {
  return call(__func__, Needs::nothing, [&](Driver& driver) {
    *version = driver.settings.driver_version;
    return SUCCESS;
  });
}

CUresult cuDeviceGetCount(int* count) {
  return call(__func__, Needs::init, [&](Driver& driver) {
    *count = driver.settings.devices;
    return SUCCESS;
  });
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (!exists(driver, ordinal)) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
  });
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (!exists(driver, device)) return INVALID_DEVICE;
    return write_text(name, length, driver.settings.name);
  });
}

CUresult cuDeviceGetPCIBusId(char* id, int length, CUdevice device) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (!exists(driver, device)) return INVALID_DEVICE;
    return write_text(id, length, say("0000:0", std::hex, device + 1, ":00.0"));
  });
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (!exists(driver, device)) return INVALID_DEVICE;
    const Settings& settings = driver.settings;
    switch (attribute) {
      case MULTIPROCESSOR_COUNT:
        return *value = settings.multiprocessors, SUCCESS;
      case COMPUTE_CAPABILITY_MAJOR:
        return *value = settings.compute_major, SUCCESS;
      case COMPUTE_CAPABILITY_MINOR:
        return *value = settings.compute_minor, SUCCESS;
      case HOST_REGISTER_SUPPORTED:
        return *value = 1, SUCCESS;
      case READ_ONLY_HOST_REGISTER_SUPPORTED:
        return *value = settings.read_only_registration, SUCCESS;
      case PCI_BUS_ID:
        return *value = device + 1, SUCCESS;
      case UNIFIED_ADDRESSING:
        return *value = 1, SUCCESS;
      default:  // it has nothing else
        return *value = 0, attribute > 0 ? SUCCESS : INVALID_VALUE;
    }
  });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (!exists(driver, device)) return INVALID_DEVICE;
    Device& one = driver.devices[std::size_t(device)];
    if (one.lost != SUCCESS) return one.lost;
    if (one.retained++ == 0) one.context = driver.new_handle();
    *context = handle<CUcontext>(one.context);
    return SUCCESS;
  });
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (!exists(driver, device)) return INVALID_DEVICE;
    Device& one = driver.devices[std::size_t(device)];
    if (one.retained == 0) return INVALID_CONTEXT;
    --one.retained;
    return SUCCESS;
  });
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  return call(__func__, Needs::init, [&](Driver&) -> int {
    if (mode == nullptr || *mode < CAPTURE_GLOBAL || *mode > CAPTURE_RELAXED) return INVALID_VALUE;
    *mode = Driver::exchange_capture_mode(*mode);
    return SUCCESS;
  });
}

CUresult cuCtxSetCurrent(CUcontext context) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    if (!driver.set_current(number(context))) return INVALID_CONTEXT;
    return context == nullptr ? int(SUCCESS) : driver.devices[std::size_t(driver.current())].lost;
  });
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return call(__func__, Needs::context, [&](Driver&) {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return SUCCESS;
  });
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    if (module == nullptr || image == nullptr) return INVALID_VALUE;
    if (!is_image(image)) return INVALID_IMAGE;
    const std::uint64_t made = driver.new_handle();
    driver.modules[made] = driver.current();
    *module = handle<CUmodule>(made);
    return SUCCESS;
  });
}

CUresult cuModuleUnload(CUmodule module) {
  return call(__func__, Needs::cleanup, [&](Driver& driver) -> int {
    const std::uint64_t gone = number(module);
    if (driver.modules.erase(gone) == 0) return INVALID_HANDLE;
    std::erase_if(driver.functions, [&](const auto& each) { return each.second.module == gone; });
    return SUCCESS;
  });
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    if (function == nullptr || name == nullptr) return INVALID_VALUE;
    if (!driver.modules.contains(number(module))) return INVALID_HANDLE;
    const Kernel* const kernel = find_kernel(name);
    if (kernel == nullptr) return NOT_FOUND;
    const std::uint64_t made = driver.new_handle();
    driver.functions[made] = {number(module), kernel};
    *function = handle<CUfunction>(made);
    return SUCCESS;
  });
}
}
