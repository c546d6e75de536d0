#include "turns.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace lmkv {

namespace {

struct Attributes {  // the first version of sched_attr, see sched_setattr(2)
  std::uint32_t size, policy;
  std::uint64_t flags;
  std::int32_t nice;
  std::uint32_t priority;
  std::uint64_t runtime, deadline, period;  // ns
};
static_assert(sizeof(Attributes) == 48);

}  // namespace

std::uint32_t set_turn([[maybe_unused]] std::uint32_t microseconds) {
#if defined(SYS_sched_setattr) && defined(SYS_sched_getattr)
  Attributes now{};
  if (syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) != 0 || now.policy != 0) return 0;
  now.runtime = std::uint64_t{microseconds} * 1000;
  if (syscall(SYS_sched_setattr, 0, &now, 0) != 0) return 0;
  if (syscall(SYS_sched_getattr, 0, &now, sizeof now, 0) != 0) return 0;
  return static_cast<std::uint32_t>(now.runtime / 1000);
#else
  return 0;
#endif
}

}  // namespace lmkv
