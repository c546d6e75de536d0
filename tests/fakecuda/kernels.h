// The kernels as a module has them: names, what a launch must look like, which memory it touches,
// and the launch itself, played by the bodies (tests/kernels/play.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "jobs.h"
#include "memory.h"

namespace lmkv::fake {

enum class Does { gather, scatter, verify, audit, clear, publish, hash };

struct Kernel {
  const char* name;
  Does does;
  std::uint32_t piece;  // bytes of an access to pages or tokens
};

using Job = std::variant<CopyJob, HeaderJob, HashJob>;

struct Grid {
  unsigned blocks[3], threads[3], shared_bytes;
};

const Kernel* find_kernel(std::string_view name);  // nullptr: no such entry point

// The job, copied as a driver copies a kernel's parameter.
Job job_of(const Kernel& kernel, const void* parameter);
bool launchable(const Kernel& kernel, const Job& job, const Grid& grid);
std::uint64_t moved_bytes(const Job& job);

// What the launch would do to memory.
struct Judgement {
  int error = cuda::SUCCESS;  // the context is lost
  std::string why;
  std::vector<std::string> complaints;  // it runs, and is wrong
};
Judgement judge(const Kernel& kernel, const Job& job, const Memory& memory);

void play(const Kernel& kernel, const Job& job, std::uint32_t blocks, std::uint64_t seed);

}  // namespace lmkv::fake
