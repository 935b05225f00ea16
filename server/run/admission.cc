#include "server/run/admission.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/process.h"
#include "common/status.h"
#include "common/text.h"

namespace signvote::run {
namespace {

constexpr size_t kVersionBytesMax = 64;
constexpr size_t kAddressBytesMax = 255;
constexpr size_t kIdentityTextBytesMax = 4096;

absl::Status CheckVersion(const v1::Join& join) {
  if (join.protocol_min() != 0 && join.protocol_min() <= kProtocolVersion &&
      join.protocol_max() >= kProtocolVersion) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "protocol versions do not meet: the server (", SoftwareVersion(), ") speaks ",
      kProtocolVersion, ", worker '", join.name(), "' (",
      ForPeople(join.software_version(), kVersionBytesMax), ") speaks ", join.protocol_min(),
      " to ", join.protocol_max(), "; install the same release on both"));
}

absl::Status CheckCertificate(const std::string& name, const PeerIdentity& peer) {
  if (!peer.authenticated || !peer.worker_role) {
    return absl::PermissionDeniedError("the certificate of '" + name +
                                       "' is not a worker's (role signvote:role:worker)");
  }
  if (std::find(peer.dns_names.begin(), peer.dns_names.end(), name) != peer.dns_names.end()) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError("worker '" + name + "' shows the certificate of '" +
                                     (peer.dns_names.empty()
                                          ? std::string("nobody")
                                          : ForPeople(peer.dns_names.front(), kAddressBytesMax)) +
                                     "'; a worker's name is the DNS name in its certificate");
}

absl::Status CheckRun(const v1::Join& join, const RunId& run_id) {
  if (join.run_id().empty()) return absl::OkStatus();
  SIGNVOTE_ASSIGN_OR_RETURN(const RunId wanted, RunId::FromBytes(join.run_id()));
  if (wanted == run_id) return absl::OkStatus();
  return absl::FailedPreconditionError("worker '" + join.name() + "' belongs to run " +
                                       wanted.ToText() + ", this server trains run " +
                                       run_id.ToText() +
                                       ", which a worker that is started anew joins");
}

absl::StatusOr<Layout> LayoutOf(const v1::Join& join) {
  std::vector<TensorSpec> tensors;
  tensors.reserve(static_cast<size_t>(join.tensors_size()));
  for (const v1::TensorShape& t : join.tensors()) {
    TensorSpec tensor;
    tensor.name = t.name();
    tensor.shape = {t.shape().begin(), t.shape().end()};
    tensors.push_back(std::move(tensor));
  }
  return Layout::Make(std::move(tensors));
}

absl::Status CheckLayout(const std::string& name, const Layout& theirs, const Layout* wanted) {
  if (wanted == nullptr || wanted->digest() == theirs.digest()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "worker '", name, "' trains another model: its layout is ",
      absl::StrFormat("%016x", theirs.digest()), ", the run's is ",
      absl::StrFormat("%016x", wanted->digest()), "; ", wanted->FirstDifference(theirs)));
}

absl::Status CheckIdentity(const CheckedJoin& join, const RunFacts& facts) {
  if (facts.identity == nullptr) return absl::OkStatus();
  const std::string difference = FirstDifference(*facts.identity, join.identity);
  if (!difference.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "worker '", join.name, "' trains another model of the same layout: in config.json ",
        difference, " (here: the run's, there: the worker's)"));
  }
  if (facts.identity_text != join.identity_text) {
    return absl::FailedPreconditionError(absl::StrCat(
        "worker '", join.name, "' trains another model of the same layout: its identity text is \"",
        ForPeople(join.identity_text, kVersionBytesMax), "\", the run's is \"",
        ForPeople(facts.identity_text, kVersionBytesMax), "\""));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CheckedJoin> CheckJoin(const v1::Join& join, const PeerIdentity& peer,
                                      const RunFacts& facts) {
  if (facts.stopping) return absl::CancelledError("the server stops");
  SIGNVOTE_RETURN_IF_ERROR(ValidateWorkerName(join.name()));
  SIGNVOTE_RETURN_IF_ERROR(CheckVersion(join));
  if (facts.tls) SIGNVOTE_RETURN_IF_ERROR(CheckCertificate(join.name(), peer));
  if (facts.tokens != nullptr) {
    SIGNVOTE_RETURN_IF_ERROR(facts.tokens->Check(join.name(), join.token()));
  }
  if (facts.evicted) return EvictedStatus(join.name());
  SIGNVOTE_RETURN_IF_ERROR(CheckRun(join, facts.run_id));
  if (facts.present >= facts.workers_max) {
    return absl::ResourceExhaustedError(absl::StrCat("the run is full: ", facts.present,
                                                     " workers are connected (--workers-max ",
                                                     facts.workers_max, ")"));
  }
  if (join.identity_text().size() > kIdentityTextBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the identity text has ", join.identity_text().size(), " bytes; at most 4096 are taken"));
  }
  CheckedJoin out;
  out.name = join.name();
  SIGNVOTE_ASSIGN_OR_RETURN(out.layout, LayoutOf(join));
  SIGNVOTE_ASSIGN_OR_RETURN(out.identity, ModelIdentity::FromConfig(join.model_config_json()));
  out.identity_text = join.identity_text();
  SIGNVOTE_RETURN_IF_ERROR(CheckLayout(out.name, out.layout, facts.layout));
  SIGNVOTE_RETURN_IF_ERROR(CheckIdentity(out, facts));
  out.software_version = ForPeople(join.software_version(), kVersionBytesMax);
  out.metrics_address = ForPeople(join.metrics_address(), kAddressBytesMax);
  // A replica without a run is nobody's: a round of which run?
  if (join.has_round() && !join.run_id().empty()) {
    out.round = Round(join.round());
    out.epoch = Epoch(join.epoch());
  }
  out.config_json = join.model_config_json();
  out.can_probe = join.can_probe();
  if (join.has_held_out_hash()) out.held_out_hash = join.held_out_hash();
  return out;
}

absl::Status EvictedStatus(std::string_view name) {
  return absl::PermissionDeniedError("worker '" + std::string(name) +
                                     "' was evicted by the operator for the rest of this run");
}

}  // namespace signvote::run
