#include "ctl/flags.h"

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/flags/flags.h"
#include "common/process.h"
#include "common/status.h"

namespace signvote::ctl {
namespace {

// As typed, before it becomes what the commands work with.
struct Typed {
  std::string tls_dir;
  double timeout_seconds = 10;
  bool lines = false, once = false;
  double interval_seconds = 1, server_timeout_seconds = 600;
  std::string dtype = "f32";
};

void AddConnection(CLI::App* app, AdminClientOptions* admin, Typed* typed) {
  app->add_option("--server", admin->server, "HOST:PORT of the server")
      ->type_name("HOST:PORT")
      ->envname("SIGNVOTE_SERVER")
      ->check(Kind(ValueKind::kDial));
  app->add_option("--tls-dir", typed->tls_dir,
                  "folder with ca.crt, admin.crt and admin.key, as `certs` makes it")
      ->type_name("DIR")
      ->envname("SIGNVOTE_TLS_DIR")
      ->check(Kind(ValueKind::kFolder));
  app->add_option("--tls-ca", admin->tls.ca, "PEM file: who may sign the server's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_option("--tls-certificate", admin->tls.certificate,
                  "PEM file: the operator's certificate")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_option("--tls-key", admin->tls.key, "PEM file: its private key")
      ->type_name("FILE")
      ->check(Kind(ValueKind::kFile));
  app->add_flag("--insecure", admin->insecure, "plaintext, to a server that runs --insecure");
  app->add_option("--timeout", typed->timeout_seconds,
                  "seconds that a call, or a step of an export, may take")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 3600));
}

void AddTop(CLI::App* top, CtlFlags* flags, Typed* typed) {
  top->add_option("--interval", typed->interval_seconds, "seconds between two looks")
      ->capture_default_str()
      ->check(NumberBetween(0.1, 60));
  top->add_flag("--lines", typed->lines, "lines of stable columns, on a terminal too");
  top->add_flag("--json", flags->json, "one JSON object a line: `status --json`, and new events");
  top->add_flag("--once", typed->once, "one picture as text, after one interval");
  top->add_option("--server-timeout", typed->server_timeout_seconds,
                  "with lines or JSON: seconds for which a lost server is looked for")
      ->capture_default_str()
      ->check(NumberBetween(0, 86400));
}

void AddExport(CLI::App* sub, CtlFlags* flags, Typed* typed) {
  sub->add_option("FILE", flags->file, "file to write")
      ->type_name("FILE")
      ->required()
      ->check(Kind(ValueKind::kNewModel));
  sub->add_option("--dtype", typed->dtype,
                  "how its numbers are stored: f32; bf16, rounded to half the bytes")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  sub->add_option("--shard-bytes", flags->format.shard_bytes,
                  "a model of more bytes is written as several files behind an index; 0: one file")
      ->capture_default_str()
      ->check(AnyUnsigned());
  sub->add_option("--journal", flags->journal,
                  "a server's journal, in place of a server: the model is rebuilt from it")
      ->type_name("DIR")
      ->check(Kind(ValueKind::kFolder));
  sub->add_option("--round", flags->round,
                  "with --journal: the model behind so many rounds; else behind all of them")
      ->check(AnyUnsigned());
}

void AddJournal(CLI::App* journal, CtlFlags* flags) {
  journal->require_subcommand(1);
  const auto add = [journal, flags](const char* name, const char* help, Command command) {
    CLI::App* sub = journal->add_subcommand(name, help);
    sub->callback([flags, command] { flags->command = command; });
    sub->add_option("DIR", flags->journal, "the journal's folder")
        ->type_name("DIR")
        ->required()
        ->check(Kind(ValueKind::kFolder));
  };
  add("verify", "read all of it, and play it as a server would", Command::kJournalVerify);
  add("dump", "print one line a record", Command::kJournalDump);
  add("truncate", "cut it where it is damaged, and give up what follows; no server may run on it",
      Command::kJournalTruncate);
}

void AddCerts(CLI::App* sub, CertsOptions* certs) {
  sub->add_option("DIR", certs->directory, "folder; made if missing, nothing in it is overwritten")
      ->required()
      ->check(Kind(ValueKind::kNewFolder));
  sub->add_option("--server-name", certs->server_names,
                  "host name or address that workers dial; repeatable")
      ->check(Kind(ValueKind::kHost));
  sub->add_option("--worker", certs->workers, "worker name; repeatable")
      ->check(Kind(ValueKind::kText));
  sub->add_option("--days", certs->days, "validity of new certificates in days")
      ->capture_default_str();
}

absl::Status Finish(const Typed& typed, CtlFlags* flags) {
  if (typed.lines + flags->json + typed.once > 1) {
    return absl::InvalidArgumentError(
        "--lines, --json and --once exclude one another; give one of them");
  }
  if (flags->round.has_value() && flags->journal.empty())
    return absl::InvalidArgumentError("--round needs --journal DIR, from which it is rebuilt");
  SIGNVOTE_ASSIGN_OR_RETURN(flags->format.dtype, ParseWrittenDtype("--dtype", typed.dtype));
  flags->admin.timeout = FromSeconds(typed.timeout_seconds);
  if (!typed.tls_dir.empty()) {
    wire::TlsFiles& tls = flags->admin.tls;
    if (tls.ca.empty()) tls.ca = typed.tls_dir + "/ca.crt";
    if (tls.certificate.empty()) tls.certificate = typed.tls_dir + "/admin.crt";
    if (tls.key.empty()) tls.key = typed.tls_dir + "/admin.key";
  }
  flags->top.mode = typed.once    ? TopMode::kOnce
                    : flags->json ? TopMode::kJson
                    : typed.lines ? TopMode::kLines
                                  : TopMode::kScreen;
  flags->top.interval = FromSeconds(typed.interval_seconds);
  flags->top.server_timeout = FromSeconds(typed.server_timeout_seconds);
  flags->top.server = flags->admin.server;
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseCtlFlags(int argc, const char* const* argv, FileSystem* fs, CtlFlags* flags,
                           std::string* print) {
  Typed typed;
  CLI::App app("signvote: look after a training run. Exit codes: docs/operations.md.", "signvote");
  app.set_version_flag("--version", absl::StrCat("signvote ", SoftwareVersion()));
  app.require_subcommand(1);
  app.fallthrough();
  AddConnection(&app, &flags->admin, &typed);

  const auto add = [&app, flags](const char* name, const char* help, Command command) {
    CLI::App* sub = app.add_subcommand(name, help);
    sub->callback([flags, command] { flags->command = command; });
    return sub;
  };
  const auto name_worker = [flags](CLI::App* sub) {
    sub->add_option("WORKER", flags->worker, "its name")
        ->type_name("")
        ->required()
        ->check(Kind(ValueKind::kText));
  };
  add("status", "show the run and its workers", Command::kStatus)
      ->add_flag("--json", flags->json, "one JSON object, fields as in admin.proto");
  AddTop(
      add("top", "watch the run: live on a terminal (key h: help), as lines where output is piped",
          Command::kTop),
      flags, &typed);
  add("pause", "open no further round", Command::kPause);
  add("resume", "open rounds again", Command::kResume);
  name_worker(add("drain", "ask a worker to finish its round and leave", Command::kDrain));
  name_worker(
      add("evict", "close a worker's session and refuse its name from now on", Command::kEvict));
  AddExport(add("export", "write the model as a safetensors file, config.json beside it",
                Command::kExport),
            flags, &typed);
  AddJournal(app.add_subcommand("journal", "look after a server's journal"), flags);
  AddCerts(
      add("certs", "make a development CA, certificates and join tokens, or add workers to them",
          Command::kCerts),
      &flags->certs);
  CLI::App* const lab =
      add("lab", "train in one process, compare methods, run elastic experiments", Command::kLab);
  // What follows is that program's, whatever it looks like.
  lab->prefix_command()->fallthrough(false);
  lab->footer(
      "signvote lab COMMAND …: commands and flags are those of signvote-lab --help; signvote lab "
      "run "
      "FILE.toml …: those of signvote-lab-run --help.");
  add("version", "print the version", Command::kVersion);

  SIGNVOTE_RETURN_IF_ERROR(ParseFlags(&app, argc, argv, fs, print));
  flags->lab = lab->remaining();
  return print->empty() ? Finish(typed, flags) : absl::OkStatus();
}

}  // namespace signvote::ctl
