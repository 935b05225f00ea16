#pragma once
// Memory of a GPU for the self-test; a build without CUDA has it all the same.

#include <memory>

#include "absl/status/statusor.h"
#include "worker/selftest/selftest.h"

namespace signvote {

// Of GPU number `ordinal`. UNAVAILABLE with exit code kNoDevice, as MakeCudaDevice().
absl::StatusOr<std::unique_ptr<SelftestMemory>> MakeCudaSelftestMemory(int ordinal);

}  // namespace signvote
