#include "worker/session/worker_identity.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/host_port.h"
#include "common/ids.h"
#include "common/join_token.h"
#include "common/status.h"
#include "proto/wire/security.h"

namespace signvote {
namespace {

constexpr uint64_t kTokenFileBytesMax = 64 << 10;

absl::StatusOr<std::string> ReadToken(FileSystem* fs, const std::string& path) {
  SIGNVOTE_RETURN_IF_ERROR(fs->RequirePrivate(path));
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, fs->ReadFile(path, kTokenFileBytesMax));
  return ParseOwnToken(path, text);
}

}  // namespace

absl::StatusOr<WorkerIdentity> LoadIdentity(const SessionOptions& options, FileSystem* fs,
                                            const Clock* clock) {
  SIGNVOTE_RETURN_IF_ERROR(ParseHostPort("--server", options.server, PortZero::kRefused).status());
  WorkerIdentity identity{.name = options.name, .token = {}, .credentials = nullptr};
  if (options.insecure) {
    if (!options.tls_ca.empty() || !options.tls_certificate.empty() || !options.tls_key.empty()) {
      return absl::InvalidArgumentError(
          "TLS files were given together with --insecure; leave one of them away");
    }
    identity.credentials = grpc::InsecureChannelCredentials();
  } else {
    SIGNVOTE_ASSIGN_OR_RETURN(
        const wire::TlsMaterial tls,
        wire::LoadTls(
            fs,
            {.ca = options.tls_ca, .certificate = options.tls_certificate, .key = options.tls_key},
            clock->UnixMicros() / 1000000));
    if (identity.name.empty()) {
      if (tls.dns_names.empty()) {
        return WithExitCode(
            absl::InvalidArgumentError(absl::StrCat("certificate ", options.tls_certificate,
                                                    " names no worker (DNS subject alternative "
                                                    "name); use one that was made for a worker")),
            ExitCode::kBadInput);
      }
      identity.name = tls.dns_names[0];
    }
    identity.credentials = wire::MtlsChannelCredentials(tls);
  }
  if (identity.name.empty()) return absl::InvalidArgumentError("a worker needs a name");
  SIGNVOTE_RETURN_IF_ERROR(ValidateWorkerName(identity.name));
  if (!options.token_file.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(identity.token, ReadToken(fs, options.token_file));
  }
  return identity;
}

}  // namespace signvote
