#pragma once
// A whole run without network: the real directions, tally and apply, one call after the other. The
// paper tests state what papers claim about these three.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/apply.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/layout.h"
#include "common/payload_plan.h"
#include "common/vote_terms.h"
#include "server/tally/tally.h"
#include "worker/direction/direction.h"

namespace signvote {

struct VoteLoopOptions {
  size_t workers = 1;
  DirectionConfig direction;
  float weight_decay = 0.0f;
  uint64_t seed = 1;
  Aggregate aggregate = Aggregate::kVote;
};

// Threads: one.
class VoteLoop {
 public:
  VoteLoop(std::vector<float> x0, VoteLoopOptions options)
      : x_(std::move(x0)),
        options_(options),
        layout_(MakeLayout(x_.size(), options.weight_decay)),
        plan_(x_.size(), kChunkCoordinatesMultiple) {
    for (size_t j = 0; j < options.workers; ++j) {
      directions_.push_back(std::make_unique<Direction>(&layout_, plan_, options.direction));
    }
  }

  // One round: gradients[j] is worker j's, at x().
  void Step(const std::vector<std::vector<float>>& gradients, float gamma) {
    SIGNVOTE_CHECK(gradients.size() == directions_.size());
    const auto n = static_cast<uint32_t>(directions_.size());
    const bool average = options_.aggregate == Aggregate::kAverage;
    // An average's planes are those of one chunk at a time.
    std::vector<uint8_t> payload(plan_.TotalBytes() * (average ? CountPlanes(n) : 1));
    std::vector<std::vector<uint8_t>> ballots(directions_.size(),
                                              std::vector<uint8_t>(plan_.TotalBytes()));
    for (const auto& direction : directions_) direction->Begin();
    for (uint32_t c = 0; c < plan_.chunks(); ++c) {
      const ChunkIndex k(c);
      std::vector<const uint8_t*> chunks;
      for (size_t j = 0; j < directions_.size(); ++j) {
        uint8_t* const ballot = ballots[j].data() + plan_.ByteOffset(k);
        directions_[j]->PackChunk(k,
                                  {.g = PointersInto<const float>(layout_, gradients[j].data()),
                                   .seed = options_.seed,
                                   .round = round_,
                                   .share = Share(static_cast<uint32_t>(j))},
                                  ballot);
        chunks.push_back(ballot);
      }
      const TallyInput input{.ballots = chunks,
                             .coordinates = plan_.Count(k),
                             .first_coordinate = plan_.First(k),
                             .seed = options_.seed,
                             .round = round_};
      if (average) {
        TallyCounts(input, payload.data());
        ApplyCounts(layout_, {.gamma = gamma}, plan_.First(k), plan_.Count(k),
                    {.planes = payload.data(),
                     .plane_bytes = BytesForBits(plan_.Count(k)),
                     .ballots = n,
                     .first = plan_.First(k)},
                    nullptr, x_.data() + plan_.First(k));
      } else {
        Tally(input, payload.data() + plan_.ByteOffset(k));
      }
    }
    if (!average) ApplyStep(layout_, gamma, 0, x_.size(), payload.data(), 0, x_.data());
    round_ = round_.next();
  }

  // x back into [−edge, edge].
  void Clamp(float edge) {
    for (float& v : x_) v = std::clamp(v, -edge, edge);
  }

  const std::vector<float>& x() const { return x_; }
  const Layout& layout() const { return layout_; }

 private:
  static Layout MakeLayout(uint64_t coordinates, float weight_decay) {
    TensorSpec tensor;
    tensor.name = "x";
    tensor.shape = {coordinates};
    tensor.weight_decay = weight_decay;
    std::vector<TensorSpec> tensors;
    tensors.push_back(std::move(tensor));
    return *Layout::Make(std::move(tensors));
  }

  std::vector<float> x_;
  VoteLoopOptions options_;
  Layout layout_;
  ChunkPlan plan_;
  std::vector<std::unique_ptr<Direction>> directions_;
  Round round_{};
};

}  // namespace signvote
