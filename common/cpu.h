#pragma once
// Which kernels this machine can run, decided once per process.

#include <string_view>

#include "absl/status/statusor.h"

namespace signvote {

enum class Isa { kScalar, kAvx2, kAvx512 };  // ordered: a later one implies the earlier ones

std::string_view IsaName(Isa isa);  // "scalar", "avx2", "avx512"
// The best that CPU and operating system support (AVX-512 means F, BW, DQ, VL; AVX2 includes FMA).
Isa DetectIsa();
// DetectIsa(), or what SIGNVOTE_FORCE_KERNEL names. INVALID_ARGUMENT for an unknown name,
// FAILED_PRECONDITION for one that this machine cannot run. main() calls it once and fails early;
// kernel tables use ActiveIsa().
absl::StatusOr<Isa> ChooseIsa();
// The choice; falls back to DetectIsa() if ChooseIsa() fails (main has refused to start by then).
Isa ActiveIsa();

// A kernel's tables, one per instruction set.
template <typename Table>
struct TablesByIsa {
  const Table& scalar;
  const Table& avx2;
  const Table& avx512;

  // REQUIRES: this machine can run `isa`.
  const Table& For(Isa isa) const {
    switch (isa) {
      case Isa::kAvx512:
        return avx512;
      case Isa::kAvx2:
        return avx2;
      case Isa::kScalar:
        break;
    }
    return scalar;
  }
};

}  // namespace signvote
