#pragma once
// Compares a device with the definitions, bit for bit, and measures how near it comes to its own
// memory's speed: what a user with a GPU runs (`signvote-worker --selftest --device cuda`), and
// what the tests run on every device there is.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "worker/direction/worker_device.h"

namespace signvote {

// Memory of a device for the test's gradients and replicas. Each call waits until it is done.
class SelftestMemory {
 public:
  virtual ~SelftestMemory() = default;
  // Memory for `count` values that lives until FreeAll(), aligned as the device's own allocator
  // does.
  virtual absl::StatusOr<std::span<float>> Allocate(uint64_t count) = 0;
  virtual void FreeAll() = 0;
  virtual absl::Status Write(float* to, std::span<const float> from) = 0;
  virtual absl::Status Read(std::span<float> to, const float* from) = 0;
  // From one array of the device to another.
  virtual absl::Status CopyWithin(float* to, const float* from, uint64_t count) = 0;
  // Packing g (Signum) and moving x without the bits' way from and to the host; each call waits
  // until it is done. Nothing on a device whose memory the host shares.
  struct Kernels {
    std::function<absl::Status()> pack, apply;
  };
  virtual absl::StatusOr<std::optional<Kernels>> KernelsAlone(std::span<const float> g,
                                                              std::span<float> x) {
    (void)g, (void)x;  // no bits travel
    return std::optional<Kernels>();
  }
};

class HostSelftestMemory : public SelftestMemory {
 public:
  absl::StatusOr<std::span<float>> Allocate(uint64_t count) override;
  void FreeAll() override { arrays_.clear(); }
  absl::Status Write(float* to, std::span<const float> from) override;
  absl::Status Read(std::span<float> to, const float* from) override;
  absl::Status CopyWithin(float* to, const float* from, uint64_t count) override;

 private:
  std::vector<std::unique_ptr<float[]>> arrays_;
};

struct SelftestOptions {
  uint64_t seed = 1;
  // Every so many of the cases, from the seed's on: for slow devices, which take turns over several
  // seeds.
  uint64_t every = 1;
  // Coordinates of the model whose rates are measured; 0: none are.
  uint64_t rate_coordinates = uint64_t{1} << 26;
  int repetitions = 9;
};

struct SelftestReport {
  struct Rate {
    std::string name;
    double bytes_per_second = 0;
    // the median ratio to a copy within the device's memory, taken in the same repetition
    double of_copy = 0;
  };
  std::string device;
  uint64_t cases = 0, rounds = 0, coordinates = 0;  // compared
  // "copy", "pack" (Signum), "apply", with the bits' way; on a GPU also "pack kernel", "apply
  // kernel" without.
  std::vector<Rate> rates;
};

// INTERNAL names the first difference: what, where, in which case. Errors of the device are passed
// on.
absl::StatusOr<SelftestReport> RunSelftest(WorkerDevice* device, SelftestMemory* memory,
                                           Clock* clock, const SelftestOptions& options);

// A few lines for a person.
std::string SelftestText(const SelftestReport& report);

}  // namespace signvote
