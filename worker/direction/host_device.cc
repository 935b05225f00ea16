#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/cpu.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "worker/direction/worker_device.h"

namespace signvote {
namespace {

class HostPacker : public BallotPacker {
 public:
  HostPacker(const Layout* layout, ChunkPlan plan, const DirectionConfig& config)
      : direction_(layout, plan, config), scalars_(plan.chunks()) {}

  absl::Status Start(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) override {
    scalars_[k.value()] = direction_.PackChunk(k, input, ballot);
    return absl::OkStatus();
  }
  absl::StatusOr<bool> Ready(ChunkIndex) override { return true; }
  absl::StatusOr<ChunkScalars> Finish(ChunkIndex k) override { return scalars_[k.value()]; }
  absl::Status ReadState(std::span<float> state) override {
    std::copy(direction_.state().begin(), direction_.state().end(), state.begin());
    return absl::OkStatus();
  }

 private:
  Direction direction_;
  std::vector<ChunkScalars> scalars_;  // [chunks], of the chunk packed last
};

}  // namespace

absl::Status NoCudaDevice(int64_t ordinal, std::string_view why) {
  return WithExitCode(absl::UnavailableError(absl::StrCat(
                          "no CUDA device ", ordinal, ": ", ToAbsl(why),
                          "; use --device cpu or a machine with an NVIDIA GPU")),
                      ExitCode::kNoDevice);
}

std::string HostDevice::name() const {
  return absl::StrCat("cpu (", std::string(IsaName(ActiveIsa())), ")");
}

absl::StatusOr<std::unique_ptr<ReplicaMemory>> HostDevice::MakeReplica(const Layout* layout,
                                                                       std::span<float> x) {
  SIGNVOTE_CHECK(x.size() == layout->coordinates());
  return std::make_unique<HostReplicaMemory>(x);
}

absl::StatusOr<std::unique_ptr<BallotPacker>> HostDevice::MakePacker(
    const Layout* layout, ChunkPlan plan, const DirectionConfig& config) {
  return std::make_unique<HostPacker>(layout, plan, config);
}

}  // namespace signvote
