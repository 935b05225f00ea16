#pragma once
// The flags of signvote-server. Every one of them is also a key of the TOML file that --config
// names.

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/log.h"
#include "server/export_options.h"
#include "server/journal/journal.h"
#include "server/journal/snapshotter.h"
#include "server/run/run.h"

namespace signvote {

struct JournalFlags {
  std::string path;  // folder; empty: none
  journal::DurabilityMode durability = journal::DurabilityMode::kSync;
  journal::SnapshotOptions snapshots;
};

// What becomes of a run that the file of --init carries.
enum class InitAs : uint8_t {
  kAuto,      // it goes on, unless it is over
  kContinue,  // it goes on
  kNew,       // another one begins with its parameters
};

struct ServerFlags {
  std::string listen;                   // empty: 0.0.0.0:7070 with TLS, 127.0.0.1:7070 without
  std::string http = "127.0.0.1:9151";  // "off": none
  std::string tls_ca, tls_certificate, tls_key, tokens;
  bool insecure = false;
  std::string insecure_bind;
  ExportOptions exports;
  JournalFlags journal;
  std::string port_file;
  LogOptions log;
  std::string init_path;  // initial parameters, or a run; empty: the first worker uploads its own
  InitAs init_as = InitAs::kAuto;
  std::string round_log_path, event_log_path;
  uint32_t tally_threads = 0;  // 0: as many as the machine is best with
  Duration test_applier_delay{};
  uint64_t test_applier_delayed = UINT64_MAX;  // commits that are delayed
  run::RunOptions run;

  // Set when the program shall print this and end with exit code 0 (--help, --version,
  // --print-config).
  std::optional<std::string> print;
};

// INVALID_ARGUMENT names the flag and what it accepts. Fills in defaults that depend on other
// flags. `fs` has the file of --config.
absl::Status ParseServerFlags(int argc, const char* const* argv, FileSystem* fs,
                              ServerFlags* flags);

}  // namespace signvote
