#include "server/dense_flags.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "common/flags/flags.h"
#include "common/status.h"

namespace signvote {
namespace {

using OptimizerKind = DenseOptimizer::Kind;

constexpr OptimizerKind kKinds[] = {OptimizerKind::kAdamW, OptimizerKind::kNadamW,
                                    OptimizerKind::kScheduleFree, OptimizerKind::kAliasAdam,
                                    OptimizerKind::kSgd};

std::string NameOfKind(OptimizerKind kind) { return std::string(DenseOptimizerName(kind)); }

// What schedule-free averages are the steps of a stepsize that only ever rises, from z; a decay that all
// replicas apply to y would take x along.
absl::Status CheckScheduleFree(const run::RunOptions& run) {
  if (run.rule.rule != "fixed" || run.rule.schedule != "constant") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--dense-optimizer schedule-free averages its steps in place of a schedule, and the run "
        "has "
        "--rule ",
        run.rule.rule, " --schedule ", run.rule.schedule,
        "; use --rule fixed --schedule constant, with --warmup-rounds where it should rise"));
  }
  const auto& rules = run.model.tensor_rules;
  const bool decays = run.model.weight_decay != 0 ||
                      std::any_of(rules.begin(), rules.end(), [](const run::TensorRule& rule) {
                        return rule.weight_decay.value_or(0) != 0;
                      });
  if (decays) {
    return absl::InvalidArgumentError(
        "--dense-optimizer schedule-free decays no weights: --weight-decay and --tensor-decay "
        "shrink "
        "what workers hold, and its average lies elsewhere; leave them away, or choose another "
        "--dense-optimizer");
  }
  return absl::OkStatus();
}

// What workers send of dense tensors is how far they went, and not a gradient.
absl::Status CheckDiLoCo(const run::RunOptions& run) {
  if (run.model.sizes.dense.optimizer.kind != OptimizerKind::kSgd) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--dense with --local-steps ", run.local_steps.text(),
        " moves by the workers' mean displacement, of which --dense-optimizer ",
        NameOfKind(run.model.sizes.dense.optimizer.kind),
        " knows nothing; give --dense-optimizer sgd, with --dense-momentum and --dense-nesterov "
        "as in DiLoCo"));
  }
  if (const std::string rule = ChosenRule(run.rule, run::RuleRunOf(run)); rule != "fixed") {
    return absl::InvalidArgumentError(
        absl::StrCat("--dense with --local-steps ", run.local_steps.text(),
                     " takes its inner stepsize from --rule fixed, and the rule is ", rule,
                     "; give --rule fixed --stepsize, or leave one of the two away"));
  }
  return absl::OkStatus();
}

}  // namespace

void AddDenseFlags(CLI::App* app, DenseWords* words, run::DenseOptions* dense) {
  DenseOptimizer* const optimizer = &dense->optimizer;
  app->add_option("--dense", words->patterns,
                  "tensors that move by an update of their mean gradient in place of a vote, by "
                  "patterns of their names")
      ->type_name("PATTERN,...")
      ->check(Kind(ValueKind::kText));
  app->add_option("--dense-wire", words->wire,
                  "numbers of dense tensors on the wire, both ways: f32, bf16")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  app->add_option("--dense-optimizer", words->optimizer,
                  "what makes the update of the mean gradient: adamw, nadamw, schedule-free, "
                  "alias-adam, sgd")
      ->capture_default_str()
      ->check(CLI::IsMember({"adamw", "nadamw", "schedule-free", "alias-adam", "sgd"}));
  app->add_option("--dense-momentum", optimizer->momentum, "sgd: its momentum, [0, 1)")
      ->capture_default_str();
  app->add_flag("--dense-nesterov", optimizer->nesterov,
                "sgd: Nesterov's momentum, which looks ahead");
  app->add_option("--dense-beta1", optimizer->beta1,
                  "all but sgd: the first momentum, [0, 1); schedule-free: how much of its average "
                  "is in the parameters that workers hold")
      ->capture_default_str();
  app->add_option("--dense-beta2", optimizer->beta2, "all but sgd: the second momentum, [0, 1)")
      ->capture_default_str();
  app->add_option("--dense-epsilon", optimizer->epsilon, "all but sgd: added to the root, > 0")
      ->capture_default_str();
  app->add_option("--dense-stepsize", dense->stepsize,
                  "with --local-steps: how far the update of the workers' mean displacement moves "
                  "a dense tensor, > 0 (DiLoCo's outer learning rate)")
      ->capture_default_str()
      ->check(CLI::Range(1e-6, 1e6));
  app->add_option("--dense-d0", optimizer->d0, "alias-adam: the scale that it begins with, > 0")
      ->capture_default_str();
}

absl::Status FinishDense(const DenseWords& words, run::RunOptions* run) {
  run::DenseOptions& dense = run->model.sizes.dense;
  DenseOptimizer& optimizer = dense.optimizer;
  dense.wire = words.wire == "f32" ? PayloadKind::kFp32 : PayloadKind::kBf16;
  optimizer.kind =
      *std::find_if(std::begin(kKinds), std::end(kKinds),
                    [&words](OptimizerKind kind) { return NameOfKind(kind) == words.optimizer; });
  const bool any = run::AnyDense(run->model.tensor_rules);
  const bool sgd = any && optimizer.kind == OptimizerKind::kSgd;
  const bool adam = any && !sgd;
  const bool alias = any && optimizer.kind == OptimizerKind::kAliasAdam;
  const DenseWords usual_words;
  const DenseOptimizer usual;
  const char* const kSgd = "--dense with --dense-optimizer sgd";
  const char* const kAdam =
      "--dense with --dense-optimizer adamw, nadamw, schedule-free or alias-adam";
  const std::tuple<const char*, const char*, bool> flags[] = {
      {"--dense", "--dense-wire", any || words.wire == usual_words.wire},
      {"--dense", "--dense-optimizer", any || words.optimizer == usual_words.optimizer},
      {kSgd, "--dense-momentum", sgd || optimizer.momentum == usual.momentum},
      {kSgd, "--dense-nesterov", sgd || !optimizer.nesterov},
      {kAdam, "--dense-beta1", adam || optimizer.beta1 == usual.beta1},
      {kAdam, "--dense-beta2", adam || optimizer.beta2 == usual.beta2},
      {kAdam, "--dense-epsilon", adam || optimizer.epsilon == usual.epsilon},
      {"--dense with --local-steps", "--dense-stepsize",
       (any && run->local_steps.on()) || dense.stepsize == run::DenseOptions().stepsize},
      {"--dense with --dense-optimizer alias-adam", "--dense-d0",
       alias || optimizer.d0 == usual.d0},
  };
  for (const auto& [owner, flag, fits] : flags) {
    if (fits) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " belongs to ", owner, "; give that too, or leave it away"));
  }
  SIGNVOTE_RETURN_IF_ERROR(CheckDenseOptimizer(optimizer));
  if (any && run->local_steps.on()) SIGNVOTE_RETURN_IF_ERROR(CheckDiLoCo(*run));
  if (!any || optimizer.kind != OptimizerKind::kScheduleFree) return absl::OkStatus();
  optimizer.warmup_steps = run->rule.warmup_rounds;
  optimizer.last_step = run->main_rounds_max;
  return CheckScheduleFree(*run);
}

}  // namespace signvote
