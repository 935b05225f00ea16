// signvote: the operator's command line. docs/operations.md.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/flags/flags.h"
#include "common/process.h"
#include "common/status.h"
#include "common/text.h"
#include "ctl/admin_client.h"
#include "ctl/certs.h"
#include "ctl/render.h"
#include "ctl/top.h"
#include "proto/wire/grpc_log.h"

namespace signvote::ctl {
namespace {

constexpr int64_t kMicrosPerSecond = 1'000'000;

struct Flags {
  AdminClientOptions admin;
  std::string tls_dir;
  double timeout_seconds = 10;
  bool json = false, lines = false, once = false;
  double interval_seconds = 1, server_timeout_seconds = 600;
  std::string worker;
  std::string file;
  CertsOptions certs;
};

int64_t NowUnixSeconds() { return Clock::System()->UnixMicros() / kMicrosPerSecond; }

void Print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

Colour TerminalColour() {
  // https://no-color.org: present and not empty.
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && no_color[0] != '\0') return Colour::kOff;
  return isatty(STDOUT_FILENO) != 0 ? Colour::kOn : Colour::kOff;
}

absl::StatusOr<std::unique_ptr<AdminClient>> Connect(const Flags& flags) {
  AdminClientOptions options = flags.admin;
  options.timeout = FromSeconds(flags.timeout_seconds);
  if (!flags.tls_dir.empty()) {
    if (options.tls.ca.empty()) options.tls.ca = flags.tls_dir + "/ca.crt";
    if (options.tls.certificate.empty()) options.tls.certificate = flags.tls_dir + "/admin.crt";
    if (options.tls.key.empty()) options.tls.key = flags.tls_dir + "/admin.key";
  }
  return AdminClient::Create(FileSystem::Posix(), options, NowUnixSeconds());
}

absl::Status Status(const Flags& flags) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags));
  SIGNVOTE_ASSIGN_OR_RETURN(const v1::Status status, client->GetStatus());
  Print(flags.json ? RenderJson(status) : RenderTable(status, TerminalColour()));
  return absl::OkStatus();
}

absl::Status Top(const Flags& flags) {
  if (flags.lines + flags.json + flags.once > 1) {
    return absl::InvalidArgumentError(
        "--lines, --json and --once exclude one another; give one of them");
  }
  // First: what is blocked here stays blocked in every thread.
  SIGNVOTE_ASSIGN_OR_RETURN(const auto signals, TopSignals::Create());
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags));
  const TopOptions options{.mode = flags.once    ? TopMode::kOnce
                                   : flags.json  ? TopMode::kJson
                                   : flags.lines ? TopMode::kLines
                                                 : TopMode::kScreen,
                           .interval = FromSeconds(flags.interval_seconds),
                           .server_timeout = FromSeconds(flags.server_timeout_seconds),
                           .server = flags.admin.server,
                           .colour = TerminalColour()};
  return RunTop(options, client.get(), signals.get(), Clock::System());
}

absl::Status Pause(const Flags& flags) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags));
  SIGNVOTE_RETURN_IF_ERROR(client->Pause());
  Print("paused: the open round completes, no further one opens until `signvote resume`\n");
  return absl::OkStatus();
}

absl::Status Resume(const Flags& flags) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags));
  SIGNVOTE_RETURN_IF_ERROR(client->Resume());
  Print("resumed\n");
  return absl::OkStatus();
}

absl::Status Drain(const Flags& flags) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags));
  SIGNVOTE_RETURN_IF_ERROR(client->Drain(flags.worker));
  Print(absl::StrCat(flags.worker, ": asked to finish its round and leave\n"));
  return absl::OkStatus();
}

absl::Status Evict(const Flags& flags) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags));
  SIGNVOTE_RETURN_IF_ERROR(client->Evict(flags.worker));
  Print(absl::StrCat(flags.worker, ": evicted; its name is refused for the rest of the run\n"));
  return absl::OkStatus();
}

absl::Status Export(const Flags& flags) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto client, Connect(flags));
  SIGNVOTE_ASSIGN_OR_RETURN(const AdminClient::Exported exported,
                            client->Export(FileSystem::Posix(), flags.file));
  Print(absl::StrCat(flags.file, ": round ", exported.round, ", ", exported.bytes, " bytes",
                     exported.has_config ? ", config.json beside it" : "", "\n"));
  return absl::OkStatus();
}

absl::Status Certs(const Flags& flags) {
  CertsOptions options = flags.certs;
  options.now_unix_seconds = NowUnixSeconds();
  SIGNVOTE_ASSIGN_OR_RETURN(const CertsReport report, MakeCerts(FileSystem::Posix(), options));
  for (const std::string& name : report.created)
    Print(absl::StrCat("made  ", options.directory, "/", name, "\n"));
  for (const std::string& name : report.kept)
    Print(absl::StrCat("kept  ", options.directory, "/", name, "\n"));
  return absl::OkStatus();
}

absl::Status Version(const Flags&) {
  Print(absl::StrCat("signvote ", SoftwareVersion(), "\n"));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  OpenStandardDescriptors();
  IgnoreFileSizeSignal();
  TuneMalloc();
  wire::RouteGrpcLog();
  Flags flags;
  absl::Status (*command)(const Flags&) = nullptr;

  CLI::App app("signvote: look after a training run. Exit codes: docs/operations.md.", "signvote");
  app.set_version_flag("--version", absl::StrCat("signvote ", SoftwareVersion()));
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--server", flags.admin.server, "HOST:PORT of the server")
      ->type_name("HOST:PORT")
      ->envname("SIGNVOTE_SERVER")
      ->check(Kind(ValueKind::kDial));
  app.add_option("--tls-dir", flags.tls_dir,
                 "folder with ca.crt, admin.crt and admin.key, as `certs` makes it")
      ->type_name("DIR")
      ->envname("SIGNVOTE_TLS_DIR")
      ->check(Kind(ValueKind::kFolder));
  app.add_option("--tls-ca", flags.admin.tls.ca, "PEM file: who may sign the server's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app.add_option("--tls-certificate", flags.admin.tls.certificate,
                 "PEM file: the operator's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app.add_option("--tls-key", flags.admin.tls.key, "PEM file: its private key")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app.add_flag("--insecure", flags.admin.insecure, "plaintext, to a server that runs --insecure");
  app.add_option("--timeout", flags.timeout_seconds,
                 "seconds that a call, or a step of an export, may take")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 3600));

  const auto add = [&](const char* name, const char* help, absl::Status (*run)(const Flags&)) {
    CLI::App* sub = app.add_subcommand(name, help);
    sub->callback([&command, run] { command = run; });
    return sub;
  };
  add("status", "show the run and its workers", &Status)
      ->add_flag("--json", flags.json, "one JSON object, fields as in admin.proto");
  CLI::App* top =
      add("top", "watch the run: live on a terminal (key h: help), as lines where output is piped",
          &Top);
  top->add_option("--interval", flags.interval_seconds, "seconds between two looks")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 60));
  top->add_flag("--lines", flags.lines, "lines of stable columns, on a terminal too");
  top->add_flag("--json", flags.json, "one JSON object a line: `status --json`, and new events");
  top->add_flag("--once", flags.once, "one picture as text, after one interval");
  top->add_option("--server-timeout", flags.server_timeout_seconds,
                  "with lines or JSON: seconds for which a lost server is looked for")
      ->capture_default_str()
      ->check(NumberBetween(0, 86400));
  add("pause", "open no further round", &Pause);
  add("resume", "open rounds again", &Resume);
  add("drain", "ask a worker to finish its round and leave", &Drain)
      ->add_option("WORKER", flags.worker, "its name")
      ->type_name("")
      ->required()
      ->check(Kind(ValueKind::kText));
  add("evict", "close a worker's session and refuse its name from now on", &Evict)
      ->add_option("WORKER", flags.worker, "its name")
      ->type_name("")
      ->required()
      ->check(Kind(ValueKind::kText));
  add("export", "write the model as a safetensors file, config.json beside it", &Export)
      ->add_option("FILE", flags.file, "file to write")
      ->type_name("FILE")
      ->required()
      ->check(Kind(ValueKind::kNewFile));
  CLI::App* certs =
      add("certs", "make a development CA, certificates and join tokens, or add workers to them",
          &Certs);
  certs
      ->add_option("DIR", flags.certs.directory,
                   "folder; made if missing, nothing in it is overwritten")
      ->required()
      ->check(Kind(ValueKind::kNewFolder));
  certs
      ->add_option("--server-name", flags.certs.server_names,
                   "host name or address that workers dial; repeatable")
      ->check(Kind(ValueKind::kHost));
  certs->add_option("--worker", flags.certs.workers, "worker name; repeatable")
      ->check(Kind(ValueKind::kText));
  certs->add_option("--days", flags.certs.days, "validity of new certificates in days")
      ->capture_default_str();
  add("version", "print the version", &Version);

  std::string print;
  absl::Status status = ParseFlags(&app, argc, argv, FileSystem::Posix(), &print);
  if (status.ok() && print.empty()) status = command(flags);
  Print(print);
  if (!status.ok()) {
    const std::string text = Describe(status);  // a path in it may be no UTF-8, or have several lines
    std::fprintf(stderr, "signvote: %s\n", ForPeople(text, text.size()).c_str());
  }
  if (std::fflush(stdout) != 0) return static_cast<int>(ExitCode::kInternal);
  return static_cast<int>(ExitCodeFor(status));
}

}  // namespace
}  // namespace signvote::ctl

int main(int argc, char** argv) { return signvote::ctl::Main(argc, argv); }
