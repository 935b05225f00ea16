// signvote-worker: trains a model as one worker of a run. docs/operations.md.

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "common/cpu.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/flags/flags.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/process.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "proto/wire/grpc_log.h"
#include "worker/data/dataset.h"
#include "worker/direction/cuda_device.h"
#include "worker/direction/selftest.h"
#include "worker/models/model.h"
#include "worker/session/session.h"
#include "worker/train/probe.h"
#include "worker/train/progress.h"
#include "worker/train/report.h"
#include "worker/train/routes.h"
#include "worker/train/trainer.h"

namespace signvote {
namespace {

constexpr uint32_t kFileMode = 0644;
constexpr uint64_t kHostRateCoordinates = uint64_t{1} << 24;               // well beyond any cache
constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();  // in a log line
// Beyond this a team of threads takes minutes to start.
constexpr uint32_t kThreadsPerProcessorMax = 16;
constexpr Duration kStopPoll = std::chrono::milliseconds(50);

struct Flags {
  SessionOptions session;
  std::string tls_dir;
  std::string run_id;
  double connect_timeout_seconds = 20;
  double server_timeout_seconds = 600;
  double wait_timeout_seconds = 3600;
  std::string model = "nano";
  uint32_t vocabulary = 0;  // 0: the model's own
  ModelOptions model_options;
  float parameter_divisor = 1.0f;
  std::string data;
  std::string data_format;  // empty: text, or synthetic for the MLP
  uint32_t batch = 8;
  uint32_t sequence = 128;
  TrainerOptions trainer;
  std::string http = "127.0.0.1:0";
  std::string progress = "auto";
  double progress_seconds = 10;
  std::string report, round_log, save;
  std::string log_level = "info", log_format = "text";
  bool print_config = false;
  bool selftest = false;
};

void AddFlags(CLI::App* app, Flags* flags) {
  app->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  const CLI::Validator at_least_one = UnsignedBetween(1, 1u << 30);
  // The heading of --help and of the man page under which the options that follow stand.
  const auto group = [app](const char* name) { app->option_defaults()->group(name); };
  group("Connection");
  app->add_option("--server", flags->session.server, "HOST:PORT of the server")
      ->type_name("HOST:PORT")
      ->envname("SIGNVOTE_SERVER");
  app->add_option("--name", flags->session.name,
                  "this worker's name; with TLS that of its certificate")
      ->type_name("NAME");
  app->add_option("--token-file", flags->session.token_file,
                  "file with this worker's join token (mode 0600)")
      ->type_name("FILE");
  app->add_option("--tls-dir", flags->tls_dir,
                  "folder with ca.crt, worker.crt, worker.key and token, as `signvote certs` makes "
                  "one per worker")
      ->type_name("DIR")
      ->envname("SIGNVOTE_TLS_DIR");
  app->add_option("--tls-ca", flags->session.tls_ca,
                  "PEM file: who may sign the server's certificate")
      ->type_name("FILE");
  app->add_option("--tls-certificate", flags->session.tls_certificate,
                  "PEM file: this worker's certificate")
      ->type_name("FILE");
  app->add_option("--tls-key", flags->session.tls_key, "PEM file: its private key (mode 0600)")
      ->type_name("FILE");
  app->add_flag("--insecure", flags->session.insecure,
                "plaintext, to a server that runs --insecure");
  app->add_option("--run-id", flags->run_id, "join only this run (UUID)")->type_name("UUID");
  app->add_option("--connect-timeout", flags->connect_timeout_seconds,
                  "seconds for the first connection")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 86400));
  app->add_option("--server-timeout", flags->server_timeout_seconds,
                  "seconds that a lost server is looked for")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 86400));
  app->add_option("--wait-timeout", flags->wait_timeout_seconds,
                  "longest wait in seconds for a round or a commit")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 604800));

  group("Model");
  app->add_option("--model", flags->model,
                  "nano, micro, tiny, 60m, 130m, 350m, mlp, or the path of a config.json")
      ->capture_default_str();
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
  app->add_option("--weight-decay", flags->model_options.weight_decay,
                  "decoupled decay of the matrices")
      ->capture_default_str()
      ->check(NumberBetween(0, 1));
  app->add_option("--device", flags->model_options.device, "cpu, cuda or cuda:N")
      ->capture_default_str();
  app->add_option("--threads", flags->model_options.threads,
                  "CPU threads of the model; fewer for several workers on one machine")
      ->capture_default_str()
      ->check(UnsignedBetween(1, 4096));

  group("Data");
  app->add_option("--data", flags->data,
                  "file or folder; without it the C++ headers of the installed LibTorch")
      ->type_name("PATH");
  app->add_option("--data-format", flags->data_format,
                  "text, nanogpt, llmc or synthetic (default: text; mlp: synthetic)");
  app->add_option("--batch", flags->batch, "sequences or samples per micro-batch")
      ->capture_default_str()
      ->check(at_least_one);
  app->add_option("--sequence", flags->sequence, "tokens per sequence")
      ->capture_default_str()
      ->check(at_least_one);
  app->add_option("--accumulate", flags->trainer.accumulate, "micro-batches per ballot")
      ->capture_default_str()
      ->check(at_least_one);
  app->add_option(
         "--eval-every", flags->trainer.eval_every,
         "rounds between held-out losses, over which each is measured; 0: only first and last")
      ->capture_default_str()
      ->check(AnyUnsigned());
  app->add_option("--eval-batches", flags->trainer.eval_batches,
                  "micro-batches per held-out loss; 0: none at all")
      ->capture_default_str()
      ->check(AnyUnsigned(std::numeric_limits<uint32_t>::max()));

  group("Output");
  app->add_option("--http", flags->http,
                  "HOST:PORT of /metrics, /healthz, /readyz (port 0: a free one), or off")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app->add_option("--progress", flags->progress, "auto, terminal, lines or off")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "terminal", "lines", "off"}));
  app->add_option("--progress-every", flags->progress_seconds, "seconds between progress lines")
      ->capture_default_str()
      ->check(NumberBetween(0, 86400));
  app->add_option("--report", flags->report, "JSON file written at the end")->type_name("FILE");
  app->add_option("--round-log", flags->round_log, "file that gets one JSON line per round")
      ->type_name("FILE");
  app->add_option("--save", flags->save,
                  "safetensors file of the final replica; config.json beside it")
      ->type_name("FILE");
  app->add_option("--log-level", flags->log_level, "debug, info, warning or error")
      ->capture_default_str();
  app->add_option("--log-format", flags->log_format, "text or json")->capture_default_str();
  group("Options");
  app->add_flag("--selftest", flags->selftest,
                "compare the device's kernels with the definitions, measure them, and exit");
  app->set_config("--config", "", "TOML file with flags (name = value)")->type_name("FILE");
  app->allow_config_extras(CLI::config_extras_mode::error);
  app->add_flag("--print-config", flags->print_config, "print the flags in effect as TOML and exit")
      ->configurable(false);
}

absl::Status CheckFlags(Flags* flags, FileSystem* fs, Clock* clock) {
  SessionOptions& session = flags->session;
  if (session.server.empty())
    return absl::InvalidArgumentError("--server is missing: give HOST:PORT");
  if (session.insecure && session.name.empty()) {
    return absl::InvalidArgumentError(
        "--name is missing: plaintext has no certificate to take it from");
  }
  if (!flags->tls_dir.empty() && !session.insecure) {
    if (session.tls_ca.empty()) session.tls_ca = flags->tls_dir + "/ca.crt";
    if (session.tls_certificate.empty()) session.tls_certificate = flags->tls_dir + "/worker.crt";
    if (session.tls_key.empty()) session.tls_key = flags->tls_dir + "/worker.key";
    if (session.token_file.empty()) session.token_file = flags->tls_dir + "/token";
  }
  if (!flags->run_id.empty()) {
    absl::StatusOr<RunId> run_id = RunId::FromText(flags->run_id);
    if (!run_id.ok()) return WithContext(run_id.status(), "--run-id");
    session.run_id = *run_id;
  }
  session.connect_timeout = FromSeconds(flags->connect_timeout_seconds);
  session.server_timeout = FromSeconds(flags->server_timeout_seconds);
  session.wait_timeout = FromSeconds(flags->wait_timeout_seconds);
  const uint32_t processors = std::max(1u, std::thread::hardware_concurrency());
  if (flags->model_options.threads > processors * kThreadsPerProcessorMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads ", flags->model_options.threads, ": this machine has ", processors,
                     " processors; give at most ", processors * kThreadsPerProcessorMax));
  }
  // Before the model and the data, which may take minutes.
  SIGNVOTE_RETURN_IF_ERROR(Session::CheckOptions(session, clock));
  for (const auto& [flag, path] :
       {std::pair<const char*, const std::string*>{"--report", &flags->report},
        {"--save", &flags->save}}) {
    if (path->empty()) continue;
    SIGNVOTE_RETURN_IF_ERROR(WithContext(RequireWritable(fs, *path), flag));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> LoadModel(FileSystem* fs, const Flags& flags) {
  SIGNVOTE_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(fs, flags.model));
  if (flags.vocabulary != 0) config.vocabulary = flags.vocabulary;
  config.parameter_divisor = flags.parameter_divisor;
  if (config.kind == ModelKind::kLlama && flags.sequence > config.positions_max) {
    return absl::InvalidArgumentError(absl::StrFormat("--sequence %d: the model has %d positions",
                                                      flags.sequence, config.positions_max));
  }
  return config;
}

absl::StatusOr<std::unique_ptr<Dataset>> LoadData(FileSystem* fs, const Flags& flags,
                                                  const ModelConfig& config) {
  const bool mlp = config.kind == ModelKind::kMlp;
  DatasetOptions options;
  SIGNVOTE_ASSIGN_OR_RETURN(options.format,
                            ParseDataFormat(!flags.data_format.empty() ? flags.data_format
                                            : mlp                      ? "synthetic"
                                                                       : "text"));
  if (mlp != (options.format == DataFormat::kSynthetic)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--data-format ", flags.data_format, " does not fit --model ", flags.model,
                     ": mlp trains on synthetic data, LLaMA on the others"));
  }
  if (mlp && !flags.data.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--data ", flags.data, " does not fit --model ", flags.model,
                     ": it trains on a task that is made here; leave --data away"));
  }
  options.path = flags.data;
  options.rows = flags.batch;
  options.length = flags.sequence;
  options.vocabulary = config.vocabulary;
  options.features = config.features;
  options.classes = config.classes;
  return OpenDataset(fs, options);
}

ProgressStyle StyleOf(const std::string& word) {
  if (word == "off") return ProgressStyle::kOff;
  if (word == "lines" || (word == "auto" && ::isatty(STDOUT_FILENO) == 0))
    return ProgressStyle::kLines;
  return ProgressStyle::kTerminal;
}

absl::Status Save(FileSystem* fs, const std::string& path, const Model& model,
                  ReplicaMemory* replica, const TrainerReport& report) {
  std::vector<float> x(replica->coordinates());
  SIGNVOTE_RETURN_IF_ERROR(replica->Read(0, x));
  SIGNVOTE_RETURN_IF_ERROR(
      WriteSafetensors(fs, path, model.layout(), x,
                       {{"format", "pt"},
                        {"run_id", report.run.run_id.ToText()},
                        {"next_round", absl::StrCat(report.next_round.value())},
                        {"digest", absl::StrFormat("%016x", *report.digest)}}));
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : path.substr(0, slash + 1);
  return WriteFileAtomically(fs, folder + "config.json", ModelConfigJson(model.config()),
                             kFileMode);
}

absl::Status Selftest(const Flags& flags, Clock* clock) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<int> gpu, ParseDevice(flags.model_options.device));
  std::unique_ptr<WorkerDevice> device = std::make_unique<HostDevice>();
  std::unique_ptr<SelftestMemory> memory = std::make_unique<HostSelftestMemory>();
  SelftestOptions options;
  if (gpu.has_value()) {
    SIGNVOTE_ASSIGN_OR_RETURN(device, MakeCudaDevice(*gpu, [] { return nullptr; }));
    SIGNVOTE_ASSIGN_OR_RETURN(memory, MakeCudaSelftestMemory(*gpu));
  } else {
    options.rate_coordinates = kHostRateCoordinates;
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const SelftestReport report,
                            RunSelftest(device.get(), memory.get(), clock, options));
  std::fputs(SelftestText(report).c_str(), stdout);
  return absl::OkStatus();
}

absl::Status Work(Flags* flags) {
  FileSystem* const fs = FileSystem::Posix();
  Clock* const clock = Clock::System();
  SIGNVOTE_RETURN_IF_ERROR(ChooseIsa().status());
  if (flags->selftest) return Selftest(*flags, clock);
  SIGNVOTE_RETURN_IF_ERROR(CheckFlags(flags, fs, clock));
  SIGNVOTE_ASSIGN_OR_RETURN(const ModelConfig config, LoadModel(fs, *flags));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Dataset> data, LoadData(fs, *flags, config));
  // Before the model: a wrong file name must not cost minutes of training.
  std::unique_ptr<LogFile> round_log;
  if (!flags->round_log.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(round_log, fs->OpenLog(flags->round_log, kFileMode));
  }

  // Declared before the session, whose bits lie in its memory.
  std::unique_ptr<WorkerDevice> device = std::make_unique<HostDevice>();
  // Declared before the port, whose threads read them.
  WorkerProbe probe;
  std::unique_ptr<Session> session;
  std::atomic<const Session*> live_session{
      nullptr};  // released after construction, acquired by the port's threads
  const auto refresh = [&] {
    const Session* const current = live_session.load(std::memory_order_acquire);
    if (current != nullptr) probe.OnSession(current->Stats());
  };
  std::unique_ptr<HttpServer> http;
  if (flags->http != "off") {
    const auto metrics = [&] {
      refresh();
      return probe.Text();
    };
    const auto ready = [&] {
      refresh();
      return probe.joined() && probe.value(WorkerMetric::kConnected) == 1;
    };
    SIGNVOTE_ASSIGN_OR_RETURN(http, HttpServer::Start(flags->http, WorkerRoutes(metrics, ready)));
    flags->session.metrics_address = http->address();
    LogInfo("serving metrics", {{"address", http->address()}});
  }

  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                            MakeTorchModel(config, flags->model_options));
  LogInfo("model", {{"name", config.name},
                    {"coordinates", model->layout().coordinates()},
                    {"layout", absl::StrFormat("%016x", model->layout().digest())},
                    {"device", model->device()},
                    {"threads", uint64_t{flags->model_options.threads}}});
  LogInfo("data", {{"corpus", data->description()}});
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<int> gpu, ParseDevice(flags->model_options.device));
  if (gpu.has_value()) {
    SIGNVOTE_ASSIGN_OR_RETURN(
        device, MakeCudaDevice(*gpu, [model = model.get()] { return model->current_stream(); }));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<ReplicaMemory> replica,
                            device->MakeReplica(&model->layout(), model->parameters()));
  flags->session.model_config_json = ModelConfigJson(config);
  flags->session.bits_memory = device->host_memory();
  SIGNVOTE_ASSIGN_OR_RETURN(session, Session::Create(flags->session, clock));
  live_session.store(session.get(), std::memory_order_release);

  std::jthread stopper([&session](std::stop_token stop) {
    while (!stop.stop_requested()) {
      if (!WaitForStop(kStopPoll)) continue;
      LogInfo("stopping: the round in progress is finished first");
      session->RequestDrain("stop signal");
      return;
    }
  });

  Progress progress(StyleOf(flags->progress), stdout, clock, FromSeconds(flags->progress_seconds),
                    session->name());
  Trainer trainer(session.get(), model.get(), device.get(), replica.get(), data.get(), clock,
                  flags->trainer);
  absl::Status log_status;
  trainer.set_on_joined([&](const RunInfo& run) {
    probe.OnJoined(run, model->layout().coordinates());
    progress.OnJoined(run, model->layout().coordinates());
    LogInfo("joined", {{"run", run.run_id.ToText()},
                       {"rounds", run.rounds_max},
                       {"direction", std::string(DirectionName(run.direction.kind))},
                       {"chunks", uint64_t{run.plan.chunks()}}});
  });
  trainer.set_on_round([&](const RoundReport& round) {
    const SessionStats stats = session->Stats();
    probe.OnRound(round);
    probe.OnSession(stats);
    progress.OnRound(round, stats);
    if (round_log != nullptr && log_status.ok()) {
      log_status = round_log->Append(RoundLogLine(round) + "\n");
      if (!log_status.ok()) LogError("round log ends here", {{"error", Describe(log_status)}});
    }
  });

  const absl::Status trained = trainer.Run();
  progress.Finish();
  stopper.request_stop();
  stopper.join();
  const SessionStats stats = session->Stats();
  probe.OnSession(stats);

  const TrainerReport& report = trainer.report();
  ReportContext context;
  context.name = session->name();
  context.model = flags->model;
  context.device = model->device();
  context.data = data->description();
  context.target_unit = data->target_unit();
  context.coordinates = model->layout().coordinates();
  context.outcome = !trained.ok() ? Describe(trained) : session->drained() ? "drained" : "finished";
  // Also after a failure: what was measured until then is worth keeping.
  absl::Status reported;
  if (!flags->report.empty()) {
    reported = WithContext(
        WriteFileAtomically(fs, flags->report, ReportJson(context, report, stats), kFileMode),
        "--report");
  }
  if (!trained.ok()) {
    if (!reported.ok()) LogWarning("the report is not written", {{"error", Describe(reported)}});
    return trained;
  }
  // Before the report's own failure, which must not cost the model.
  if (!flags->save.empty()) {
    if (report.digest.has_value()) {
      SIGNVOTE_RETURN_IF_ERROR(
          WithContext(Save(fs, flags->save, *model, replica.get(), report), "--save"));
    } else {
      LogWarning("nothing was saved: the replica is not the run's", {{"path", flags->save}});
    }
  }
  SIGNVOTE_RETURN_IF_ERROR(reported);
  LogInfo("done", {{"outcome", context.outcome},
                   {"rounds_voted", report.rounds_voted},
                   {"held_out_first", report.held_out_first.value_or(kNotMeasured)},
                   {"held_out_last", report.held_out_last.value_or(kNotMeasured)},
                   {"digest", report.digest.has_value() ? absl::StrFormat("%016x", *report.digest)
                                                        : "none"}});
  return log_status;
}

int Main(int argc, char** argv) {
  TuneMalloc();
  Flags flags;
  flags.model_options.threads = std::max(1u, std::thread::hardware_concurrency());
  CLI::App app(
      "signvote-worker: train a model as one worker of a run. Exit codes: docs/operations.md.",
      "signvote-worker");
  app.set_version_flag("--version", absl::StrCat("signvote-worker ", SoftwareVersion()));
  AddFlags(&app, &flags);
  std::string print;
  absl::Status status = ParseFlags(&app, argc, argv, &print);
  if (status.ok() && flags.print_config)
    print = app.config_to_str(/*default_also=*/true, /*write_description=*/false);
  if (!print.empty()) {
    std::fputs(print.c_str(), stdout);
    return static_cast<int>(ExitCode::kOk);
  }
  LogOptions log;
  if (status.ok()) status = ParseLogLevel(flags.log_level, &log.level);
  if (status.ok()) status = ParseLogFormat(flags.log_format, &log.format);
  if (status.ok()) {
    InitLogging(log);
    wire::RouteGrpcLog();
    InstallStopSignals();
    status = Work(&flags);
  }
  if (!status.ok()) LogError(Describe(status));
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
