// A program for the thread sanitizer: many threads use the fake at once, each its own stream, event
// and memory, while one holds and releases all. Exit status 0: every thread found its bytes.
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "driver.h"

extern "C" {
bool lmkv_fake_hold_all(bool hold);
bool lmkv_fake_drain(double seconds);
const char* lmkv_fake_read(const char* what);
}

namespace {

using namespace lmkv::cuda;

constexpr int kThreads = 4, kRounds = 50, kWords = 256;

std::atomic<int> failures = 0;
void good(bool is, const char* what) {
  if (!is) std::printf("wrong: %s\n", what), ++failures;
}

void one(CUcontext context, unsigned number) {
  CUstream fills, copies;
  CUevent filled, copied;
  CUdeviceptr at;
  std::vector<unsigned> host(kWords);
  const auto host_at = reinterpret_cast<CUdeviceptr>(host.data());
  good(cuCtxSetCurrent(context) == SUCCESS, "the context");
  cuStreamCreateWithPriority(&fills, STREAM_NON_BLOCKING, 0);
  cuStreamCreateWithPriority(&copies, STREAM_NON_BLOCKING, 0);
  cuEventCreate(&filled, EVENT_DISABLE_TIMING), cuEventCreate(&copied, EVENT_DISABLE_TIMING);
  good(cuMemAlloc_v2(&at, kWords * 4) == SUCCESS, "memory");
  good(cuMemHostRegister_v2(host.data(), kWords * 4, 0) == SUCCESS, "registration");
  for (unsigned round = 0; round < kRounds; ++round) {
    const unsigned word = number << 16 | round;
    cuMemsetD32Async(at, word, kWords, fills);
    cuEventRecord(filled, fills);
    cuStreamWaitEvent(copies, filled, 0);
    cuMemcpyAsync(host_at, at, kWords * 4, copies);
    cuEventRecord(copied, copies);
    while (cuEventQuery(copied) == NOT_READY) std::this_thread::yield();
    good(host.front() == word && host.back() == word, "the bytes of a thread");
  }
  cuMemHostUnregister(host.data());
  cuMemFree_v2(at);
  cuEventDestroy_v2(filled), cuEventDestroy_v2(copied);
  cuStreamDestroy_v2(fills), cuStreamDestroy_v2(copies);
}

}  // namespace

int main() {
  CUcontext context;
  cuInit(0);
  good(cuDevicePrimaryCtxRetain(&context, 0) == SUCCESS, "retaining the context");
  std::atomic<int> running = kThreads;
  std::vector<std::thread> threads;
  for (unsigned n = 0; n < kThreads; ++n) {
    threads.emplace_back([&, n] { one(context, n), --running; });
  }
  for (bool hold = true; running > 0; hold = !hold) {
    lmkv_fake_hold_all(hold);
    std::this_thread::yield();
  }
  for (std::thread& thread : threads) thread.join();
  lmkv_fake_hold_all(false);
  good(lmkv_fake_drain(10), "the end of all work");
  cuDevicePrimaryCtxRelease_v2(0);
  good(*lmkv_fake_read("live") == 0, "nothing is left");
  good(*lmkv_fake_read("complaints") == 0, "nothing was wrong");
  return failures != 0;
}
