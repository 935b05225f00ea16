#pragma once
// A development certificate authority: everything that one server, its operator and its workers
// need for mTLS and join tokens, as files. ECDSA P-256, X.509 version 3, roles as
// proto/wire/security.h names them.
//
//   DIR/ca.crt ca.key                     the authority; ca.key never leaves this machine
//   DIR/server.crt server.key tokens      the server's; tokens holds one line "NAME TOKEN" per
//                                         worker
//   DIR/admin.crt admin.key               the operator's (`signvote --tls-dir DIR`)
//   DIR/workers/NAME/ca.crt worker.crt worker.key token     to copy to the worker's machine
//
// Folders are 0700; keys and tokens 0600; certificates 0644. Every file is written atomically.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file_system.h"

namespace signvote::ctl {

struct CertsOptions {
  std::string directory;
  // DNS names and IP addresses that workers dial. "localhost", 127.0.0.1 and ::1 are always added.
  std::vector<std::string> server_names;
  std::vector<std::string> workers;
  int days = 365;                // validity of the certificates; the authority's own is ten years
  int64_t now_unix_seconds = 0;  // validity starts one hour earlier, for clocks that disagree
};

// Paths below `directory`, in the order in which they were looked at.
struct CertsReport {
  std::vector<std::string> created;
  std::vector<std::string> kept;
};

// Makes what is missing and keeps what is there: no key, token or certificate is ever overwritten,
// so that a second call only adds workers. The one exception is server.crt, which is issued again,
// for the same key, when a server name was added. INVALID_ARGUMENT: an option; FAILED_PRECONDITION:
// a key of a pair is there and its certificate is not, or the reverse, or the authority's key and
// certificate do not belong together, or what is there was issued by another authority or has
// expired; messages name the file and say what to do.
absl::StatusOr<CertsReport> MakeCerts(FileSystem* fs, const CertsOptions& options);

}  // namespace signvote::ctl
