#include "worker/session/dial_error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace signvote {
namespace {

using ::testing::HasSubstr;

// Texts as gRPC 1.51 writes them.
const absl::Status kRefused = absl::UnavailableError(
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect "
    "to remote host: "
    "Connection refused");
const absl::Status kHungUp = absl::UnavailableError(
    "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:34025: Socket "
    "closed");
const absl::Status kForeign = absl::UnavailableError(
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:44387: Ssl handshake "
    "failed: "
    "SSL_ERROR_SSL: error:0A000086:SSL routines::certificate verify failed");
const absl::Status kMisnamed = absl::UnavailableError(
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:43909: Peer name "
    "127.0.0.1 is not in "
    "peer certificate");
const absl::Status kPlaintextServer = absl::UnavailableError(
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:34797: Ssl handshake "
    "failed: "
    "SSL_ERROR_SSL: error:0A00010B:SSL routines::wrong version number");

const DialContext kTls{
    .server = "head:1", .insecure = false, .ca = "ca.pem", .certificate = "w.pem"};
const DialContext kPlain{.server = "head:1", .insecure = true, .ca = "", .certificate = ""};

TEST(DialErrorTest, AServerThatIsNotThereIsWorthARetry) {
  EXPECT_TRUE(ExplainDialFailure(kRefused, kTls, 0).ok());
  EXPECT_TRUE(
      ExplainDialFailure(absl::UnavailableError("DNS resolution failed for x"), kTls, 0).ok());
  EXPECT_TRUE(ExplainDialFailure(absl::AbortedError("Ssl handshake failed"), kTls, 0).ok());
  EXPECT_FALSE(HungUpBeforeUsable(kRefused));
  EXPECT_FALSE(HungUpBeforeUsable(absl::UnavailableError("Socket closed")))
      << "that was a usable connection";
}

TEST(DialErrorTest, CertificatesThatNoRetryMendsAreNamed) {
  const absl::Status foreign = ExplainDialFailure(kForeign, kTls, 0);
  EXPECT_EQ(foreign.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(foreign.message()), HasSubstr("ca.pem"));
  const absl::Status misnamed = ExplainDialFailure(kMisnamed, kTls, 0);
  EXPECT_EQ(misnamed.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(misnamed.message()), HasSubstr("head:1"));
  EXPECT_EQ(ExplainDialFailure(kPlaintextServer, kTls, 0).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(DialErrorTest, OnlyHangUpsInARowAreTakenForARefusal) {
  EXPECT_TRUE(HungUpBeforeUsable(kHungUp));
  EXPECT_TRUE(ExplainDialFailure(kHungUp, kTls, kHangUpsToBeSure - 1).ok());
  const absl::Status tls = ExplainDialFailure(kHungUp, kTls, kHangUpsToBeSure);
  EXPECT_EQ(tls.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(tls.message()), HasSubstr("w.pem"));
  EXPECT_EQ(ExplainDialFailure(kHungUp, kPlain, kHangUpsToBeSure).code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace signvote
