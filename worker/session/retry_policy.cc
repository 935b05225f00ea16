#include "worker/session/retry_policy.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

// Statuses with which a server refuses this worker; a retry would only be refused again.
bool IsRefusal(absl::StatusCode code, bool welcomed) {
  switch (code) {
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kNotFound:
      return true;
    case absl::StatusCode::kResourceExhausted:
      return !welcomed;  // later it only says that this worker read too slowly
    default:
      return false;
  }
}

}  // namespace

absl::Status AfterConnection(const ConnectionEnd& end, Duration lost_for, int hang_ups_in_a_row,
                             const RetryLimits& limits, const std::string& worker,
                             const DialContext& dial) {
  const absl::Status status =
      end.status.ok() ? absl::UnavailableError("the server closed the session") : end.status;
  const std::string ended = absl::StrCat("server ", dial.server, " has ended the run");
  // Nobody but the server of a run that has ended says so, and it ends with that.
  if (IsRunEnd(ExitCodeFor(status)) && !end.by_us) return WithContext(status, ended);
  if (IsRefusal(status.code(), end.welcomed)) {
    return WithExitCode(
        WithContext(status,
                    end.by_us
                        ? absl::StrCat("worker ", worker, " cannot work with server ", dial.server)
                        : absl::StrCat("server ", dial.server, " refused worker ", worker)),
        ExitCode::kRefused);
  }
  // Nobody but a server that waited for --wait-timeout says so, and it ends with that.
  if (absl::IsDeadlineExceeded(status) && !end.by_us) {
    return WithExitCode(WithContext(status, ended), ExitCode::kWaitTimeout);
  }
  if (!end.ever_welcomed) {
    // A server that was there before is looked for however it fails: it may be on its way back.
    SIGNVOTE_RETURN_IF_ERROR(ExplainDialFailure(status, dial, hang_ups_in_a_row));
  }
  const Duration patience = end.finish_seen     ? kFinishedPatience
                            : end.ever_welcomed ? limits.server_timeout
                                                : limits.connect_timeout;
  if (lost_for < patience) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(end.ever_welcomed ? "lost server " : "could not reach server ", dial.server,
                   end.ever_welcomed ? "; it did not come back within " : " within ",
                   ToSeconds(patience), " s (last error: ", Describe(status), ")"));
}

RetryPolicy::RetryPolicy(RetryLimits limits, std::string worker, DialContext dial,
                         uint64_t jitter_seed, Time started)
    : limits_(limits),
      worker_(std::move(worker)),
      dial_(std::move(dial)),
      backoff_(jitter_seed),
      lost_since_(started) {}

absl::Status RetryPolicy::Ended(const ConnectionEnd& end, Time now) {
  if (end.welcomed) lost_since_ = now;
  hang_ups_in_a_row_ = HungUpBeforeUsable(end.status) ? hang_ups_in_a_row_ + 1 : 0;
  return AfterConnection(end, now - lost_since_, hang_ups_in_a_row_, limits_, worker_, dial_);
}

}  // namespace signvote
