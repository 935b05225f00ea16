// reference_simulation: a run in one process, for comparison with real ones. Prints one JSON
// object: rounds, coordinates, digest, held_out_first, held_out_last, stepsizes (by round), losses
// (by round: one per share), seconds.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/strings/str_format.h"
#include "common/checksum.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/model_file.h"
#include "common/status.h"
#include "tests/e2e/simulation.h"

namespace signvote {
namespace {

absl::Status Simulate(const SimulationOptions& options, const std::string& save) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Simulation> simulation,
                            Simulation::Create(options));
  nlohmann::ordered_json json;
  SIGNVOTE_ASSIGN_OR_RETURN(const double held_out_first, simulation->HeldOutLoss());
  const Time start = Clock::System()->Now();
  SIGNVOTE_RETURN_IF_ERROR(simulation->Run());
  const double seconds = ToSeconds(Clock::System()->Now() - start);
  SIGNVOTE_ASSIGN_OR_RETURN(const double held_out_last, simulation->HeldOutLoss());
  const std::vector<float> x = simulation->Parameters();
  json["rounds"] = options.rounds;
  json["coordinates"] = x.size();
  json["digest"] = absl::StrFormat("%016x", ReplicaDigest(x.data(), 0, x.size()));
  json["held_out_first"] = held_out_first;
  json["held_out_last"] = held_out_last;
  for (const SimulatedRound& round : simulation->rounds()) {
    json["stepsizes"].push_back(round.stepsize);
    auto& losses = json["losses"].emplace_back();
    for (const WorkerScalars& worker : round.scalars) losses.push_back(worker.loss);
  }
  json["seconds"] = seconds;
  if (!save.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(
        WriteModel(FileSystem::Posix(), save, {}, simulation->layout(), x, {}, /*config_json=*/""));
  }
  std::printf("%s\n", json.dump().c_str());
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  SimulationOptions options;
  std::string save, format = "text", tensor_scale, tensor_decay, tensor_treatment;
  DirectionWords direction;
  double clip_norm = 0;
  CLI::App app("A run in one process, for comparison with real ones.", "reference_simulation");
  app.add_option("--model", options.model);
  app.add_option("--parameter-divisor", options.parameter_divisor);
  app.add_option("--init-seed", options.model_options.init_seed);
  app.add_option("--weight-decay", options.weight_decay);
  app.add_option("--threads", options.model_options.threads);
  app.add_option("--data", options.data.path);
  app.add_option("--data-format", format);
  app.add_option("--batch", options.data.rows);
  app.add_option("--sequence", options.data.length);
  app.add_option("--accumulate", options.accumulate);
  app.add_option("--shares", options.shares);
  app.add_option("--rounds", options.rounds);
  app.add_option("--seed", options.seed);
  app.add_option("--chunk-coordinates", options.chunk_coordinates);
  app.add_option("--rule", options.rule.rule);
  app.add_option("--stepsize", options.rule.stepsize);
  app.add_option("--schedule", options.rule.schedule);
  app.add_option("--alias-option", options.rule.alias_option);
  app.add_option("--direction", direction.name);
  app.add_option("--beta", direction.beta);
  app.add_option("--beta2", direction.beta2);
  app.add_option("--momentum", direction.momentum);
  app.add_option("--noise", direction.noise);
  app.add_option("--noise-decay", direction.noise_decay);
  app.add_flag("--error-feedback", direction.error_feedback);
  app.add_option("--feedback-keep", direction.feedback_keep);
  app.add_option("--state-dtype", direction.state_dtype);
  app.add_option("--tensor-scale", tensor_scale);
  app.add_option("--tensor-decay", tensor_decay);
  app.add_option("--tensor-treatment", tensor_treatment);
  app.add_option("--clip-norm", clip_norm);  // 0: gradients are not clipped
  app.add_option("--save", save);
  CLI11_PARSE(app, argc, argv);
  options.clip_norm = clip_norm > 0 ? std::optional(clip_norm) : std::nullopt;
  const auto simulate = [&]() -> absl::Status {
    SIGNVOTE_ASSIGN_OR_RETURN(options.direction, ParseDirection(direction));
    SIGNVOTE_ASSIGN_OR_RETURN(options.data.format, ParseDataFormat(format));
    for (const auto& parse :
         {run::ParseTensorScales(tensor_scale), run::ParseTensorDecays(tensor_decay),
          run::ParseTensorTreatments(tensor_treatment)}) {
      SIGNVOTE_RETURN_IF_ERROR(parse.status());
      options.tensor_rules.insert(options.tensor_rules.end(), parse->begin(), parse->end());
    }
    return Simulate(options, save);
  };
  const absl::Status status = simulate();
  if (!status.ok()) std::fprintf(stderr, "reference_simulation: %s\n", Describe(status).c_str());
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
