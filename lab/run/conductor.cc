#include "lab/run/conductor.h"

#include <signal.h>

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/exit_codes.h"
#include "common/rng.h"
#include "common/status.h"

namespace signvote::lab {
namespace {

constexpr Duration kPoll = std::chrono::milliseconds(10);
constexpr Duration kListenTime = std::chrono::seconds(60);
constexpr Duration kDeathTime = std::chrono::seconds(10);    // of what got SIGKILL
constexpr Duration kControlTime = std::chrono::seconds(20);  // of one command
constexpr Duration kEndTime = std::chrono::seconds(60);      // of what was asked to end
constexpr Duration kLateTime = std::chrono::seconds(10);     // after the server's own end
constexpr Duration kExplainTime = std::chrono::seconds(5);
constexpr uint32_t kFileMode = 0644;
constexpr uint32_t kFolderMode = 0755;
constexpr uint64_t kTextBytesMax = 16 << 20;
constexpr uint16_t kOwnPort = 7070;  // in a network of the run's own
// Below the ports that the kernel hands out by itself: one of those might be somebody else's while the server is
// away, or a worker's that looks for it.
constexpr uint64_t kPortsFirst = 20000, kPorts = 12000;
constexpr int kPortTries = 20;
constexpr const char* kServer = "server";

std::string LastLines(const std::string& text) {
  constexpr size_t kLines = 3;
  std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipWhitespace());
  if (lines.size() > kLines) lines.erase(lines.begin(), lines.end() - kLines);
  return absl::StrJoin(lines, " | ");
}

}  // namespace

struct Conductor::Worker {
  std::optional<int64_t> id;  // nullopt: it is away
  uint32_t starts = 0;
  size_t record = 0;  // of record_.processes, its last
  bool asked_to_leave = false;
  bool paused = false;
};

Conductor::Conductor(ConductorHost host, ConductorOptions options, Scenario scenario,
                     RunFolder folder)
    : host_(std::move(host)),
      options_(std::move(options)),
      scenario_(std::move(scenario)),
      folder_(std::move(folder)),
      timeline_(scenario_),
      feed_(host_.fs, folder_.RoundLog()) {}

Conductor::~Conductor() = default;

double Conductor::UnixSeconds() const {
  return static_cast<double>(host_.clock->UnixMicros()) * 1e-6;
}

double Conductor::Elapsed() const {
  return first_commit_.has_value() ? ToSeconds(host_.clock->Now() - *first_commit_) : 0;
}

size_t Conductor::Alive() const {
  return static_cast<size_t>(std::count_if(workers_.begin(), workers_.end(), [](const auto& entry) {
    return entry.second.id.has_value() && !entry.second.paused;
  }));
}

void Conductor::Note(ScenarioEventKind kind, const std::string& worker, const std::string& words,
                     bool applied) {
  record_.events.push_back({.kind = kind,
                            .worker = worker,
                            .unix_seconds = UnixSeconds(),
                            .round = feed_.rounds(),
                            .applied = applied});
  host_.tell(absl::StrFormat("%7.1f s  round %-6d %s %s", Elapsed(), feed_.rounds(),
                             worker.empty() ? kServer : worker, words));
}

absl::Status Conductor::EndedBadly(const std::string& process, const ProcessEnd& end) const {
  const std::string path = folder_.Log(process);
  const auto log = host_.fs->ReadFile(path, kTextBytesMax);
  absl::Status status = absl::UnavailableError(
      absl::StrCat(process, " ended by itself with ", EndText(end), "; its log is ", path,
                   log.ok() && !log->empty() ? absl::StrCat(", and ends: ", LastLines(*log)) : ""));
  if (end.signal == 0 && end.code > 0 && end.code <= static_cast<int>(kExitCodeMax))
    status = WithExitCode(std::move(status), static_cast<ExitCode>(end.code));
  return status;
}

absl::Status Conductor::WaitFor(const std::string& what, Duration most,
                                const std::function<bool()>& done) {
  const Time deadline = host_.clock->Now() + most;
  while (!done()) {
    if (host_.clock->Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrFormat("after %.0f s still not: %s; logs are in %s", ToSeconds(most), what,
                          folder_.path + "/logs"));
    }
    // A second stop ends this program at once.
    host_.clock->SleepFor(kPoll);
  }
  return absl::OkStatus();
}

absl::Status Conductor::StartServer() {
  (void)host_.fs->Remove(folder_.Ports());  // of the one before
  std::vector<std::string> command = ServerCommand(scenario_, options_.programs, folder_, place_);
  if (links_ != nullptr) command = links_->Enter(kServer, std::move(command));
  server_.due.reset();
  ++server_.starts;
  SIGNVOTE_ASSIGN_OR_RETURN(
      const int64_t id,
      host_.processes->Start(command, folder_.Log(absl::StrCat(kServer, ".", server_.starts))));
  server_.id = id;
  progress_ = host_.clock->Now();
  return absl::OkStatus();
}

absl::Status Conductor::WaitUntilListening() {
  return WaitFor("the server listens", kListenTime, [&] {
    return host_.fs->FileSize(folder_.Ports()).ok() ||
           host_.processes->Ended(*server_.id).has_value();
  });
}

absl::Status Conductor::Begin() {
  record_.start_unix_seconds = UnixSeconds();
  for (const char* const folder : {"/logs", "/workers"})
    SIGNVOTE_RETURN_IF_ERROR(host_.fs->MakeDirectories(folder_.path + folder, kFolderMode));
  if (scenario_.links.has_value()) {
    links_ = std::make_unique<LinkedHosts>(host_.processes, host_.clock, host_.fs,
                                           folder_.path + "/logs");
    SIGNVOTE_RETURN_IF_ERROR(links_->Add(kServer, {}));
    for (const std::string& worker : scenario_.AllWorkers())
      SIGNVOTE_RETURN_IF_ERROR(links_->Add(worker, scenario_.LinkOf(worker)));
    place_ = {.host = links_->AddressOf(kServer), .port = kOwnPort, .loopback = false};
  }
  Rng ports(static_cast<uint64_t>(host_.clock->UnixMicros()), 0);
  for (int tries = 1;; ++tries) {
    if (links_ == nullptr) place_.port = static_cast<uint16_t>(kPortsFirst + ports.Below(kPorts));
    SIGNVOTE_RETURN_IF_ERROR(StartServer());
    SIGNVOTE_RETURN_IF_ERROR(WaitUntilListening());
    const auto end = host_.processes->Ended(*server_.id);
    if (!end.has_value()) break;
    if (end->code != static_cast<int>(ExitCode::kPortInUse) || tries == kPortTries)
      return EndedBadly(absl::StrCat(kServer, ".", server_.starts), *end);
  }
  for (const std::string& worker : scenario_.workers) SIGNVOTE_RETURN_IF_ERROR(StartWorker(worker));
  progress_ = host_.clock->Now();
  return absl::OkStatus();
}

absl::Status Conductor::StartWorker(const std::string& name) {
  Worker& worker = workers_[name];
  const std::string process = absl::StrCat(name, ".", ++worker.starts);
  if (worker.starts == 1 && scenario_.IsSlowed(name)) {
    const FlagMap flags = scenario_.FlagsOf(name);
    const auto found = flags.find("compute-ms");
    SIGNVOTE_RETURN_IF_ERROR(WriteFileAtomically(host_.fs, folder_.ComputeFile(name),
                                                 found == flags.end() ? "0" : found->second,
                                                 kFileMode));
  }
  std::vector<std::string> command =
      WorkerCommand(scenario_, options_.programs, folder_, place_, name, process);
  if (links_ != nullptr) command = links_->Enter(name, std::move(command));
  SIGNVOTE_ASSIGN_OR_RETURN(const int64_t id,
                            host_.processes->Start(command, folder_.Log(process)));
  worker.id = id;
  worker.asked_to_leave = worker.paused = false;
  worker.record = record_.processes.size();
  record_.processes.push_back(
      {.name = process, .worker = name, .start_unix_seconds = UnixSeconds()});
  return absl::OkStatus();
}

absl::Status Conductor::KillServer(double for_seconds) {
  if (!server_.id.has_value()) {
    Note(ScenarioEventKind::kServerKill, "", "is away already", /*applied=*/false);
    return absl::OkStatus();
  }
  const int64_t id = *server_.id;
  Note(ScenarioEventKind::kServerKill, "", "killed");
  host_.processes->Signal(id, SIGKILL);
  SIGNVOTE_RETURN_IF_ERROR(WaitFor("the killed server is gone", kDeathTime,
                                   [&] { return host_.processes->Ended(id).has_value(); }));
  server_.id.reset();
  server_.due = host_.clock->Now() + FromSeconds(for_seconds);
  return for_seconds > 0 ? absl::OkStatus() : ReturnServer();
}

absl::Status Conductor::ReturnServer() { return StartServer(); }

absl::Status Conductor::ApplyToWorker(const TimelineAction& action) {
  Worker& worker = workers_[action.worker];
  const std::string& name = action.worker;
  const auto nothing = [&](const std::string& why) {
    Note(action.kind, name, why, /*applied=*/false);
    return absl::OkStatus();
  };
  if (action.kind == ScenarioEventKind::kJoin) {
    if (worker.id.has_value() && !worker.asked_to_leave) return nothing("is there already");
    if (worker.id.has_value()) {
      record_.processes[worker.record].killed = true;
      record_.processes[worker.record].end_unix_seconds = UnixSeconds();
      host_.processes->Signal(*worker.id, SIGKILL);
    }
    Note(action.kind, name, "started");
    return StartWorker(name);
  }
  if (action.kind == ScenarioEventKind::kSlow) {
    Note(action.kind, name, absl::StrCat("computes for ", action.compute_ms, " ms from now on"));
    return WriteFileAtomically(host_.fs, folder_.ComputeFile(name), absl::StrCat(action.compute_ms),
                               kFileMode);
  }
  if (action.kind == ScenarioEventKind::kLink) {
    Note(action.kind, name, action.link.cut ? "is cut off" : "has another link");
    return links_->Shape(name, action.link);
  }
  if (!worker.id.has_value()) return nothing("is away already");
  switch (action.kind) {
    case ScenarioEventKind::kKill:
      Note(action.kind, name, "killed");
      record_.processes[worker.record].killed = true;
      host_.processes->Signal(*worker.id, SIGKILL);
      return absl::OkStatus();
    case ScenarioEventKind::kLeave:
      Note(action.kind, name, "asked to leave");
      worker.asked_to_leave = true;
      // One that is stopped hears nothing.
      if (std::exchange(worker.paused, false)) host_.processes->Signal(*worker.id, SIGCONT);
      host_.processes->Signal(*worker.id, SIGTERM);
      return absl::OkStatus();
    case ScenarioEventKind::kPause:
      Note(action.kind, name, "paused");
      worker.paused = true;
      host_.processes->Signal(*worker.id, SIGSTOP);
      return absl::OkStatus();
    case ScenarioEventKind::kResume:
      if (!std::exchange(worker.paused, false)) return nothing("goes on already");
      Note(action.kind, name, "goes on");
      host_.processes->Signal(*worker.id, SIGCONT);
      return absl::OkStatus();
    default:
      return absl::OkStatus();
  }
}

absl::Status Conductor::Apply(const TimelineAction& action) {
  // Whoever has just ended is away, and not one that something can be done to.
  SIGNVOTE_RETURN_IF_ERROR(LookAtWorkers());
  if (action.kind == ScenarioEventKind::kServerKill) return KillServer(action.for_seconds);
  return ApplyToWorker(action);
}

absl::Status Conductor::LookAtServer() {
  if (!server_.id.has_value()) {
    const bool due = server_.due.has_value() && host_.clock->Now() >= *server_.due;
    return due ? ReturnServer() : absl::OkStatus();
  }
  const auto end = host_.processes->Ended(*server_.id);
  if (!end.has_value()) return absl::OkStatus();
  if (end->signal != 0 || end->code != 0)
    return EndedBadly(absl::StrCat(kServer, ".", server_.starts), *end);
  server_.over = true;
  return absl::OkStatus();
}

absl::Status Conductor::LookAtWorkers() {
  for (auto& [name, worker] : workers_) {
    if (!worker.id.has_value()) continue;
    const auto end = host_.processes->Ended(*worker.id);
    if (!end.has_value()) continue;
    worker.id.reset();
    RecordedProcess& process = record_.processes[worker.record];
    process.end_unix_seconds = UnixSeconds();
    process.exit_code = end->code;
    if (process.killed || (end->signal == 0 && end->code == 0) || !failure_.ok()) continue;
    // It came, or came back, when there was nobody left to come to.
    if (server_.over && end->code == static_cast<int>(ExitCode::kUnavailable)) continue;
    failure_ = EndedBadly(process.name, *end);
    failure_until_ = host_.clock->Now() + kExplainTime;
  }
  // Workers end with their server's reason, which is then the one to tell.
  if (!failure_.ok() && host_.clock->Now() > failure_until_) return failure_;
  return absl::OkStatus();
}

absl::Status Conductor::LookAtPatience() {
  const Duration waited = host_.clock->Now() - progress_;
  // A run that waits for somebody to come back is not stuck.
  if (Alive() == 0) progress_ = host_.clock->Now();
  if (waited < options_.patience) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrFormat(
      "no commit for %.0f s, after %d rounds, with %d workers there and the server %s; logs are in "
      "%s",
      ToSeconds(waited), feed_.rounds(), Alive(), server_.id.has_value() ? "running" : "away",
      folder_.path + "/logs"));
}

absl::Status Conductor::Loop() {
  while (true) {
    if (feed_.Read()) {
      progress_ = host_.clock->Now();
      if (!first_commit_.has_value()) first_commit_ = progress_;
    }
    SIGNVOTE_RETURN_IF_ERROR(LookAtServer());
    if (server_.over) {
      (void)feed_.Read();  // whether there is more: it is counted
      record_.outcome = "finished";
      return WaitForLateWorkers();
    }
    SIGNVOTE_RETURN_IF_ERROR(LookAtWorkers());
    SIGNVOTE_RETURN_IF_ERROR(LookAtPatience());
    if (first_commit_.has_value()) {
      const bool late = scenario_.seconds.has_value() && Elapsed() >= *scenario_.seconds;
      if (late || feed_.minibatches() >= scenario_.minibatches.value_or(UINT64_MAX)) {
        record_.outcome = "ended";
        return EndInOrder();
      }
      for (const TimelineAction& action : timeline_.Due(feed_.rounds(), Elapsed()))
        SIGNVOTE_RETURN_IF_ERROR(Apply(action));
    }
    if (host_.wait(kPoll)) {
      record_.outcome = "stopped";
      // Nothing was trained that would have to be kept.
      if (!first_commit_.has_value())
        return absl::CancelledError("stopped before the first commit");
      return EndInOrder();
    }
  }
}

absl::Status Conductor::WaitForLateWorkers() {
  const auto all_gone = [&] {
    return !LookAtWorkers().ok() ||
           std::none_of(workers_.begin(), workers_.end(),
                        [](const auto& entry) { return entry.second.id.has_value(); });
  };
  const Time deadline = host_.clock->Now() + kLateTime;
  for (auto& [name, worker] : workers_)
    if (worker.id.has_value() && std::exchange(worker.paused, false))
      host_.processes->Signal(*worker.id, SIGCONT);
  while (!all_gone() && host_.clock->Now() < deadline) host_.clock->SleepFor(kPoll);
  // Whoever was not there when the run ended would look for its server for long.
  for (auto& [name, worker] : workers_)
    if (worker.id.has_value()) host_.processes->Signal(*worker.id, SIGTERM);
  return WaitForWorkers("the run is over, and every worker has ended");
}

absl::Status Conductor::WaitForWorkers(const std::string& why) {
  std::string who;
  for (auto& [name, worker] : workers_) {
    if (!worker.id.has_value()) continue;
    if (std::exchange(worker.paused, false)) host_.processes->Signal(*worker.id, SIGCONT);
    absl::StrAppend(&who, who.empty() ? "" : ", ", name);
  }
  absl::Status looked;
  SIGNVOTE_RETURN_IF_ERROR(WaitFor(absl::StrCat(why, " (", who, ")"), kEndTime, [&] {
    looked = LookAtWorkers();
    return !looked.ok() || std::none_of(workers_.begin(), workers_.end(), [](const auto& entry) {
      return entry.second.id.has_value();
    });
  }));
  SIGNVOTE_RETURN_IF_ERROR(looked);
  return failure_;
}

absl::Status Conductor::Control(const std::vector<std::string>& words, std::string* said) {
  std::vector<std::string> command = ControlCommand(options_.programs, place_, words);
  if (links_ != nullptr) command = links_->Enter(kServer, std::move(command));
  const std::string path = folder_.Log("control");
  (void)host_.fs->Remove(path);  // of the command before
  SIGNVOTE_ASSIGN_OR_RETURN(const int64_t id, host_.processes->Start(command, path));
  std::optional<ProcessEnd> end;
  SIGNVOTE_RETURN_IF_ERROR(
      WaitFor(absl::StrCat("signvote ", words.front(), " has ended"), kControlTime, [&] {
        end = host_.processes->Ended(id);
        return end.has_value();
      }));
  SIGNVOTE_ASSIGN_OR_RETURN(*said, host_.fs->ReadFile(path, kTextBytesMax));
  if (end->code == 0 && end->signal == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("signvote ", words.front(), " ended with ",
                                             EndText(*end), ": ", LastLines(*said)));
}

absl::Status Conductor::EndInOrder() {
  host_.tell(absl::StrFormat("%7.1f s  round %-6d ending the run", Elapsed(), feed_.rounds()));
  if (!server_.id.has_value()) SIGNVOTE_RETURN_IF_ERROR(ReturnServer());
  SIGNVOTE_RETURN_IF_ERROR(WaitUntilListening());
  for (auto& [name, worker] : workers_)
    if (worker.id.has_value() && std::exchange(worker.paused, false))
      host_.processes->Signal(*worker.id, SIGCONT);
  // Between two rounds all replicas are the same.
  std::string said;
  SIGNVOTE_RETURN_IF_ERROR(Control({"pause"}, &said));
  absl::Status asked;
  SIGNVOTE_RETURN_IF_ERROR(WaitFor("the open round is over and the run paused", kEndTime, [&] {
    asked = Control({"status", "--json"}, &said);
    if (!asked.ok()) return true;
    const auto status = nlohmann::json::parse(said, nullptr, /*allow_exceptions=*/false);
    return status.is_object() && status.value("phase", "") == "paused";
  }));
  SIGNVOTE_RETURN_IF_ERROR(asked);
  for (auto& [name, worker] : workers_) {
    if (!worker.id.has_value()) continue;
    worker.asked_to_leave = true;
    host_.processes->Signal(*worker.id, SIGTERM);
  }
  SIGNVOTE_RETURN_IF_ERROR(WaitForWorkers("every worker has left"));
  host_.processes->Signal(*server_.id, SIGTERM);
  std::optional<ProcessEnd> end;
  SIGNVOTE_RETURN_IF_ERROR(WaitFor("the server has ended", kEndTime, [&] {
    end = host_.processes->Ended(*server_.id);
    return end.has_value();
  }));
  (void)feed_.Read();  // whether there is more: it is counted
  return end->code == 0 && end->signal == 0
             ? absl::OkStatus()
             : EndedBadly(absl::StrCat(kServer, ".", server_.starts), *end);
}

absl::Status Conductor::Run() {
  absl::Status status = Begin();
  if (status.ok()) status = Loop();
  if (!status.ok()) record_.outcome = absl::IsCancelled(status) ? "stopped" : "failed";
  const double now = UnixSeconds();
  for (RecordedProcess& process : record_.processes)
    if (!process.end_unix_seconds.has_value()) process.end_unix_seconds = now;
  return status;
}

}  // namespace signvote::lab
