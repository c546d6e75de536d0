// The driver's functions: streams, events, and what is put into streams. Arguments are copied at
// the call; nothing is executed before it returns. (Launched twice with an `arrived` that both
// count in, and nothing in between, is not noticed: one operation is executed at a time.)
#include <algorithm>

#include "driver.h"
#include "say.h"

using namespace lmkv::cuda;
using namespace lmkv::fake;

namespace {

constexpr unsigned kEventFlags = 7;           // blocking sync, no timing, interprocess
constexpr int kDuringCall = 2, kAnyTime = 3;  // CUmemcpySrcAccessOrder, beside COPY_IN_STREAM_ORDER

// A handle that is no more: with a real driver anything may happen.
int no_such(Driver& driver, const char* what, std::uint64_t handle) {
  driver.complaints.push_back(say("there is no ", what, " ", hex(handle), ", or not any more"));
  return INVALID_HANDLE;
}

// `body(driver, stream)`, for a stream of the current context.
template <class Body>
int into_stream(const char* symbol, CUstream stream, Body&& body) {
  return call(symbol, Needs::context, [&](Driver& driver) -> int {
    Stream* const found = driver.streams.find(number(stream), driver.current());
    if (found == nullptr) return no_such(driver, "stream", number(stream));
    return found->device == driver.current() ? int(body(driver, *found)) : int(INVALID_HANDLE);
  });
}

// Memory that a driver does not know: the host's, not registered. It is that from end to end, and
// there; else `valid` is false.
bool pageable(const Driver& driver, Address at, std::size_t bytes, bool to_write, bool& valid) {
  if (driver.memory.find(at) != nullptr) return false;
  valid = valid && driver.memory.find(at + bytes - 1) == nullptr && is_mapped(at, bytes, to_write);
  return true;
}

bool make_piece(const Driver& driver, Address to, Address from, std::size_t bytes, int order,
                Piece& piece) {
  bool valid = bytes > 0;
  const bool host_to = pageable(driver, to, bytes, true, valid);
  const bool host_from = pageable(driver, from, bytes, false, valid);
  piece = {to, from, bytes, host_to, host_from, {}};
  if (!valid) return false;
  if (piece.from_pageable && order == kDuringCall) {
    const auto* const source = reinterpret_cast<const unsigned char*>(from);
    piece.snapshot.assign(source, source + bytes);
  }
  return true;
}

struct Attributes {
  const CUmemcpyAttributes* each;
  const std::size_t* first;
  std::size_t count;

  bool valid(std::size_t copies) const {
    if (each == nullptr || first == nullptr || count == 0 || count > copies || first[0] != 0) {
      return false;
    }
    for (std::size_t n = 0; n < count; ++n) {
      if (each[n].srcAccessOrder < COPY_IN_STREAM_ORDER || each[n].srcAccessOrder > kAnyTime) {
        return false;
      }
      if (first[n] >= copies || (n > 0 && first[n] <= first[n - 1])) return false;
    }
    return true;
  }
  int order(std::size_t copy) const {
    return each[std::upper_bound(first, first + count, copy) - first - 1].srcAccessOrder;
  }
};

int copy_many(const char* symbol, const CUdeviceptr* to, const CUdeviceptr* from,
              const std::size_t* bytes, std::size_t count, const Attributes& attributes,
              CUstream stream) {
  return into_stream(symbol, stream, [&](Driver& driver, Stream& into) -> int {
    if (stream == nullptr || count == 0 || !attributes.valid(count)) return INVALID_VALUE;
    Copying copy{true, std::vector<Piece>(count)};
    for (std::size_t n = 0; n < count; ++n) {
      if (!make_piece(driver, to[n], from[n], bytes[n], attributes.order(n), copy.pieces[n])) {
        return INVALID_VALUE;
      }
    }
    driver.streams.add(into, std::move(copy));
    return SUCCESS;
  });
}

}  // namespace

extern "C" {

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned int flags, int) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    if (stream == nullptr || flags > STREAM_NON_BLOCKING) return INVALID_VALUE;
    *stream = handle<CUstream>(driver.streams.create(driver.current()));
    return SUCCESS;
  });
}

CUresult cuStreamDestroy_v2(CUstream stream) {
  return call(__func__, Needs::cleanup, [&](Driver& driver) -> int {
    if (driver.streams.destroy(number(stream))) return SUCCESS;
    return no_such(driver, "stream", number(stream));
  });
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
  return into_stream(__func__, stream, [&](Driver& driver, Stream& into) -> int {
    const EventRef found = driver.streams.event(number(event));
    if (found == nullptr) return no_such(driver, "event", number(event));
    if (flags != 0) return INVALID_VALUE;
    driver.streams.wait(into, found);
    return SUCCESS;
  });
}

CUresult cuEventCreate(CUevent* event, unsigned int flags) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    if (event == nullptr || (flags & ~kEventFlags) != 0) return INVALID_VALUE;
    const std::uint64_t made = driver.new_handle();
    const bool timed = (flags & EVENT_DISABLE_TIMING) == 0;
    driver.streams.events[made] = std::make_shared<Event>(Event{made, driver.current(), timed});
    *event = handle<CUevent>(made);
    return SUCCESS;
  });
}

CUresult cuEventDestroy_v2(CUevent event) {
  return call(__func__, Needs::cleanup, [&](Driver& driver) -> int {
    if (driver.streams.events.erase(number(event)) == 1) return SUCCESS;
    return no_such(driver, "event", number(event));
  });
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  return into_stream(__func__, stream, [&](Driver& driver, Stream& into) -> int {
    const EventRef found = driver.streams.event(number(event));
    if (found == nullptr) return no_such(driver, "event", number(event));
    if (found->device != into.device) return INVALID_HANDLE;
    driver.streams.record(into, found);
    return SUCCESS;
  });
}

CUresult cuEventQuery(CUevent event) {
  return call(__func__, Needs::init, [&](Driver& driver) -> int {
    const EventRef found = driver.streams.event(number(event));
    if (found == nullptr) return no_such(driver, "event", number(event));
    const int lost = driver.devices[std::size_t(found->device)].lost;
    if (lost != SUCCESS) return lost;
    return found->done() ? SUCCESS : NOT_READY;
  });
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return call(__func__, Needs::context, [&](Driver& driver) -> int {
    const EventRef from = driver.streams.event(number(start));
    const EventRef to = driver.streams.event(number(end));
    if (from == nullptr) return no_such(driver, "event", number(start));
    if (to == nullptr) return no_such(driver, "event", number(end));
    if (!from->timed || !to->timed) return INVALID_HANDLE;
    if (from->recorded == 0 || to->recorded == 0) return INVALID_HANDLE;
    if (!from->done() || !to->done()) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return SUCCESS;
  });
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                        unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                        unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                        void** parameters, void** extra) {
  return into_stream(__func__, stream, [&](Driver& driver, Stream& into) -> int {
    const auto found = driver.functions.find(number(function));
    if (found == driver.functions.end()) return no_such(driver, "function", number(function));
    if (driver.modules.at(found->second.module) != into.device) return INVALID_HANDLE;
    if (parameters == nullptr || parameters[0] == nullptr || extra != nullptr) return INVALID_VALUE;
    const Kernel& kernel = *found->second.kernel;
    const Job job = job_of(kernel, parameters[0]);
    const Grid grid{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
    if (!launchable(kernel, job, grid)) return INVALID_VALUE;
    driver.streams.add(into, Launching{&kernel, job, grid_x});
    return SUCCESS;
  });
}

CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void*), void* argument) {
  return into_stream(__func__, stream, [&](Driver& driver, Stream& into) -> int {
    if (function == nullptr) return INVALID_VALUE;
    driver.streams.add(into, Hosting{function, argument});
    return SUCCESS;
  });
}

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
  return into_stream(__func__, stream, [&](Driver& driver, Stream& into) -> int {
    if (bytes == 0) return SUCCESS;
    Copying copy{false, std::vector<Piece>(1)};
    if (!make_piece(driver, to, from, bytes, kDuringCall, copy.pieces[0])) return INVALID_VALUE;
    driver.streams.add(into, std::move(copy));
    return SUCCESS;
  });
}

CUresult cuMemcpyBatchAsync_v2(CUdeviceptr* to, CUdeviceptr* from, std::size_t* bytes,
                               std::size_t count, CUmemcpyAttributes* attributes,
                               std::size_t* attribute_first, std::size_t attribute_count,
                               CUstream stream) {
  return copy_many(__func__, to, from, bytes, count, {attributes, attribute_first, attribute_count},
                   stream);
}

CUresult cuMemcpyBatchAsync(CUdeviceptr* to, CUdeviceptr* from, std::size_t* bytes,
                            std::size_t count, CUmemcpyAttributes* attributes,
                            std::size_t* attribute_first, std::size_t attribute_count,
                            std::size_t* fail, CUstream stream) {
  const int error = copy_many(__func__, to, from, bytes, count,
                              {attributes, attribute_first, attribute_count}, stream);
  if (error != SUCCESS && fail != nullptr) *fail = count;  // no copy in particular
  return error;
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned int word, std::size_t words, CUstream stream) {
  return into_stream(__func__, stream, [&](Driver& driver, Stream& into) -> int {
    if (to % 4 != 0) return INVALID_VALUE;
    if (words > 0) driver.streams.add(into, Filling{to, word, words});
    return SUCCESS;
  });
}
}
