#include "common/flags/flags.h"
#include "absl/strings/str_cat.h"
#include "common/process.h"
#include "common/status.h"
#include "lab/synthetic/synthetic_worker.h"

namespace signvote {
namespace {

constexpr double kSecondsMax = 1e7;
constexpr uint64_t kCoordinatesMax = uint64_t{1} << 40;
constexpr uint64_t kHourMs = 3'600'000;

void AddNetwork(CLI::App* app, SyntheticFlags* flags) {
  app->option_defaults()->group("Network");
  SessionOptions& session = flags->session;
  app->add_option("--server", session.server, "HOST:PORT of the server")
      ->type_name("HOST:PORT")
      ->required()
      ->check(Kind(ValueKind::kDial));
  app->add_option("--name", session.name, "the worker's name; with TLS that of its certificate")
      ->check(Kind(ValueKind::kText));
  app->add_option("--token-file", session.token_file,
                  "file with the join token; readable by its owner only")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_option("--tls-ca", session.tls_ca, "PEM file: who may sign the server's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_option("--tls-certificate", session.tls_certificate,
                  "PEM file: the worker's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_option("--tls-key", session.tls_key, "PEM file: its key; readable by its owner only")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_flag("--insecure", session.insecure, "plaintext, to a server that is --insecure too");
  app->add_option("--server-timeout", flags->server_timeout_seconds,
                  "seconds for which a lost server is looked for")
      ->capture_default_str()
      ->check(NumberBetween(0.001, kSecondsMax));
  app->add_option("--connect-timeout", flags->connect_timeout_seconds,
                  "seconds for the first connection")
      ->capture_default_str()
      ->check(NumberBetween(0.001, kSecondsMax));
}

void AddObjective(CLI::App* app, SyntheticFlags* flags) {
  app->option_defaults()->group("Objective");
  app->add_option("--coordinates", flags->coordinates, "d, how many parameters there are")
      ->capture_default_str()
      ->check(UnsignedBetween(1, kCoordinatesMax));
  app->add_option("--tensor", flags->tensor,
                  "name of the one tensor; another name is another layout")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText));
  app->add_option("--config", flags->config_json, "config.json of the model, as text: its identity")
      ->check(Kind(ValueKind::kText));
  app->add_option("--identity-text", flags->identity_text, "what else makes two models differ")
      ->check(Kind(ValueKind::kText));
  app->add_option("--scale", flags->scale, "s; a power of two scales exactly")
      ->capture_default_str()
      ->check(NumberBetween(1e-30, 1e30));
  app->add_option("--noise", flags->noise, "amplitude of the minibatch noise")
      ->capture_default_str()
      ->check(NumberBetween(0, 1e30));
  app->add_option("--compute-ms", flags->compute_ms,
                  "time that a gradient pretends to take, spread over the chunks")
      ->capture_default_str()
      ->check(UnsignedBetween(0, kHourMs));
  app->add_option("--compute-ms-file", flags->compute_ms_file,
                  "a file with that number, read again before each minibatch")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_flag("--random-ballots", flags->random_ballots,
                "no objective: the same random bits every round");
  app->add_flag("--no-replica", flags->no_replica,
                "keep no replica; for a server with --digest-every 0")
      ->needs("--random-ballots");
  app->add_option("--nonfinite-from", flags->nonfinite_from,
                  "round from which on the loss is not finite; -1: it always is")
      ->capture_default_str()
      ->check(CLI::TypeValidator<int64_t>());
}

}  // namespace

absl::Status ParseSyntheticFlags(int argc, const char* const* argv, FileSystem* fs,
                                 SyntheticFlags* flags, std::string* print) {
  CLI::App app(
      "signvote-synthetic-worker: a worker with a quadratic objective and without LibTorch, for "
      "experiments about processes, links and disks.\nExit codes: docs/operations.md; objective: "
      "docs/lab.md",
      "signvote-synthetic-worker");
  app.set_version_flag("--version", absl::StrCat("signvote-synthetic-worker ", SoftwareVersion()));
  AddNetwork(&app, flags);
  AddObjective(&app, flags);
  app.option_defaults()->group("Output");
  app.add_option("--report", flags->report, "JSON file, written at the end")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kNewFile));
  app.add_option("--round-log", flags->round_log, "JSON lines, one for each of its rounds")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kLog));
  app.add_option("--ballots", flags->ballots,
                 "folder in which every ballot is written and synced before it is sent")
      ->type_name("DIR")
      ->check(Kind(ValueKind::kNewFolder));
  app.add_option("--save", flags->save,
                 "its replica at the end (safetensors), with which a server can go on (--init)")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kNewModel))
      ->excludes("--no-replica");
  std::string every = "0";
  CLI::Option* const folder =
      app.add_option("--checkpoint", flags->checkpoint,
                     "folder in which this worker's own state outlives it, as signvote-worker's")
          ->type_name("DIR")
          ->check(Kind(ValueKind::kNewFolder))
          ->excludes("--random-ballots");
  app.add_option(
         "--checkpoint-every", every,
         "how often that is written, beside at the end: rounds (200) or time (90s, 10m); 0: "
         "at the end alone")
      ->capture_default_str()
      ->check(Kind(ValueKind::kText))
      ->needs(folder);
  app.add_option("--start-fifo", flags->start_fifo,
                 "joins when somebody opens this FIFO for writing; \"ready to join\" is logged "
                 "before")
      ->type_name("FIFO")
      ->check(Kind(ValueKind::kText));
  SIGNVOTE_RETURN_IF_ERROR(ParseFlags(&app, argc, argv, fs, print));
  if (!print->empty()) return absl::OkStatus();
  SIGNVOTE_ASSIGN_OR_RETURN(flags->checkpoint_every, ParseEvery("--checkpoint-every", every));
  return absl::OkStatus();
}

}  // namespace signvote
