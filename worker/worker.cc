#include "worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "common/cpu.h"
#include "common/exit_codes.h"
#include "common/file_system.h"
#include "common/hold.h"
#include "common/http/http_server.h"
#include "common/line_log.h"
#include "common/log.h"
#include "common/memory_budget.h"
#include "common/model_file.h"
#include "common/process_table.h"
#include "common/status.h"
#include "worker/checkpoint/worker_checkpoints.h"
#include "worker/data/dataset.h"
#include "worker/direction/cuda_device.h"
#include "worker/models/model.h"
#include "worker/neighbours.h"
#include "worker/selftest/cuda_selftest.h"
#include "worker/selftest/selftest.h"
#include "worker/session/session.h"
#include "worker/train/metrics.h"
#include "worker/train/progress.h"
#include "worker/train/replica_saver.h"
#include "worker/train/report.h"
#include "worker/train/routes.h"
#include "worker/train/trainer.h"
#include "worker/train/worker_memory.h"

namespace signvote {
namespace {

constexpr uint32_t kFileMode = 0644;
// Tokens of a held-out window, unless a flag says otherwise.
constexpr uint32_t kEvalSequence = 128;
constexpr uint64_t kHostRateCoordinates = uint64_t{1} << 24;  // well beyond any cache

// In a log line; NaN: not measured.
double LossOf(const std::optional<HeldOutLoss>& held_out) {
  return held_out.has_value() ? held_out->loss : std::numeric_limits<double>::quiet_NaN();
}

absl::StatusOr<ModelConfig> LoadModel(FileSystem* fs, const WorkerFlags& flags) {
  SIGNVOTE_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(fs, flags.model));
  if (flags.vocabulary != 0) config.vocabulary = flags.vocabulary;
  config.parameter_divisor = flags.parameter_divisor;
  if (config.kind == ModelKind::kLlama && flags.sequence > config.positions_max) {
    return absl::InvalidArgumentError(absl::StrFormat("--sequence %d: the model has %d positions",
                                                      flags.sequence, config.positions_max));
  }
  if (config.kind == ModelKind::kLlama && flags.eval_sequence > config.positions_max) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--eval-sequence %d: the model has %d positions", flags.eval_sequence,
                        config.positions_max));
  }
  return config;
}

// The same at every worker of a run, whose model is one.
uint32_t EvalSequence(const WorkerFlags& flags, const ModelConfig& config) {
  if (flags.eval_sequence != 0) return flags.eval_sequence;
  return std::min(kEvalSequence, config.positions_max);
}

absl::StatusOr<std::unique_ptr<Dataset>> LoadData(FileSystem* fs, const WorkerFlags& flags,
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
  options.eval_targets = flags.trainer.evaluate == Evaluate::kOff ? 0 : flags.eval_tokens;
  options.eval_length = EvalSequence(flags, config);
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

absl::Status Selftest(const WorkerFlags& flags, Clock* clock) {
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

WorkerRound MetricsOf(const RoundReport& round) {
  return {.round = round.round,
          .voted = !round.abstained.has_value(),
          .overlapped = round.first_chunk_overlapped,
          .minibatches = round.minibatches,
          .targets = round.targets,
          .nonfinite = round.scalars.nonfinite_coordinates,
          .members = round.members,
          .voters = round.voters,
          .main_round = round.main_round,
          .run_done = round.run_done,
          .loss = round.scalars.loss,
          .run_loss = round.run_loss,
          .stepsize = static_cast<double>(round.stepsize),
          .held_out = round.held_out,
          .embedding_norm = round.embedding_norm,
          .g_l1 = round.scalars.g_l1,
          .g_l2_squared = round.scalars.g_l2_squared,
          .first_chunk_seconds = round.first_chunk_seconds,
          .backward_end_seconds = round.backward_end_seconds,
          .compute_seconds = round.compute_took_seconds,
          .pack_seconds = round.pack_took_seconds,
          .wait_seconds = round.wait_took_seconds,
          .apply_seconds = round.apply_took_seconds,
          .round_seconds = round.round_took_seconds};
}

// The metrics, and the port that shows them while there is a session to ask.
// Threads: thread-safe once made; the port's threads read it.
class WorkerPort {
 public:
  // `address` as --http says it, "off" for none.
  absl::Status Start(const std::string& address) {
    if (address == "off") return absl::OkStatus();
    SIGNVOTE_ASSIGN_OR_RETURN(http_, HttpServer::Start(address, WorkerRoutes(
                                                                    [this] {
                                                                      Refresh();
                                                                      return metrics_.Text();
                                                                    },
                                                                    [this] { return Ready(); })));
    LogInfo("serving metrics", {{"address", http_->address()}});
    return absl::OkStatus();
  }
  std::string address() const { return http_ == nullptr ? "" : http_->address(); }
  WorkerMetrics* metrics() { return &metrics_; }
  // From here on these are asked, `checkpoints` where there are any; until Stop().
  void Show(const Session* session, const WorkerCheckpoints* checkpoints) {
    checkpoints_ = checkpoints;
    session_.store(session, std::memory_order_release);
  }
  void Stop() {
    http_.reset();  // its threads are gone
    session_.store(nullptr, std::memory_order_release);
  }

 private:
  void Refresh() {
    const Session* const session = session_.load(std::memory_order_acquire);
    if (session == nullptr) return;
    metrics_.OnSession(session->Stats());
    if (checkpoints_ != nullptr) metrics_.OnCheckpoints(checkpoints_->stats());
  }
  bool Ready() {
    Refresh();
    return metrics_.joined() && metrics_.value(WorkerMetric::kConnected) == 1;
  }

  WorkerMetrics metrics_;
  const WorkerCheckpoints* checkpoints_ = nullptr;  // before session_ is released
  // Released by Show, acquired by the port's threads.
  std::atomic<const Session*> session_{nullptr};
  std::unique_ptr<HttpServer> http_;
};

// What a pass of a minibatch takes has memory for: as many tokens, or samples, as that.
uint64_t EvalRows(const WorkerFlags& flags, const ModelConfig& config) {
  if (config.kind == ModelKind::kMlp) return flags.batch;
  return std::max<uint64_t>(1,
                            uint64_t{flags.batch} * flags.sequence / EvalSequence(flags, config));
}

struct Corpus {
  ModelConfig config;
  std::unique_ptr<Dataset> data;
};

// The replica as the training left it. `saved` is what became of it; OK also where there was none to
// save.
void SaveFinal(const WorkerFlags& flags, Trainer* trainer, ReplicaSaver* saver,
               absl::Status* saved) {
  const TrainerReport& report = trainer->report();
  *saved = WithContext(
      saver->Final(report.run, trainer->replica(), report.next_round, *report.digest),
      absl::StrCat("--save: the replica of round ", report.next_round.value(), " is not saved"));
  if (saved->ok() && !flags.save.empty()) {
    LogInfo("the replica is saved", {{"path", flags.save}, {"round", report.next_round.value()}});
  }
}

// What could not be saved when the training ended, now that nobody waits for this worker any more.
void HoldReplica(const WorkerFlags& flags, Clock* clock, const WorkerSignals& signals,
                 Trainer* trainer, ReplicaSaver* saver, absl::Status* saved) {
  *saved = WriteOrHold(
      clock,
      {.what = "the replica is not saved",
       .remedy =
           "free the disk, or make the file's folder a link to another one, and send SIGUSR1; a "
           "stop gives it up",
       .linger = flags.save_linger,
       .stop_requested = [&signals] { return signals.stop.stop_requested(); },
       .take_save = signals.take_save},
      [&] {
        SaveFinal(flags, trainer, saver, saved);
        return *saved;
      });
}

// The same of the worker's own state.
void HoldState(const WorkerFlags& flags, Clock* clock, const WorkerSignals& signals,
               WorkerCheckpoints* checkpoints, absl::Status* saved) {
  *saved = WriteOrHold(clock,
                       {.what = "the worker's state is not saved",
                        .remedy = "free the disk, or make the folder a link to another one, and "
                                  "send SIGUSR1; a stop gives "
                                  "it up",
                        .linger = flags.save_linger,
                        .stop_requested = [&signals] { return signals.stop.stop_requested(); },
                        .take_save = signals.take_save},
                       [&] { return checkpoints->WriteFinal(); });
}

// Writes what the flags ask for once training has ended with `trained`; `saved` is what became of the
// replica, `before_transfer` the round of one that was saved before a state was to take its place.
absl::Status WriteResults(const WorkerFlags& flags, FileSystem* fs, const Session& session,
                          const Model& model, const Dataset& data, const TrainerReport& report,
                          const absl::Status& trained, const absl::Status& saved,
                          std::optional<Round> before_transfer,
                          const WorkerCheckpoints* checkpoints) {
  ReportContext context;
  if (checkpoints != nullptr) context.checkpoints = checkpoints->stats();
  context.name = session.name();
  context.model = flags.model;
  context.device = model.device();
  context.data = data.description();
  context.target_unit = data.target_unit();
  context.coordinates = model.layout().coordinates();
  context.outcome = !trained.ok() ? Describe(trained) : session.drained() ? "drained" : "finished";
  // Also after a failure: what was measured until then is worth keeping.
  absl::Status reported;
  if (!flags.report.empty()) {
    reported =
        WithContext(WriteFileAtomically(fs, flags.report,
                                        ReportJson(context, report, session.Stats()), kFileMode),
                    "--report");
  }
  if (!flags.save.empty() && !report.digest.has_value()) {
    if (before_transfer.has_value()) {
      LogWarning("the state that was to take the replica's place had not come: as saved before",
                 {{"path", flags.save}, {"round", before_transfer->value()}});
    } else {
      LogWarning("nothing was saved: the replica is not the run's", {{"path", flags.save}});
    }
  }
  const absl::Status& ending = !trained.ok() ? trained : saved;
  if (!ending.ok()) {
    // Told here where it is not what the program ends with.
    const auto tell = [&](const char* what, const absl::Status& status) {
      if (status.ok()) return;
      LogError(what, {{"error", Describe(status)},
                      {"exit_code", static_cast<int64_t>(ExitCodeFor(ending))}});
    };
    if (!trained.ok()) tell("the replica is not saved", saved);
    tell("the report is not written", reported);
    return ending;
  }
  SIGNVOTE_RETURN_IF_ERROR(reported);
  LogInfo("done", {{"outcome", context.outcome},
                   {"rounds_voted", report.rounds_voted},
                   {"held_out_first", LossOf(report.held_out_first)},
                   {"held_out_last", LossOf(report.held_out_last)},
                   {"digest", report.digest.has_value() ? absl::StrFormat("%016x", *report.digest)
                                                        : "none"}});
  return absl::OkStatus();
}

// Told before it is taken: a machine that promises any amount of memory ends the program when it is
// used. What the run takes on top is known, and told, when it has let this worker in.
absl::Status CheckModelMemory(FileSystem* fs, const ModelConfig& config) {
  SIGNVOTE_ASSIGN_OR_RETURN(const Layout layout, MakeLayout(config));
  return WithExitCode(
      CheckMemory(absl::StrCat("a worker of a model of ", layout.coordinates(), " coordinates"),
                  ModelMemory(layout.coordinates()), AvailableMemory(fs)),
      ExitCode::kNoMemory);
}

void TellOfNeighbours(NeighbourWatch* watch, Time now) {
  const std::optional<ThreadsAdvice> advice = watch->Look(now);
  if (!advice.has_value()) return;
  LogWarning(
      absl::StrCat("other workers compute on the same processors, and each waits for the others; "
                   "give each of them --threads ",
                   advice->threads),
      {{"workers", uint64_t{advice->workers}}, {"processors", uint64_t{advice->processors}}});
}

absl::Status TrainOn(const WorkerFlags& flags, FileSystem* fs, Clock* clock, const Corpus& corpus,
                     LineLog* round_log, WorkerPort* port, const WorkerSignals& signals) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::optional<int> gpu, ParseDevice(flags.model_options.device));
  // With a GPU a worker takes little of the host's memory.
  if (!gpu.has_value()) SIGNVOTE_RETURN_IF_ERROR(CheckModelMemory(fs, corpus.config));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                            MakeTorchModel(corpus.config, flags.model_options));
  LogInfo("model", {{"name", corpus.config.name},
                    {"coordinates", model->layout().coordinates()},
                    {"layout", absl::StrFormat("%016x", model->layout().digest())},
                    {"device", model->device()},
                    {"threads", uint64_t{flags.model_options.threads}}});
  LogInfo("data", {{"corpus", corpus.data->description()}});
  // Declared before the session, whose bits lie in its memory.
  std::unique_ptr<WorkerDevice> device = std::make_unique<HostDevice>();
  if (gpu.has_value()) {
    SIGNVOTE_ASSIGN_OR_RETURN(
        device, MakeCudaDevice(*gpu, [model = model.get()] { return model->current_stream(); }));
  }
  SessionOptions options = flags.session;
  options.metrics_address = port->address();
  options.bits_memory = device->host_memory().get();
  options.wants_run_state = !flags.save.empty();
  Trainer* trains = nullptr;  // the session's calls are the trainer's
  const Session* joined = nullptr;
  ReplicaSaver saver(fs, clock,
                     {.path = flags.save,
                      .every = flags.save_every,
                      .keep = flags.save_keep,
                      .format = flags.save_format,
                      .config_json = ModelConfigJson(corpus.config),
                      .run_state = [&joined] { return joined->run_state(); }});
  options.before_transfer = [&saver, &trains](Round round) {
    saver.BeforeTransfer(trains->report().run, trains->replica(), round);
  };
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session,
                            Session::Create(options, clock));
  joined = session.get();
  std::unique_ptr<WorkerCheckpoints> checkpoints;
  if (!flags.checkpoint.folder.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(checkpoints,
                              WorkerCheckpoints::Open(fs, clock,
                                                      {.folder = flags.checkpoint.folder,
                                                       .worker = session->name(),
                                                       .every = flags.checkpoint.every}));
  }
  port->Show(session.get(), checkpoints.get());
  // However this function is left, no thread of the port asks a session that is gone.
  struct PortStop {
    WorkerPort* port;
    ~PortStop() { port->Stop(); }
  } const port_stop{port};

  Progress progress(StyleOf(flags.progress), STDOUT_FILENO, clock,
                    FromSeconds(flags.progress_seconds), session->name());
  TrainerOptions training = flags.trainer;
  training.eval_rows = EvalRows(flags, corpus.config);
  training.copied_meanwhile = !flags.save_every.never();
  Trainer trainer(session.get(), model.get(), device.get(), corpus.data.get(), clock, training);
  trains = &trainer;
  if (!gpu.has_value()) trainer.set_memory_left([fs] { return AvailableMemory(fs); });
  ProcProcessTable processes(fs);
  // A GPU's worker leaves the processors alone.
  NeighbourWatch neighbours(&processes, gpu.has_value() ? 0 : flags.model_options.threads);
  TellOfNeighbours(&neighbours, clock->Now());
  absl::Status saved;
  trainer.set_on_joined([&](const RunInfo& run) {
    port->metrics()->OnJoined(run);
    progress.OnJoined(run);
    saver.Begin(session->replica_round().value_or(Round(0)));
    LogInfo("joined", {{"run", run.run_id.ToText()},
                       {"main_rounds", run.main_rounds.has_value() ? absl::StrCat(*run.main_rounds)
                                                                   : std::string("unknown")},
                       {"direction", std::string(DirectionName(run.direction.kind))},
                       {"chunks", uint64_t{run.plan.chunks()}}});
  });
  trainer.set_on_round([&](const RoundReport& round) {
    const SessionStats stats = session->Stats();
    port->metrics()->OnRound(MetricsOf(round));
    port->metrics()->OnSession(stats);
    progress.OnRound(round, stats);
    TellOfNeighbours(&neighbours, clock->Now());
    const bool reopen = signals.take_reopen();
    if (round_log != nullptr) {
      if (reopen) round_log->Reopen();
      (void)round_log->Write(RoundLogLine(round));  // false: counted, and told of in the file
    }
    saver.OnCommit(round.kind, round.stepsize);
    const auto asked = signals.take_save() ? ReplicaSaver::Asked::kYes : ReplicaSaver::Asked::kNo;
    if (const std::optional<Round> at = session->replica_round(); at.has_value()) {
      // A device that failed ends the training by itself.
      if (const absl::Status copied =
              saver.AfterRound(trainer.report().run, trainer.replica(), *at, asked);
          !copied.ok())
        LogError("the replica cannot be copied", {{"error", Describe(copied)}});
    }
  });
  absl::Status checkpointed;
  trainer.set_checkpoints(checkpoints.get());
  trainer.set_on_final_replica([&] {
    SaveFinal(flags, &trainer, &saver, &saved);
    checkpointed = trainer.SaveState();
  });

  absl::Status trained;
  {
    const std::stop_callback drain(signals.stop, [&session] {
      LogInfo("stopping: the round in progress is finished first");
      session->RequestDrain("stop signal");
    });
    trained = trainer.Run();
  }
  progress.Finish();
  if (!saved.ok()) HoldReplica(flags, clock, signals, &trainer, &saver, &saved);
  if (!checkpointed.ok()) HoldState(flags, clock, signals, checkpoints.get(), &checkpointed);
  if (!checkpointed.ok() && !(trained.ok() && saved.ok())) {
    LogError("the worker's state is not saved", {{"error", Describe(checkpointed)}});
  }
  port->metrics()->OnSession(session->Stats());
  if (trained.ok() && saved.ok()) saved = checkpointed;
  return WriteResults(flags, fs, *session, *model, *corpus.data, trainer.report(), trained, saved,
                      saver.before_transfer(), checkpoints.get());
}

}  // namespace

absl::Status RunWorker(const WorkerFlags& flags, const WorkerSignals& signals) {
  FileSystem* const fs = FileSystem::Posix();
  Clock* const clock = Clock::System();
  SIGNVOTE_RETURN_IF_ERROR(ChooseIsa().status());
  if (flags.selftest) return Selftest(flags, clock);
  SIGNVOTE_RETURN_IF_ERROR(CheckWorkerFlags(flags, fs, clock));
  Corpus corpus;
  SIGNVOTE_ASSIGN_OR_RETURN(corpus.config, LoadModel(fs, flags));
  if (!flags.save.empty()) {
    SIGNVOTE_RETURN_IF_ERROR(
        WithContext(RequireModelTarget(fs, flags.save, ModelConfigJson(corpus.config)), "--save"));
  }
  SIGNVOTE_ASSIGN_OR_RETURN(corpus.data, LoadData(fs, flags, corpus.config));
  // Before the model: a wrong file name must not cost minutes of training.
  std::unique_ptr<LineLog> round_log;
  if (!flags.round_log.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(round_log, LineLog::Open(fs, flags.round_log));
  }
  WorkerPort port;
  SIGNVOTE_RETURN_IF_ERROR(port.Start(flags.http));
  return TrainOn(flags, fs, clock, corpus, round_log.get(), &port, signals);
}

}  // namespace signvote
