#pragma once
// The command line of `signvote`: one command and its options. docs/operations.md.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/file_system.h"
#include "common/model_writer.h"
#include "ctl/admin_client.h"
#include "ctl/certs.h"
#include "ctl/top.h"

namespace signvote::ctl {

enum class Command {
  kStatus,
  kTop,
  kPause,
  kResume,
  kDrain,
  kEvict,
  kExport,
  kJournalVerify,
  kJournalDump,
  kJournalTruncate,
  kCerts,
  kLab,
  kVersion,
};

struct CtlFlags {
  Command command = Command::kStatus;
  AdminClientOptions admin;
  bool json = false;              // kStatus
  TopOptions top;                 // kTop; its colour is the terminal's, not the command line's
  std::string worker;             // kDrain, kEvict
  std::string file;               // kExport
  std::string journal;            // kJournal…, and kExport without a server
  std::optional<uint64_t> round;  // kExport with `journal`; nullopt: the last
  ModelFormat format;             // kExport
  CertsOptions certs;             // kCerts; without the time
  std::vector<std::string> lab;   // kLab: signvote-lab's own command line
};

// Reads the command line. `print` gets the text of --help, --version or --describe when one of them
// was given, and is left alone otherwise; `flags` then names no command.
// `fs` is for ParseFlags(). Failure: one line with exit code kUsage.
absl::Status ParseCtlFlags(int argc, const char* const* argv, FileSystem* fs, CtlFlags* flags,
                           std::string* print);

}  // namespace signvote::ctl
