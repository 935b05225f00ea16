#include "absl/strings/str_cat.h"
#include "common/cpu.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "worker/direction/checks.h"
#include "worker/direction/worker_device.h"

namespace signvote {
namespace {

class HostPacker : public BallotPacker {
 public:
  HostPacker(const Layout* layout, ChunkPlan plan, const DirectionConfig& config)
      : layout_(layout),
        plan_(plan),
        config_(config),
        direction_(layout, plan, config),
        scalars_(plan.chunks()) {}

  absl::Status Begin() override {
    direction_.Begin();
    return absl::OkStatus();
  }
  absl::Status Start(ChunkIndex k, const Direction::ChunkInput& input, uint8_t* ballot) override {
    SIGNVOTE_RETURN_IF_ERROR(CheckChunkInput(*layout_, plan_, k, input));
    scalars_[k.value()] = direction_.PackChunk(k, input, ballot);
    return absl::OkStatus();
  }
  absl::StatusOr<bool> Ready(ChunkIndex k) override {
    SIGNVOTE_RETURN_IF_ERROR(CheckChunk(plan_, k));
    return true;
  }
  absl::StatusOr<ChunkScalars> Finish(ChunkIndex k) override {
    SIGNVOTE_RETURN_IF_ERROR(CheckChunk(plan_, k));
    return scalars_[k.value()];
  }
  absl::StatusOr<ChunkScalars> Sums(ConstTensorPointers g, const uint8_t* prev_verdict) override {
    SIGNVOTE_RETURN_IF_ERROR(CheckGradient(*layout_, g));
    return direction_.Sums(g, prev_verdict);
  }
  absl::Status Step(const Direction::StepInput& input) override {
    SIGNVOTE_RETURN_IF_ERROR(CheckStep(*layout_, config_, input));
    direction_.Step(input);
    return absl::OkStatus();
  }
  absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes) override {
    return direction_.SaveState(plane, first, bytes);
  }
  absl::Status RestoreState(size_t plane, uint64_t first,
                            std::span<const std::byte> bytes) override {
    return direction_.RestoreState(plane, first, bytes);
  }
  absl::Status Reset() override {
    direction_.Reset();
    return absl::OkStatus();
  }

 private:
  const Layout* const layout_;
  const ChunkPlan plan_;
  const DirectionConfig config_;
  Direction direction_;
  std::vector<ChunkScalars> scalars_;  // [chunks], of the chunk packed last
};

}  // namespace

absl::StatusOr<std::optional<int>> ParseDevice(std::string_view word) {
  constexpr std::string_view kCuda = "cuda";
  constexpr size_t kDigitsMax = 3;
  if (word == "cpu") return std::optional<int>();
  if (word == kCuda) return std::optional<int>(0);
  bool valid = word.substr(0, kCuda.size() + 1) == "cuda:";
  const std::string_view digits = valid ? word.substr(kCuda.size() + 1) : "";
  valid = !digits.empty() && digits.size() <= kDigitsMax;
  int ordinal = 0;
  for (const char c : digits) {
    valid = valid && c >= '0' && c <= '9';
    ordinal = ordinal * 10 + (c - '0');
    if (!valid) break;
  }
  if (!valid) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device ", ToAbsl(word), ": choose cpu, cuda or cuda:N"));
  }
  return std::optional<int>(ordinal);
}

absl::Status NoCudaDevice(int64_t ordinal, std::string_view why) {
  return WithExitCode(
      absl::UnavailableError(absl::StrCat("no CUDA device ", ordinal, ": ", ToAbsl(why),
                                          "; use --device cpu or a machine with an NVIDIA GPU")),
      ExitCode::kNoDevice);
}

std::string HostDevice::name() const {
  return absl::StrCat("cpu (", std::string(IsaName(ActiveIsa())), ")");
}

std::shared_ptr<std::pmr::memory_resource> HostDevice::host_memory() {
  // The standard's own, which nobody destroys.
  return {std::pmr::new_delete_resource(), [](std::pmr::memory_resource*) {}};
}

absl::StatusOr<std::unique_ptr<ReplicaMemory>> HostDevice::MakeReplica(const Layout* layout,
                                                                       TensorPointers x) {
  SIGNVOTE_RETURN_IF_ERROR(CheckReplicaPointers(*layout, x.size()));
  return std::make_unique<HostReplicaMemory>(*layout, x);
}

absl::Status HostDevice::CopyToHost(const float* from, std::span<float> values) {
  std::copy_n(from, values.size(), values.begin());
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BallotPacker>> HostDevice::MakePacker(
    const Layout* layout, ChunkPlan plan, const DirectionConfig& config) {
  SIGNVOTE_RETURN_IF_ERROR(CheckPlan(*layout, plan));
  return std::make_unique<HostPacker>(layout, plan, config);
}

}  // namespace signvote
