#pragma once
// A multilayer perceptron, or without hidden layers softmax regression, in plain loops: for tasks so
// small that a library's calls would cost more than their arithmetic.

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "worker/models/model.h"

namespace signvote::lab {

// Model::MakeSource() of such a model.
using SourceMaker = std::function<absl::StatusOr<std::unique_ptr<BallotSource>>(
    const Layout* layout, const DirectionConfig& config, uint64_t seed)>;

// The function, layout and start that worker/models has for this config, on the CPU, with one thread.
// Every sum over k is taken in ascending k, in fp32, with one rounding each product and each sum, so that
// the same bits come out on every machine but for the softmax's exp and log, which are libm's.
// INVALID_ARGUMENT: the config is no perceptron.
// `sources`: null: no run whose direction needs one of its own can be trained with it.
absl::StatusOr<std::unique_ptr<Model>> MakePlainMlp(const ModelConfig& config, uint64_t init_seed,
                                                    SourceMaker sources = nullptr);

}  // namespace signvote::lab
