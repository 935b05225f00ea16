#include "ctl/commands.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/process.h"
#include "common/program_beside.h"
#include "common/status.h"
#include "ctl/certs.h"
#include "ctl/journal_commands.h"
#include "ctl/top.h"

namespace signvote::ctl {
namespace {

constexpr int64_t kMicrosPerSecond = 1'000'000;
constexpr const char* kLabProgram = "signvote-lab";
// Of processes, which need no LibTorch.
constexpr const char* kLabRunProgram = "signvote-lab-run";

int64_t UnixSeconds(const CommandHost& host) { return host.clock->UnixMicros() / kMicrosPerSecond; }

absl::StatusOr<std::unique_ptr<AdminClient>> Connect(const CtlFlags& flags,
                                                     const CommandHost& host) {
  return host.create_client(host.fs, flags.admin, UnixSeconds(host));
}

absl::Status Status(const CtlFlags& flags, const CommandHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags, host));
  SIGNVOTE_ASSIGN_OR_RETURN(const v1::Status status, client->GetStatus());
  host.print(flags.json ? RenderJson(status) : RenderTable(status, host.colour));
  return absl::OkStatus();
}

absl::Status Top(const CtlFlags& flags, const CommandHost& host) {
  // First: what is blocked here stays blocked in every thread.
  SIGNVOTE_ASSIGN_OR_RETURN(const auto signals, TopSignals::Create());
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags, host));
  TopOptions options = flags.top;
  options.colour = host.colour;
  return RunTop(options, client.get(), signals.get(), host.clock);
}

absl::Status Pause(const CtlFlags& flags, const CommandHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags, host));
  SIGNVOTE_RETURN_IF_ERROR(client->Pause());
  host.print("paused: the open round completes, no further one opens until `signvote resume`\n");
  return absl::OkStatus();
}

absl::Status Resume(const CtlFlags& flags, const CommandHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags, host));
  SIGNVOTE_RETURN_IF_ERROR(client->Resume());
  host.print("resumed\n");
  return absl::OkStatus();
}

absl::Status Drain(const CtlFlags& flags, const CommandHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags, host));
  SIGNVOTE_RETURN_IF_ERROR(client->Drain(flags.worker));
  host.print(absl::StrCat(flags.worker, ": asked to finish its round and leave\n"));
  return absl::OkStatus();
}

absl::Status Evict(const CtlFlags& flags, const CommandHost& host) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags, host));
  SIGNVOTE_RETURN_IF_ERROR(client->Evict(flags.worker));
  host.print(
      absl::StrCat(flags.worker, ": evicted; its name is refused for the rest of the run\n"));
  return absl::OkStatus();
}

absl::Status Export(const CtlFlags& flags, const CommandHost& host) {
  if (!flags.journal.empty()) return ExportFromJournal(flags, host);
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags, host));
  SIGNVOTE_ASSIGN_OR_RETURN(const Exported exported,
                            client->Export(host.fs, flags.file, flags.format));
  const WrittenModel& model = exported.model;
  host.print(absl::StrCat(model.path, ": round ", exported.round, ", ", model.bytes, " bytes",
                          model.files > 1 ? absl::StrCat(" in ", model.files, " files") : "",
                          exported.has_config ? ", config.json beside it" : "", "\n"));
  return absl::OkStatus();
}

absl::Status Certs(const CtlFlags& flags, const CommandHost& host) {
  CertsOptions options = flags.certs;
  options.now_unix_seconds = UnixSeconds(host);
  SIGNVOTE_ASSIGN_OR_RETURN(const CertsReport report, MakeCerts(host.fs, options));
  for (const std::string& name : report.created)
    host.print(absl::StrCat("made  ", options.directory, "/", name, "\n"));
  for (const std::string& name : report.kept)
    host.print(absl::StrCat("kept  ", options.directory, "/", name, "\n"));
  return absl::OkStatus();
}

absl::Status Lab(const CtlFlags& flags, const CommandHost& host) {
  if (flags.lab.empty() || flags.lab.front() != "run") return host.become(kLabProgram, flags.lab);
  return host.become(kLabRunProgram, {flags.lab.begin() + 1, flags.lab.end()});
}

}  // namespace

absl::Status BecomeProgram(const std::string& name, const std::vector<std::string>& arguments) {
  const std::string path = ProgramBeside(name);
  std::vector<std::string> texts{name};
  texts.insert(texts.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& text : texts) argv.push_back(text.data());
  argv.push_back(nullptr);
  ::execv(path.c_str(), argv.data());
  return absl::UnavailableError(absl::StrCat(path, " cannot be started: ", std::strerror(errno),
                                             name == kLabProgram
                                                 ? "; it is built and installed where LibTorch is"
                                                 : "; it belongs beside this program"));
}

absl::Status RunCommand(const CtlFlags& flags, const CommandHost& host) {
  switch (flags.command) {
    case Command::kStatus:
      return Status(flags, host);
    case Command::kTop:
      return Top(flags, host);
    case Command::kPause:
      return Pause(flags, host);
    case Command::kResume:
      return Resume(flags, host);
    case Command::kDrain:
      return Drain(flags, host);
    case Command::kEvict:
      return Evict(flags, host);
    case Command::kExport:
      return Export(flags, host);
    case Command::kJournalVerify:
    case Command::kJournalDump:
    case Command::kJournalTruncate:
      return LookAfterJournal(flags, host);
    case Command::kCerts:
      return Certs(flags, host);
    case Command::kLab:
      return Lab(flags, host);
    case Command::kVersion:
      host.print(absl::StrCat("signvote ", SoftwareVersion(), "\n"));
      return absl::OkStatus();
  }
  SIGNVOTE_CHECK(false);
}

}  // namespace signvote::ctl
