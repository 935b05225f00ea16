#include "common/cpu.h"

#include <cstdlib>
#include <string>

#include "common/status.h"

namespace signvote {

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

Isa DetectIsa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kScalar;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  return Isa::kAvx2;
#else
  return Isa::kScalar;
#endif
}

absl::StatusOr<Isa> ChooseIsa() {
  const Isa best = DetectIsa();
  const char* forced = std::getenv("SIGNVOTE_FORCE_KERNEL");
  if (forced == nullptr || *forced == '\0') return best;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (IsaName(isa) != forced) continue;
    if (isa > best) {
      return absl::FailedPreconditionError(
          "SIGNVOTE_FORCE_KERNEL=" + std::string(forced) + ": this machine runs at most " +
          std::string(IsaName(best)) + "; choose that or unset the variable");
    }
    return isa;
  }
  return absl::InvalidArgumentError(
      "SIGNVOTE_FORCE_KERNEL=" + std::string(forced) +
      ": unknown kernel; choose scalar, avx2 or avx512, or unset the variable");
}

Isa ActiveIsa() {
  static const Isa isa = [] {
    const absl::StatusOr<Isa> chosen = ChooseIsa();
    return chosen.ok() ? *chosen : DetectIsa();
  }();
  return isa;
}

}  // namespace signvote
