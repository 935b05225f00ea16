#include "worker/flags.h"

#include <algorithm>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/flags/flags.h"
#include "common/model_file.h"
#include "common/process.h"
#include "common/status.h"

namespace signvote {
namespace {

// Beyond this a team of threads takes minutes to start.
constexpr uint32_t kThreadsPerProcessorMax = 16;

// What is typed, where it is not yet what the program works with.
struct Parsed {
  WorkerFlags flags;
  std::string tls_dir;
  std::string run_id;
  double connect_timeout_seconds = 20;
  double server_timeout_seconds = 600;
  double wait_timeout_seconds = 3600;
  std::string weight_decay;
  std::string save_every = "0", save_dtype = "f32";
  std::string checkpoint_every = "1m";
  double linger_save = 600;
  std::string eval = "server";
  std::string log_level = "info", log_format = "text";
  bool print_config = false;
};

void AddFlags(CLI::App* app, Parsed* parsed) {
  WorkerFlags* const flags = &parsed->flags;
  app->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  const CLI::Validator at_least_one = UnsignedBetween(1, 1u << 30);
  // The heading of --help and of the man page under which the options that follow stand.
  const auto group = [app](const char* name) { app->option_defaults()->group(name); };
  group("Connection");
  app->add_option("--server", flags->session.server, "HOST:PORT of the server")
      ->type_name("HOST:PORT")
      ->envname("SIGNVOTE_SERVER")
      ->check(Kind(ValueKind::kDial));
  app->add_option("--name", flags->session.name,
                  "this worker's name; with TLS that of its certificate")
      ->type_name("NAME")
      ->check(Kind(ValueKind::kText));
  app->add_option("--token-file", flags->session.token_file,
                  "file with this worker's join token (mode 0600)")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_option("--tls-dir", parsed->tls_dir,
                  "folder with ca.crt, worker.crt, worker.key and token, as `signvote certs` makes "
                  "one per worker")
      ->type_name("DIR")
      ->envname("SIGNVOTE_TLS_DIR")
      ->check(Kind(ValueKind::kFolder));
  app->add_option("--tls-ca", flags->session.tls_ca,
                  "PEM file: who may sign the server's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_option("--tls-certificate", flags->session.tls_certificate,
                  "PEM file: this worker's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_option("--tls-key", flags->session.tls_key, "PEM file: its private key (mode 0600)")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_flag("--insecure", flags->session.insecure,
                "plaintext, to a server that runs --insecure");
  app->add_option("--run-id", parsed->run_id, "join only this run (UUID)")
      ->type_name("UUID")
      ->check(Kind(ValueKind::kText));
  app->add_option("--connect-timeout", parsed->connect_timeout_seconds,
                  "seconds for the first connection")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 86400));
  app->add_option("--server-timeout", parsed->server_timeout_seconds,
                  "seconds that a lost server is looked for")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 86400));
  app->add_option("--wait-timeout", parsed->wait_timeout_seconds,
                  "longest wait in seconds for a round or a commit")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 604800));

  group("Model");
  app->add_option("--model", flags->model,
                  "nano, micro, tiny, 60m, 130m, 350m, mlp, or the path of a config.json or of its "
                  "folder")
      ->capture_default_str()
      ->check(Kind(ValueKind::kPath));
  app->add_option("--vocab-size", flags->vocabulary, "vocabulary of the model; 0: its own")
      ->capture_default_str()
      ->check(UnsignedBetween(0, 1u << 24));
  app->add_option("--init-seed", flags->model_options.init_seed, "seed of the initial parameters")
      ->capture_default_str()
      ->check(AnyUnsigned());
  app->add_option("--parameter-divisor", flags->parameter_divisor,
                  "compute f(x / DIVISOR) from DIVISOR x_0: the same function in other units, for "
                  "checks of stepsize rules")
      ->capture_default_str()
      ->check(NumberBetween(1e-6, 1e6));
  // Taken so that it can be refused with the remedy; not in --help.
  app->add_option("--weight-decay", parsed->weight_decay)->group("");
  app->add_option("--device", flags->model_options.device, "cpu, cuda or cuda:N")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  app->add_option("--threads", flags->model_options.threads,
                  "CPU threads of the model; fewer for several workers on one machine")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 4096));

  group("Data");
  app->add_option("--data", flags->data,
                  "file or folder; without it the C++ headers of the installed LibTorch")
      ->type_name("PATH")
      ->check(Kind(ValueKind::kPath));
  app->add_option("--data-format", flags->data_format,
                  "text, nanogpt, llmc or synthetic (default: text; mlp: synthetic)")
      ->check(Kind(ValueKind::kText));
  app->add_option("--batch", flags->batch, "sequences or samples per micro-batch")
      ->capture_default_str()
      ->check(at_least_one);
  app->add_option("--sequence", flags->sequence, "tokens per sequence")
      ->capture_default_str()
      ->check(at_least_one);
  app->add_option("--accumulate", flags->trainer.accumulate, "micro-batches per ballot")
      ->capture_default_str()
      ->check(at_least_one);
  app->add_option("--eval", parsed->eval,
                  "server: the held-out loss is measured when the server asks this worker for it; "
                  "here: for this worker itself too; off: never")
      ->capture_default_str()
      ->check(CLI::IsMember({"server", "here", "off"}));
  app->add_option("--eval-every", flags->trainer.eval_every,
                  "with --eval here: rounds between held-out losses, over which each is measured; "
                  "0: only first and last")
      ->capture_default_str()
      ->check(AnyUnsigned());
  app->add_option("--eval-tokens", flags->eval_tokens,
                  "tokens (mlp: samples) that a held-out loss is measured on; the same at all "
                  "workers of a run")
      ->capture_default_str()
      ->check(at_least_one);
  app->add_option("--eval-sequence", flags->eval_sequence,
                  "tokens of one held-out window; the same at all workers of a run; 0: 128, or the "
                  "model's positions if they are fewer")
      ->capture_default_str()
      ->check(UnsignedBetween(0, 1u << 30));

  group("Output");
  app->add_option("--http", flags->http,
                  "HOST:PORT of /metrics, /healthz, /readyz (port 0: a free one), or off")
      ->type_name("HOST:PORT")
      ->capture_default_str()
      ->check(Kind(ValueKind::kListen));
  app->add_option("--progress", flags->progress, "auto, terminal, lines or off")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "terminal", "lines", "off"}));
  app->add_option("--progress-every", flags->progress_seconds, "seconds between progress lines")
      ->capture_default_str()
      ->check(NumberBetween(0, 86400));
  app->add_option("--report", flags->report, "JSON file written at the end")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kNewFile));
  app->add_option("--round-log", flags->round_log, "file that gets one JSON line per round")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kLog));
  app->add_option("--save", flags->save,
                  "safetensors file of the replica, however this worker ends after it has joined; "
                  "config.json beside it")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kNewModel));
  app->add_option(
         "--save-every", parsed->save_every,
         "copies of the replica meanwhile, beside --save and named after their round: every "
         "so many rounds (200) or so often (90s, 10m, 2h); 0: none")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  app->add_option("--save-keep", flags->save_keep, "how many of those copies are kept")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 1'000'000));
  app->add_option("--save-dtype", parsed->save_dtype,
                  "how the numbers of --save and its copies are stored: f32; bf16, rounded to half "
                  "the bytes")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  app->add_option(
         "--save-shard-bytes", flags->save_format.shard_bytes,
         "a replica of more bytes is written as several files behind an index; 0: one file")
      ->capture_default_str()
      ->check(AnyUnsigned());
  app->add_option("--checkpoint", flags->checkpoint.folder,
                  "folder in which this worker's own state (momentum and what else its next ballot "
                  "goes on from) outlives it: a worker of that name that is started on it goes on "
                  "where the last one ended")
      ->type_name("DIR")
      ->check(Kind(ValueKind::kNewFolder));
  app->add_option("--checkpoint-every", parsed->checkpoint_every,
                  "how often that is written meanwhile, beside at the end: every so many rounds "
                  "(200) or so often (90s, 10m, 2h); 0: at the end alone")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  app->add_option(
         "--linger-save", parsed->linger_save,
         "seconds for which a replica or a state that cannot be written at the end is held "
         "and tried again")
      ->capture_default_str()
      ->check(NumberBetween(0, 1e6));
  app->add_option("--log-level", parsed->log_level, "debug, info, warning or error")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  app->add_option("--log-format", parsed->log_format, "text or json")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  group("Options");
  app->add_flag("--selftest", flags->selftest,
                "compare the device's kernels with the definitions, measure them, and exit");
  app->set_config("--config", "", "TOML file with flags (name = value)")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->allow_config_extras(CLI::config_extras_mode::error);
  app->add_flag("--print-config", parsed->print_config,
                "print the flags in effect as TOML and exit")
      ->configurable(false);
}

// A printed configuration without what would be refused when it is read.
std::string WithoutRefused(const std::string& toml) {
  std::string kept;
  for (const absl::string_view line : absl::StrSplit(toml, absl::ByString("\n"))) {
    if (absl::StartsWith(absl::StripPrefix(line, "# "), "weight-decay=")) continue;
    absl::StrAppend(&kept, line, "\n");
  }
  if (!kept.empty()) kept.pop_back();
  return kept;
}

absl::Status Complete(Parsed* parsed) {
  if (!parsed->weight_decay.empty()) {
    return absl::InvalidArgumentError(
        "--weight-decay is the run's and no longer the worker's: give signvote-server "
        "--weight-decay");
  }
  SessionOptions& session = parsed->flags.session;
  if (!parsed->tls_dir.empty() && !session.insecure) {
    if (session.tls_ca.empty()) session.tls_ca = parsed->tls_dir + "/ca.crt";
    if (session.tls_certificate.empty()) session.tls_certificate = parsed->tls_dir + "/worker.crt";
    if (session.tls_key.empty()) session.tls_key = parsed->tls_dir + "/worker.key";
    if (session.token_file.empty()) session.token_file = parsed->tls_dir + "/token";
  }
  if (!parsed->run_id.empty()) {
    absl::StatusOr<RunId> run_id = RunId::FromText(parsed->run_id);
    if (!run_id.ok()) return WithContext(run_id.status(), "--run-id");
    session.run_id = *run_id;
  }
  SIGNVOTE_ASSIGN_OR_RETURN(parsed->flags.save_every,
                            ParseEvery("--save-every", parsed->save_every));
  SIGNVOTE_ASSIGN_OR_RETURN(parsed->flags.checkpoint.every,
                            ParseEvery("--checkpoint-every", parsed->checkpoint_every));
  if (parsed->flags.checkpoint.folder.empty() &&
      parsed->checkpoint_every != Parsed().checkpoint_every) {
    return absl::InvalidArgumentError(
        "--checkpoint-every needs --checkpoint DIR, in which it writes");
  }
  if (!parsed->flags.save_every.never() && parsed->flags.save.empty()) {
    return absl::InvalidArgumentError("--save-every needs --save FILE, beside which it writes");
  }
  const ModelFormat usual;
  if (parsed->flags.save.empty() &&
      (parsed->save_dtype != "f32" || parsed->flags.save_format.shard_bytes != usual.shard_bytes)) {
    return absl::InvalidArgumentError(
        "--save-dtype and --save-shard-bytes need --save FILE, which they are about");
  }
  SIGNVOTE_ASSIGN_OR_RETURN(parsed->flags.save_format.dtype,
                            ParseWrittenDtype("--save-dtype", parsed->save_dtype));
  TrainerOptions& trainer = parsed->flags.trainer;
  trainer.evaluate = parsed->eval == "server" ? Evaluate::kWhenAsked
                     : parsed->eval == "here" ? Evaluate::kOnItsOwnToo
                                              : Evaluate::kOff;
  if (trainer.evaluate != Evaluate::kOnItsOwnToo &&
      trainer.eval_every != TrainerOptions().eval_every) {
    return absl::InvalidArgumentError(
        absl::StrCat("--eval-every ", trainer.eval_every,
                     " belongs to --eval here; how often the server asks is signvote-server "
                     "--eval-every"));
  }
  parsed->flags.save_linger = FromSeconds(parsed->linger_save);
  session.connect_timeout = FromSeconds(parsed->connect_timeout_seconds);
  session.server_timeout = FromSeconds(parsed->server_timeout_seconds);
  session.wait_timeout = FromSeconds(parsed->wait_timeout_seconds);
  SIGNVOTE_RETURN_IF_ERROR(ParseLogLevel(parsed->log_level, &parsed->flags.log.level));
  return ParseLogFormat(parsed->log_format, &parsed->flags.log.format);
}

}  // namespace

absl::Status ParseWorkerFlags(int argc, const char* const* argv, FileSystem* fs, WorkerFlags* flags,
                              std::string* print) {
  Parsed parsed;
  parsed.flags.model_options.threads = std::max(1u, std::thread::hardware_concurrency());
  CLI::App app(
      "signvote-worker: train a model as one worker of a run. Exit codes: docs/operations.md.",
      "signvote-worker");
  app.set_version_flag("--version", absl::StrCat("signvote-worker ", SoftwareVersion()));
  AddFlags(&app, &parsed);
  SIGNVOTE_RETURN_IF_ERROR(ParseFlags(&app, argc, argv, fs, print));
  if (parsed.print_config)
    *print = WithoutRefused(app.config_to_str(/*default_also=*/true, /*write_description=*/false));
  if (!print->empty()) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(Complete(&parsed));
  *flags = std::move(parsed.flags);
  return absl::OkStatus();
}

absl::Status CheckWorkerFlags(const WorkerFlags& flags, FileSystem* fs, Clock* clock) {
  const SessionOptions& session = flags.session;
  if (session.server.empty())
    return absl::InvalidArgumentError("--server is missing: give HOST:PORT");
  if (session.insecure && session.name.empty()) {
    return absl::InvalidArgumentError(
        "--name is missing: plaintext has no certificate to take it from");
  }
  const uint32_t processors = std::max(1u, std::thread::hardware_concurrency());
  if (flags.model_options.threads > processors * kThreadsPerProcessorMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads ", flags.model_options.threads, ": this machine has ", processors,
                     " processors; give at most ", processors * kThreadsPerProcessorMax));
  }
  // Before the model and the data, which may take minutes.
  SIGNVOTE_RETURN_IF_ERROR(Session::CheckOptions(session, clock));
  if (!flags.report.empty())
    SIGNVOTE_RETURN_IF_ERROR(WithContext(RequireWritable(fs, flags.report), "--report"));
  if (flags.save.empty()) return absl::OkStatus();
  return WithContext(RequireModelTarget(fs, flags.save, /*config_json=*/""), "--save");
}

}  // namespace signvote
