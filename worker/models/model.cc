#include "worker/models/model.h"

namespace signvote {

absl::StatusOr<std::unique_ptr<BallotSource>> Model::MakeSource(const Layout*,
                                                                const DirectionConfig&, uint64_t) {
  return std::unique_ptr<BallotSource>();
}

absl::Status Model::PutBack(Kept, std::span<const float>) {
  return absl::UnimplementedError("this model takes no copy of another process back");
}

}  // namespace signvote
