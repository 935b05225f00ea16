#include "server/flags.h"
#include "common/message_size.h"

#include <string_view>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/direction_config.h"
#include "common/exit_codes.h"
#include "common/flags/flags.h"
#include "common/host_port.h"
#include "common/layout.h"
#include "common/local_direction.h"
#include "common/process.h"
#include "common/status.h"
#include "server/dense_flags.h"
#include "server/tally/tally.h"

namespace signvote {
namespace {

constexpr uint16_t kDefaultPort = 7070;
constexpr double kSecondsMax = 1e7;
constexpr uint64_t kMinuteMs = 60'000;
constexpr uint64_t kRoundsMax = uint64_t{1} << 40;
constexpr uint64_t kCatchUpBytesMax = uint64_t{1} << 40;
constexpr double kEta0Max = 1e300;
constexpr uint64_t kWarmInMax = 1'000'000;
// What hurts of a newcomer is its momentum, which one round of local steps warms up.
constexpr uint32_t kLocalWarmIn = 1;

struct JournalWords {
  std::string durability = "sync", snapshot_every = "auto";
  double return_wait_seconds = 5;
};

// Durations as flags have them.
struct Raw {
  std::string deadline = "auto";
  uint64_t deadline_floor_ms = 500, deadline_ceiling_ms = 1500, deadline_initial_ms = kMinuteMs;
  double wait_timeout = 3600, linger = 30, upload_timeout = 60;
  DirectionWords direction;
  std::string clip = "off";
  double clip_norm = 1;
  std::string tensor_scale, tensor_decay, tensor_treatment;
  struct {
    std::string aggregate = "auto", warm_in = "auto", local_steps = "1";
  } rounds;
  DenseWords dense;
  std::string catch_up_bytes = "auto";
  std::string alias_eta0 = "auto";
  uint64_t test_applier_delay_ms = 0;
  std::string init_as = "auto";
  std::string export_every = "0", export_dtype = "f32";
  double linger_export = 600;
  JournalWords journal;
  std::string log_level = "info", log_format = "text";
  bool print_config = false;
};

bool IsLoopbackHost(std::string_view host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

void AddFlags(CLI::App* app, ServerFlags* f, Raw* raw) {
  run::RunOptions& r = f->run;
  run::ModelSizes& sizes = r.model.sizes;
  // The heading of --help and of the man page under which the options that follow stand.
  const auto group = [app](const char* name) {
    app->option_defaults()->group(name);
    return app;
  };

  auto* net = group("Network");
  net->add_option("--listen", f->listen,
                  "ADDRESS:PORT for workers [0.0.0.0:7070; 127.0.0.1:7070 with --insecure]")
      ->type_name("ADDRESS:PORT")
      ->check(Kind(ValueKind::kListen));
  net->add_option("--http", f->http,
                  "ADDRESS:PORT for /metrics, /healthz, /readyz, /api/v1/status; 'off': none")
      ->type_name("ADDRESS:PORT")
      ->capture_default_str()
      ->check(Kind(ValueKind::kListen));
  net->add_option("--tls-ca", f->tls_ca, "PEM file: who may sign the workers' certificates")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  net->add_option("--tls-certificate", f->tls_certificate, "PEM file: the server's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  net->add_option("--tls-key", f->tls_key, "PEM file: its key; readable by its owner only")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  net->add_option("--tokens", f->tokens,
                  "file with one line \"NAME TOKEN\" per worker; readable by its owner only; read "
                  "again on SIGHUP")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  net->add_flag("--insecure", f->insecure,
                "plaintext, on this machine only; tokens only with --tokens");
  net->add_option("--insecure-bind", f->insecure_bind,
                  "with --insecure: the address to bind instead of loopback")
      ->type_name("ADDRESS")
      ->check(Kind(ValueKind::kHost));
  net->add_option("--port-file", f->port_file, "write the bound ports as JSON once listening")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kNewFile));

  auto* run = group("Run");
  run->add_option(
         "--max-rounds,--rounds", r.main_rounds_max,
         "the run ends after this many main rounds; those of a race of stepsizes, a quarter of "
         "them at most, come on top")
      ->check(UnsignedBetween(1, kRoundsMax));
  run->add_option("--workers-min", r.workers_min, "round 0 waits for this many workers")
      ->capture_default_str()
      ->check(UnsignedBetween(1, kTallyBallotsMax - 1));
  run->add_option("--quorum", r.quorum,
                  "ballots or abstentions that a deadline needs; 0: half of the members")
      ->capture_default_str()
      ->check(UnsignedBetween(0, kTallyBallotsMax - 1));
  run->add_option("--deadline", raw->deadline,
                  "auto: silent workers are not waited for; off: every live one is")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "off"}));
  run->add_option("--deadline-floor-ms", raw->deadline_floor_ms,
                  "shortest grace after the slowest regular worker")
      ->capture_default_str()
      ->check(UnsignedBetween(0, 60 * kMinuteMs));
  run->add_option("--deadline-ceiling-ms", raw->deadline_ceiling_ms, "longest grace")
      ->capture_default_str()
      ->check(UnsignedBetween(0, 60 * kMinuteMs));
  run->add_option("--deadline-initial-ms", raw->deadline_initial_ms,
                  "deadline while no arrival is known")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 24 * 60 * kMinuteMs));
  run->add_option("--deadline-growth", r.deadline.growth,
                  "a member is waited for at most this many times as long as its own first rounds "
                  "took")
      ->capture_default_str()
      ->check(NumberBetween(2, 1000));
  run->add_option("--observer-after", r.observer_after,
                  "abstentions in a row that make a member an observer")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 1'000'000));
  run->add_option("--warm-in", raw->rounds.warm_in,
                  "rounds for which the ballots of a worker that joins the running run have weight "
                  "0; auto: 0, with --local-steps 1")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto"}) | UnsignedBetween(0, kWarmInMax))
      ->check(Kind(ValueKind::kText));
  run->add_option("--nonfinite-rounds", r.nonfinite_rounds,
                  "rounds in a row without any finite loss that end the run")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 1'000'000));
  run->add_option("--share-hold", r.share_hold_rounds,
                  "rounds for which a lost worker's share stays reserved")
      ->capture_default_str()
      ->check(AnyUnsigned(kRoundsMax));
  run->add_option("--digest-every", r.digest_every,
                  "rounds between comparisons of replicas; 0: only at the end")
      ->capture_default_str()
      ->check(AnyUnsigned());
  run->add_option("--eval-every", r.evaluate_every,
                  "rounds between held-out losses, each measured by one of the workers that can; "
                  "0: none is asked for")
      ->capture_default_str()
      ->check(AnyUnsigned());
  run->add_option("--wait-timeout", raw->wait_timeout,
                  "seconds to wait for workers, a quorum or a step before giving up")
      ->capture_default_str()
      ->check(NumberBetween(0.001, kSecondsMax));
  run->add_option("--linger", raw->linger, "seconds to wait for final digests")
      ->capture_default_str()
      ->check(NumberBetween(0, kSecondsMax));
  run->add_option("--upload-timeout", raw->upload_timeout,
                  "seconds within which an uploader must make progress, else the lease goes on")
      ->capture_default_str()
      ->check(NumberBetween(0.001, kSecondsMax));
  run->add_option("--chunk-coordinates", sizes.chunk_coordinates,
                  "coordinates per chunk, a multiple of 512; 0: automatic")
      ->capture_default_str()
      ->check(UnsignedBetween(0, uint64_t{1} << 32));
  run->add_option("--seed", r.seed, "seed of coins and minibatches")
      ->capture_default_str()
      ->check(AnyUnsigned());
  run->add_option(
         "--init", f->init_path,
         "the initial parameters: a safetensors file, its index, or the folder of either; else "
         "the first worker's own")
      ->type_name("PATH")
      ->check(Kind(ValueKind::kPath));
  run->add_option("--init-as", raw->init_as,
                  "when --init is a worker's --save of a run: continue, the run goes on from "
                  "there, with its "
                  "round and rule; new, another one begins with these parameters; auto: continue, "
                  "unless the "
                  "run is over or the file carries none")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "continue", "new"}));
  run->add_option("--export", f->exports.path, "write the final model here (safetensors)")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kNewModel));
  run->add_option(
         "--export-every", raw->export_every,
         "copies of the model meanwhile, beside --export and named after their round: every "
         "so many rounds (200) or so often (90s, 10m, 2h); 0: none")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  run->add_option("--export-keep", f->exports.keep, "how many of those copies are kept")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 1'000'000));
  run->add_option(
         "--export-dtype", raw->export_dtype,
         "how the numbers of --export and its copies are stored: f32; bf16, rounded to half "
         "the bytes")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  run->add_option("--export-shard-bytes", f->exports.format.shard_bytes,
                  "a model of more bytes is written as several files behind an index; 0: one file")
      ->capture_default_str()
      ->check(AnyUnsigned());
  run->add_option(
         "--linger-export", raw->linger_export,
         "seconds for which a model that cannot be written is held, so that it can be saved "
         "elsewhere")
      ->capture_default_str()
      ->check(NumberBetween(0, kSecondsMax));

  auto* journal = group("Journal");
  journal
      ->add_option("--journal", f->journal.path,
                   "folder for every commit and snapshots of the run: a server that is started on "
                   "it goes on where the last one ended; else a crash loses the run")
      ->type_name("DIR")
      ->check(Kind(ValueKind::kNewFolder));
  journal
      ->add_option(
          "--durability", raw->journal.durability,
          "a commit is told to workers: sync, once it is on the disk; group, once the operating "
          "system has it, synced within 200 ms; none, at once")
      ->capture_default_str()
      ->check(CLI::IsMember({"sync", "group", "none"}));
  journal
      ->add_option("--snapshot-every", raw->journal.snapshot_every,
                   "rounds between snapshots; auto: when a start would have to replay 2 s")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto"}) | UnsignedBetween(1, kRoundsMax))
      ->check(Kind(ValueKind::kText));
  journal->add_option("--snapshots-keep", f->journal.snapshots.keep, "how many snapshots are kept")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 1'000'000));
  journal
      ->add_option(
          "--return-wait", raw->journal.return_wait_seconds,
          "seconds for which the first round after a start on a journal, or from a worker's "
          "save (--init), waits for the workers that took part before")
      ->capture_default_str()
      ->check(NumberBetween(0, kSecondsMax));

  auto* method = group("Method");
  method
      ->add_option("--direction", raw->direction.name,
                   "what workers sign: signsgd, signum, nesterov, lion, stosign, adam, sgd, muon")
      ->capture_default_str()
      ->check(CLI::IsMember(
          {"signsgd", "signum", "nesterov", "lion", "stosign", "adam", "sgd", "muon"}));
  method->add_option("--beta", raw->direction.beta, "its momentum, [0, 1)")->capture_default_str();
  method
      ->add_option("--beta2", raw->direction.beta2,
                   "its second momentum (lion, adam), [0, 1); auto: 0.99, adam: 0.999")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  method
      ->add_option("--momentum", raw->direction.momentum, "stosign: off signs the gradient itself")
      ->capture_default_str()
      ->check(CLI::IsMember({"on", "off"}));
  method
      ->add_option(
          "--noise", raw->direction.noise,
          "sign under uniform noise as large as an envelope: off; of each coordinate, kept; "
          "of the tensor, in this round; one; auto: coordinate with stosign, adam and sgd, "
          "else off")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "off", "coordinate", "tensor", "one"}));
  method
      ->add_option("--noise-decay", raw->direction.noise_decay,
                   "of --noise coordinate: what is left of an envelope after a round; below 1 with "
                   "--state-dtype f32 only")
      ->capture_default_str()
      ->check(NumberBetween(0, 1));
  method->add_flag(
      "--error-feedback", raw->direction.error_feedback,
      "signsgd: what the sign takes off is added to the next gradient (an experiment)");
  method
      ->add_option("--feedback-keep", raw->direction.feedback_keep,
                   "of --error-feedback: how much of it is kept from round to round")
      ->capture_default_str()
      ->check(NumberBetween(0, 1));
  method
      ->add_option("--state-dtype", raw->direction.state_dtype,
                   "how workers keep momentum and envelope: f32; bf16, half the memory (what it "
                   "costs a slow momentum: docs/algorithms.md)")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  method
      ->add_option("--clip", raw->clip,
                   "norm: a worker's gradient is shrunk to --clip-norm before its direction; off")
      ->capture_default_str()
      ->check(CLI::IsMember({"off", "norm"}));
  method->add_option("--clip-norm", raw->clip_norm, "of --clip norm: the longest gradient")
      ->capture_default_str()
      ->check(NumberBetween(1e-30, 1e30));
  method
      ->add_option(
          "--aggregate", raw->rounds.aggregate,
          "what a step moves by: vote, the majority's sign; average, the mean of the signs; auto: "
          "vote, with --local-steps average")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "vote", "average"}));
  method
      ->add_option(
          "--local-steps", raw->rounds.local_steps,
          "minibatches that a worker takes for one ballot, which is the sign of where they "
          "led: H, or H0,H1@P,... for H1 once P percent of the run's are taken; 1: a vote "
          "on each")
      ->type_name("H[,H@P...]")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  method
      ->add_option("--weight-decay", r.model.weight_decay,
                   "decoupled weight decay of tensors with two dimensions and more")
      ->capture_default_str()
      ->check(NumberBetween(0, 1));
  method
      ->add_option("--tensor-scale", raw->tensor_scale,
                   "step scale of single tensors: PATTERN=NUMBER, or PATTERN=fan-in for 1/root of "
                   "their inputs; several with commas, the last that fits a name counts")
      ->type_name("PATTERN=SCALE")
      ->check(Kind(ValueKind::kText));
  method
      ->add_option("--tensor-decay", raw->tensor_decay,
                   "weight decay of single tensors in place of --weight-decay")
      ->type_name("PATTERN=DECAY")
      ->check(Kind(ValueKind::kText));
  method
      ->add_option(
          "--tensor-treatment", raw->tensor_treatment,
          "of single tensors: sparse (a gradient of exactly zero casts coins and leaves the "
          "direction's state), plain (muon: no matrix), usual")
      ->type_name("PATTERN=WORD")
      ->check(Kind(ValueKind::kText));
  AddDenseFlags(method, &raw->dense, &sizes.dense);
  method
      ->add_option(
          "--rule", r.rule.rule,
          "who chooses the stepsize: auto (lever; alias in runs of fewer than 640 rounds), alias, "
          "fixed, lever, mechanic, prodigy, sos")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  method->add_option("--stepsize", r.rule.stepsize, "fixed: the stepsize")->capture_default_str();
  method
      ->add_option("--schedule", r.rule.schedule,
                   "fixed, mechanic, prodigy: constant, cosine, linear, wsd")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  method
      ->add_option("--warmup-rounds", r.rule.warmup_rounds,
                   "fixed, mechanic, prodigy: rounds of linear warm-up")
      ->capture_default_str()
      ->check(AnyUnsigned());
  method->add_option("--alias-option", r.rule.alias_option, "alias: I or II")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  method->add_option("--alias-f-min", r.rule.alias_f_min, "alias: a lower bound of the loss")
      ->capture_default_str();
  method->add_option("--alias-d0", r.rule.alias_d0, "alias, option I: the small start of d")
      ->capture_default_str();
  method
      ->add_option(
          "--alias-probe-every", r.rule.alias_probe_every,
          "alias, probes same and directional: every worker probes in every k-th round, in "
          "turns")
      ->capture_default_str()
      ->check(AnyUnsigned());
  method
      ->add_option(
          "--alias-probe", r.rule.alias_probe,
          "alias: how the gradient's change is measured: same (a second gradient of the same "
          "minibatch), directional (likewise, along the verdict), previous (against the last "
          "round's), extrema (only the largest and smallest coordinates)")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  method
      ->add_option("--alias-extrema-scale", r.rule.alias_extrema_scale,
                   "alias, probe extrema: factor of the change; 1 is as published")
      ->capture_default_str();
  method
      ->add_option("--alias-eta0", raw->alias_eta0,
                   "alias: the curvature to begin with, (loss - f-min)/stepsize^2; auto: from the "
                   "stepsize at which the run stood whose model --init names, else 0")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto"}) | NumberBetween(0, kEta0Max))
      ->check(Kind(ValueKind::kText));

  method
      ->add_option("--lever-start", r.rule.lever_start,
                   "lever: the stepsize that its race begins with; from 640 rounds on any will do")
      ->capture_default_str();
  method
      ->add_option("--lever-form", r.rule.lever_form,
                   "lever: full; lite, which never rescales the parameters")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  method
      ->add_option(
          "--lever-race", r.rule.lever_race,
          "lever: on, off: the run begins at --lever-start; auto: on, but off in runs of fewer "
          "than 400 rounds")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  method->add_flag(
      "--length-unknown", r.rule.length_unknown,
      "lever: it is not told --max-rounds, which may then be left away, and goes on in "
      "legs that double: 1000 main rounds, 2000, 4000, …");
  method
      ->add_option(
          "--rival-start", r.rule.rival_start,
          "mechanic, prodigy, sos: the small stepsize to begin with; 0: from the size of the "
          "parameters")
      ->capture_default_str();

  auto* limits = group("Limits");
  limits->add_option("--workers-max", sizes.workers_max, "workers connected at a time")
      ->capture_default_str()
      ->check(UnsignedBetween(1, kTallyBallotsMax - 1));
  limits
      ->add_option("--message-bytes-max", sizes.message_bytes_max, "largest message that is taken")
      ->capture_default_str()
      ->check(UnsignedBetween(uint64_t{2} << 20, uint64_t{1} << 30));
  limits
      ->add_option("--session-buffer-bytes", sizes.session_buffer_bytes,
                   "most bytes queued for one worker")
      ->capture_default_str()
      ->check(UnsignedBetween(uint64_t{1} << 20, uint64_t{1} << 40));
  limits
      ->add_option("--catch-up-bytes", raw->catch_up_bytes,
                   "memory for recent commits, of which at least 4 are kept; auto: 64 MiB, or 8 "
                   "rounds of a larger model")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto"}) | UnsignedBetween(0, kCatchUpBytesMax))
      ->check(Kind(ValueKind::kText));
  limits
      ->add_option("--tally-threads", f->tally_threads,
                   "threads that count ballots; 0: as many as this machine is best with")
      ->capture_default_str()
      ->check(UnsignedBetween(0, 256));

  auto* logs = group("Logs");
  logs->add_option("--log-level", raw->log_level, "debug, info, warning, error")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  logs->add_option("--log-format", raw->log_format, "text or json, on standard error")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  logs->add_option("--round-log", f->round_log_path, "append one JSON line per commit to this file")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kLog));
  logs->add_option("--event-log", f->event_log_path,
                   "append one JSON line per join, loss and the like to this file")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kLog));

  group("Tests")
      ->add_option("--test-applier-delay-ms", raw->test_applier_delay_ms,
                   "delay before each commit's application")
      ->capture_default_str()
      ->check(AnyUnsigned(60 * kMinuteMs));
  app->add_option("--test-applier-delayed", f->test_applier_delayed,
                  "how many commits are delayed, from the first on")
      ->capture_default_str()
      ->check(AnyUnsigned());

  group("Options");
  app->set_config("--config", "", "TOML file with the same names as the flags")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->allow_config_extras(CLI::config_extras_mode::error);
  app->add_flag("--print-config", raw->print_config, "print the configuration as TOML and end")
      ->configurable(false);
}

absl::Status Usage(const std::string& text) {
  return WithExitCode(absl::InvalidArgumentError(text), ExitCode::kUsage);
}

// What --tensor-treatment says, beside a direction that does not look at it or cannot have it.
absl::Status CheckTreatments(const run::RunOptions& r) {
  for (const run::TensorRule& rule : r.model.tensor_rules) {
    if (rule.treatment == TensorTreatment::kPlain && r.direction.kind != DirectionKind::kMuon) {
      return Usage(absl::StrCat("--tensor-treatment ", rule.pattern,
                                "=plain belongs to --direction muon, and the direction is ",
                                std::string(DirectionName(r.direction.kind)), "; leave it away"));
    }
    // The coin of a coordinate without gradient would move it, and nothing would make it good.
    if (rule.treatment == TensorTreatment::kSparse && r.direction.error_feedback) {
      return Usage(absl::StrCat("--tensor-treatment ", rule.pattern,
                                "=sparse casts coins that --error-feedback does not make good; "
                                "leave one of the two away"));
    }
  }
  return absl::OkStatus();
}

// What a round with local steps goes with: workers step along their direction by themselves, and what they
// vote on is where that led.
absl::Status CheckLocalSteps(const run::RunOptions& r) {
  if (!r.local_steps.on()) return absl::OkStatus();
  const auto refuse = [&r](const std::string& what, const char* why) {
    return Usage(absl::StrCat("--local-steps ", r.local_steps.text(), " goes not with ", what, ", ",
                              why, "; leave one of the two away"));
  };
  const DirectionConfig& direction = r.direction;
  const bool steps_by_signs =
      direction.kind == DirectionKind::kSignSgd || direction.kind == DirectionKind::kSignum ||
      direction.kind == DirectionKind::kNesterovSignum || direction.kind == DirectionKind::kLion;
  const bool all_dense =
      std::any_of(r.model.tensor_rules.begin(), r.model.tensor_rules.end(),
                  [](const run::TensorRule& rule) { return rule.dense && rule.pattern == "*"; });
  if (!steps_by_signs && !(all_dense && LocalStepsByUpdate(direction))) {
    return Usage(absl::StrCat("--local-steps ", r.local_steps.text(),
                              " takes its steps along --direction signsgd, signum, nesterov or "
                              "lion, or with --dense '*' also adam or sgd, and the direction is ",
                              std::string(DirectionName(direction.kind)),
                              "; choose one of those, or leave --local-steps away"));
  }
  if (direction.error_feedback)
    return refuse("--error-feedback", "which adds to a gradient what a vote took off");
  if (direction.envelope != Envelope::kNone) {
    return Usage(absl::StrCat("--local-steps ", r.local_steps.text(),
                              " goes not with --noise, which --direction adam and sgd have by "
                              "themselves, because the workers' own ways are noise enough for each "
                              "other; give --noise off, or leave --local-steps away"));
  }
  if (r.clip_norm.has_value())
    return refuse("--clip norm", "which shortens one gradient before one vote");
  for (const run::TensorRule& rule : r.model.tensor_rules) {
    if (rule.treatment == TensorTreatment::kSparse) {
      return refuse(absl::StrCat("--tensor-treatment ", rule.pattern, "=sparse"),
                    "where a gradient of zero moves nothing anyway");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckAddresses(ServerFlags* f) {
  const bool tls_given = !f->tls_ca.empty() || !f->tls_certificate.empty() || !f->tls_key.empty();
  if (f->insecure && tls_given) return Usage("--insecure and --tls-… exclude each other");
  if (!f->insecure && !f->insecure_bind.empty()) return Usage("--insecure-bind needs --insecure");
  if (!f->insecure) {
    if (f->tls_ca.empty() || f->tls_certificate.empty() || f->tls_key.empty()) {
      return Usage(
          "--tls-ca, --tls-certificate and --tls-key are required ('signvote certs' makes them), "
          "or --insecure "
          "for plaintext on this machine");
    }
    if (f->tokens.empty())
      return Usage("--tokens FILE is required with TLS ('signvote certs' makes one)");
  }
  if (f->listen.empty())
    f->listen = HostPort{f->insecure ? "127.0.0.1" : "0.0.0.0", kDefaultPort}.ToText();
  SIGNVOTE_ASSIGN_OR_RETURN(HostPort listen,
                            ParseHostPort("--listen", f->listen, PortZero::kAllowed));
  if (f->insecure && !f->insecure_bind.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(listen.host, ParseHost("--insecure-bind", f->insecure_bind));
  } else if (f->insecure && !IsLoopbackHost(listen.host)) {
    return Usage(
        "--listen " + f->listen +
        " would take plaintext from other machines: use TLS, or say --insecure-bind ADDRESS");
  }
  f->listen = listen.ToText();
  if (f->http != "off") {
    SIGNVOTE_RETURN_IF_ERROR(ParseHostPort("--http", f->http, PortZero::kAllowed).status());
  }
  return absl::OkStatus();
}

// A flag that the chosen rule does not read must not pass for one that was obeyed. Its default may
// be repeated: a printed configuration names every flag.
absl::Status CheckRuleFlags(const RuleFlags& given, const RuleRun& run) {
  const RuleFlags untouched;
  const std::tuple<const char*, const char*, bool> flags[] = {
      {"fixed", "--stepsize", given.stepsize == untouched.stepsize},
      {"fixed, mechanic or prodigy", "--schedule", given.schedule == untouched.schedule},
      {"fixed, mechanic or prodigy", "--warmup-rounds",
       given.warmup_rounds == untouched.warmup_rounds},
      {"alias", "--alias-option", given.alias_option == untouched.alias_option},
      {"alias", "--alias-f-min", given.alias_f_min == untouched.alias_f_min},
      {"alias", "--alias-d0", given.alias_d0 == untouched.alias_d0},
      {"alias", "--alias-probe-every", given.alias_probe_every == untouched.alias_probe_every},
      {"alias", "--alias-probe", given.alias_probe == untouched.alias_probe},
      {"alias", "--alias-extrema-scale",
       given.alias_extrema_scale == untouched.alias_extrema_scale},
      {"alias", "--alias-eta0", given.alias_eta0 == untouched.alias_eta0},
      {"lever", "--lever-start", given.lever_start == untouched.lever_start},
      {"lever", "--lever-form", given.lever_form == untouched.lever_form},
      {"lever", "--lever-race", given.lever_race == untouched.lever_race},
      {"lever", "--length-unknown", !given.length_unknown},
      {"mechanic, prodigy or sos", "--rival-start", given.rival_start == untouched.rival_start},
  };
  SIGNVOTE_RETURN_IF_ERROR(MakeRule(given, run).status());
  const std::string rule = ChosenRule(given, run);
  for (const auto& [rules, flag, is_default] : flags) {
    // No rule's name is part of another's.
    if (is_default || absl::StrContains(rules, rule)) continue;
    return Usage(absl::StrCat(flag, " belongs to --rule ", rules, ", and the rule is ", rule,
                              "; leave it away or choose that rule"));
  }
  return absl::OkStatus();
}

absl::Status FinishJournal(const JournalWords& words, ServerFlags* f) {
  const bool journal_flags = words.durability != "sync" || words.snapshot_every != "auto" ||
                             f->journal.snapshots.keep != journal::SnapshotOptions().keep;
  if (f->journal.path.empty() && journal_flags) {
    return Usage(
        "--durability, --snapshot-every and --snapshots-keep need --journal DIR, which they are "
        "about");
  }
  const bool goes_on = !f->journal.path.empty() || !f->init_path.empty();
  if (!goes_on && words.return_wait_seconds != JournalWords().return_wait_seconds) {
    return Usage(
        "--return-wait needs --journal DIR, or --init with a worker's save: it is about a run that "
        "goes on");
  }
  for (const auto mode : {journal::DurabilityMode::kSync, journal::DurabilityMode::kGroup,
                          journal::DurabilityMode::kNone}) {
    if (words.durability == journal::Words(mode)) f->journal.durability = mode;
  }
  if (uint64_t rounds = 0; absl::SimpleAtoi(words.snapshot_every, &rounds))
    f->journal.snapshots.every = rounds;
  // Of a new run nobody has to return.
  if (goes_on) f->run.return_wait = FromSeconds(words.return_wait_seconds);
  return absl::OkStatus();
}

absl::Status Finish(const Raw& raw, ServerFlags* f) {
  run::RunOptions& r = f->run;
  run::ModelSizes& sizes = r.model.sizes;
  using std::chrono::milliseconds;
  r.deadline.enabled = raw.deadline == "auto";
  if (raw.deadline_floor_ms > raw.deadline_ceiling_ms) {
    return Usage(absl::StrCat("--deadline-floor-ms ", raw.deadline_floor_ms,
                              " is above --deadline-ceiling-ms ", raw.deadline_ceiling_ms));
  }
  r.deadline.grace_floor = milliseconds(raw.deadline_floor_ms);
  r.deadline.grace_ceiling = milliseconds(raw.deadline_ceiling_ms);
  r.deadline.initial = milliseconds(raw.deadline_initial_ms);
  r.wait_timeout = FromSeconds(raw.wait_timeout);
  r.linger = FromSeconds(raw.linger);
  r.model.upload.timeout = FromSeconds(raw.upload_timeout);
  if (uint64_t bytes = 0; absl::SimpleAtoi(raw.catch_up_bytes, &bytes)) {
    sizes.catch_up_bytes = bytes;
  }
  if (double eta0 = 0; absl::SimpleAtod(raw.alias_eta0, &eta0)) r.rule.alias_eta0 = eta0;
  SIGNVOTE_ASSIGN_OR_RETURN(f->exports.every, ParseEvery("--export-every", raw.export_every));
  if (!f->exports.every.never() && f->exports.path.empty()) {
    return Usage("--export-every needs --export FILE, beside which it writes");
  }
  const ModelFormat usual;
  if (f->exports.path.empty() &&
      (raw.export_dtype != "f32" || f->exports.format.shard_bytes != usual.shard_bytes)) {
    return Usage(
        "--export-dtype and --export-shard-bytes need --export FILE, which they are about");
  }
  SIGNVOTE_ASSIGN_OR_RETURN(f->exports.format.dtype,
                            ParseWrittenDtype("--export-dtype", raw.export_dtype));
  f->exports.linger = FromSeconds(raw.linger_export);
  SIGNVOTE_RETURN_IF_ERROR(FinishJournal(raw.journal, f));
  if (raw.init_as != "auto" && f->init_path.empty())
    return Usage("--init-as needs --init PATH, which it is about");
  if (raw.init_as != "auto") f->init_as = raw.init_as == "new" ? InitAs::kNew : InitAs::kContinue;
  f->test_applier_delay = milliseconds(raw.test_applier_delay_ms);
  if (r.main_rounds_max == 0 && !r.rule.length_unknown) {
    return Usage(
        "--max-rounds N is required: the run ends after N main rounds; or say --length-unknown, "
        "and "
        "it goes on until it is stopped");
  }
  if (r.workers_min > sizes.workers_max) {
    return Usage(absl::StrCat("--workers-min ", r.workers_min, " is above --workers-max ",
                              sizes.workers_max));
  }
  if (r.quorum > sizes.workers_max) {
    return Usage(
        absl::StrCat("--quorum ", r.quorum, " is above --workers-max ", sizes.workers_max));
  }
  if (sizes.chunk_coordinates % kChunkCoordinatesMultiple != 0) {
    return Usage(absl::StrCat("--chunk-coordinates ", sizes.chunk_coordinates,
                              " is not a multiple of ", kChunkCoordinatesMultiple));
  }
  if (sizes.message_bytes_max > kMessageBytesMost) {
    return Usage(absl::StrCat("--message-bytes-max ", sizes.message_bytes_max, " is above ",
                              kMessageBytesMost, ", the most that a worker takes"));
  }
  if (r.rule.length_unknown && raw.rounds.local_steps != "1") {
    return Usage(absl::StrCat("--length-unknown goes not with --local-steps ",
                              raw.rounds.local_steps,
                              ", whose trials and schedule are parts of the run; leave one of the "
                              "two away"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(r.local_steps,
                            LocalSchedule::Parse(raw.rounds.local_steps, r.main_rounds_max));
  const bool local = r.local_steps.on();
  const bool averages =
      raw.rounds.aggregate == "average" || (raw.rounds.aggregate == "auto" && local);
  sizes.aggregate = averages ? Aggregate::kAverage : Aggregate::kVote;
  r.warm_in_rounds = local ? kLocalWarmIn : 0;
  if (uint32_t rounds = 0; absl::SimpleAtoi(raw.rounds.warm_in, &rounds)) r.warm_in_rounds = rounds;
  if (const uint64_t bytes = run::CommitBytes(sizes.chunk_coordinates, sizes);
      bytes > sizes.message_bytes_max) {
    return Usage(absl::StrCat("--chunk-coordinates ", sizes.chunk_coordinates, " makes chunks of ",
                              bytes, " bytes, above --message-bytes-max ",
                              sizes.message_bytes_max));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(r.direction, ParseDirection(raw.direction));
  if (raw.clip == "norm") r.clip_norm = raw.clip_norm;
  if (raw.clip == "off" && raw.clip_norm != Raw().clip_norm) {
    return Usage(absl::StrCat("--clip-norm ", raw.clip_norm,
                              " belongs to --clip norm, and gradients are not clipped; say so, or "
                              "leave it away"));
  }
  for (const auto& parse :
       {run::ParseTensorScales(raw.tensor_scale), run::ParseTensorDecays(raw.tensor_decay),
        run::ParseTensorTreatments(raw.tensor_treatment), run::ParseDense(raw.dense.patterns)}) {
    SIGNVOTE_RETURN_IF_ERROR(parse.status());
    r.model.tensor_rules.insert(r.model.tensor_rules.end(), parse->begin(), parse->end());
  }
  SIGNVOTE_RETURN_IF_ERROR(CheckTreatments(r));
  SIGNVOTE_RETURN_IF_ERROR(CheckLocalSteps(r));
  SIGNVOTE_RETURN_IF_ERROR(FinishDense(raw.dense, &r));
  SIGNVOTE_RETURN_IF_ERROR(CheckRuleFlags(r.rule, run::RuleRunOf(r)));
  // A step's length is what was signed, of which no rule that measures its steps knows.
  if (r.direction.error_feedback && r.rule.rule != "fixed") {
    return Usage(absl::StrCat("--error-feedback belongs to --rule fixed, and the rule is ",
                              ChosenRule(r.rule, run::RuleRunOf(r)),
                              "; choose that rule or leave it away"));
  }
  if (r.direction.error_feedback && run::AnyDense(r.model.tensor_rules)) {
    return Usage(
        "--error-feedback gives every step lengths of its own, which the updates of --dense "
        "have already; leave one of them away");
  }
  r.tls = !f->insecure;
  SIGNVOTE_RETURN_IF_ERROR(ParseLogLevel(raw.log_level, &f->log.level));
  SIGNVOTE_RETURN_IF_ERROR(ParseLogFormat(raw.log_format, &f->log.format));
  return CheckAddresses(f);
}

}  // namespace

absl::Status ParseServerFlags(int argc, const char* const* argv, FileSystem* fs,
                              ServerFlags* flags) {
  CLI::App app(
      "signvote-server: counts the votes, chooses the stepsize, keeps the master replica.\n"
      "Exit codes and examples: docs/operations.md",
      "signvote-server");
  Raw raw;
  AddFlags(&app, flags, &raw);
  app.set_version_flag("--version", absl::StrCat("signvote-server ", SoftwareVersion()));
  std::string print;
  SIGNVOTE_RETURN_IF_ERROR(ParseFlags(&app, argc, argv, fs, &print));
  if (!print.empty()) {
    flags->print = std::move(print);
    return absl::OkStatus();
  }
  if (raw.print_config) {
    flags->print = app.config_to_str(/*default_also=*/true, /*write_description=*/true);
    return absl::OkStatus();
  }
  if (absl::Status status = Finish(raw, flags); !status.ok())
    return WithExitCode(std::move(status), ExitCode::kUsage);
  return absl::OkStatus();
}

}  // namespace signvote
