#include "isa.h"

#include <atomic>
#include <cstdlib>

#include "check.h"

namespace lmkv {
namespace {

Isa parse(std::string_view wanted, std::string_view source) {
  std::string allowed;
  for (const Isa isa : available_isas()) {
    if (name(isa) == wanted) return isa;
    allowed += (allowed.empty() ? "" : ", ") + std::string(name(isa));
  }
  throw std::invalid_argument(
      sentence(source, ": '", wanted, "' is not available here; allowed: ", allowed));
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa = [] {
    const char* forced = std::getenv("LMKV_ISA");  // NOLINT(concurrency-mt-unsafe): once
    return forced != nullptr && *forced != '\0' ? parse(forced, "LMKV_ISA")
                                                : available_isas().back();
  }();
  return isa;
}

}  // namespace

std::string_view name(Isa isa) {
  constexpr std::string_view names[] = {"scalar", "avx2", "avx512"};
  return names[static_cast<int>(isa)];
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found{Isa::scalar};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) found.push_back(Isa::avx2);
    if (found.back() == Isa::avx2 && __builtin_cpu_supports("avx512f")) {
      found.push_back(Isa::avx512);
    }
#endif
    return found;
  }();
  return isas;
}

Isa active_isa() { return chosen().load(std::memory_order_relaxed); }

void set_isa(std::string_view wanted) {
  chosen().store(parse(wanted, "set_isa"), std::memory_order_relaxed);
}

}  // namespace lmkv
