// A Join as the server takes it from a stranger: bytes, parsed, and checked (server/run/admission.h).
// Who is let in is bounded in what it says, and is let in again as one of the run that it describes
// itself.
//
// Input: one byte of facts (1: TLS, 2: tokens, 4: a layout is known, 8: an identity is known); then the
// message.

#include <memory>
#include <optional>
#include <string>

#include "common/check.h"
#include "server/run/admission.h"
#include "tests/fuzz/fuzz_target.h"

namespace signvote::run {
namespace {

constexpr size_t kNameBytesMost = 64, kTextBytesMost = 4096;
constexpr char kToken[] = "0123456789abcdef0123456789abcdef";

void Check(uint8_t which, const std::string& bytes) {
  v1::Join join;
  if (!join.ParseFromString(bytes)) return;

  const RunId run_id = RunId::FromRandom(1, 2);
  const Layout layout = *Layout::Make({{.name = "w", .shape = {2, 3}}, {.name = "b"}});
  const ModelIdentity identity = *ModelIdentity::FromConfig(R"({"model_type": "llama"})");
  const TokenTable tokens = *TokenTable::Parse(std::string("w0 ") + kToken + "\n", "tokens");
  RunFacts facts{.run_id = run_id, .tls = (which & 1) != 0, .workers_max = 4};
  if ((which & 2) != 0) facts.tokens = &tokens;
  if ((which & 4) != 0) facts.layout = &layout;
  if ((which & 8) != 0) facts.identity = &identity;
  const PeerIdentity peer{.address = "ipv4:10.0.0.1:7",
                          .authenticated = true,
                          .dns_names = {"w0"},
                          .worker_role = true};

  const absl::StatusOr<CheckedJoin> checked = CheckJoin(join, peer, facts);
  if (!checked.ok()) {
    switch (checked.status().code()) {
      case absl::StatusCode::kInvalidArgument:
      case absl::StatusCode::kFailedPrecondition:
      case absl::StatusCode::kPermissionDenied:
      case absl::StatusCode::kUnauthenticated:
        return;
      default:
        SIGNVOTE_CHECK(false && "a code that the header does not have");
    }
  }
  SIGNVOTE_CHECK(!checked->name.empty() && checked->name.size() <= kNameBytesMost);
  if (facts.tls || facts.tokens != nullptr) SIGNVOTE_CHECK(checked->name == "w0");
  if (facts.tokens != nullptr) SIGNVOTE_CHECK(join.token() == kToken);
  SIGNVOTE_CHECK(checked->layout.coordinates() > 0);
  if (facts.layout != nullptr) SIGNVOTE_CHECK(checked->layout.digest() == layout.digest());
  if (facts.identity != nullptr) SIGNVOTE_CHECK(checked->identity == identity);
  SIGNVOTE_CHECK(checked->identity_text.size() <= kTextBytesMost);
  SIGNVOTE_CHECK(checked->software_version.size() <= kTextBytesMost);
  SIGNVOTE_CHECK(checked->metrics_address.size() <= kTextBytesMost);
  SIGNVOTE_CHECK(!checked->round.has_value() || join.run_id() == run_id.bytes());

  facts.layout = &checked->layout;
  facts.identity = &checked->identity;
  facts.identity_text = checked->identity_text;
  SIGNVOTE_CHECK(CheckJoin(join, peer, facts).ok());
}

}  // namespace
}  // namespace signvote::run

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  signvote::fuzz::Input input(data, size);
  const uint8_t which = input.Byte();
  signvote::run::Check(which, input.Rest());
  return 0;
}
