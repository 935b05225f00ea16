#include "worker/models/model.h"

namespace signvote {

absl::StatusOr<std::unique_ptr<BallotSource>> Model::MakeSource(const Layout*,
                                                                const DirectionConfig&, uint64_t) {
  return std::unique_ptr<BallotSource>();
}

}  // namespace signvote
