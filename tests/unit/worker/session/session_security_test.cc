// Certificates, tokens, options.

#include <sys/stat.h>

#include <filesystem>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "proto/wire/security.h"
#include "tests/unit/proto/wire/test_certificates.h"
#include "tests/unit/worker/session/session_fixture.h"

namespace signvote::testing {
namespace {

using ::testing::HasSubstr;

class SecureSessionTest : public SessionTest {
 protected:
  SecureSessionTest() : folder_(::testing::TempDir() + "session_test_" + std::to_string(getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~SecureSessionTest() override { std::filesystem::remove_all(folder_); }

  SessionOptions SecureOptions(const std::string& server, TestAuthority* trusts,
                               const TestCertificate& certificate) {
    SessionOptions options = Options(server);
    options.name.clear();
    options.insecure = false;
    options.tls_ca = WriteTestFile(folder_, "ca.pem", trusts->pem(), 0644);
    options.tls_certificate = WriteTestFile(folder_, "cert.pem", certificate.certificate_pem, 0644);
    options.tls_key = WriteTestFile(folder_, "key.pem", certificate.key_pem, 0600);
    options.token_file = WriteTestFile(folder_, "token", "secret\n", 0600);
    return options;
  }
  TestCertificate WorkerCertificate(TestAuthority* authority) {
    return authority->Issue(
        {.dns_names = {"gpu-7"}, .uris = {"signvote:role:worker"}, .loopback_addresses = false});
  }
  std::shared_ptr<grpc::ServerCredentials> ServerCredentials(
      const std::string& role = "signvote:role:server", bool loopback = true) {
    const TestCertificate certificate =
        authority_.Issue({.dns_names = {"head"}, .uris = {role}, .loopback_addresses = loopback});
    return wire::MtlsServerCredentials({.ca_pem = authority_.pem(),
                                        .certificate_pem = certificate.certificate_pem,
                                        .key_pem = certificate.key_pem,
                                        .dns_names = {},
                                        .uris = {}});
  }
  absl::Status JoinWith(const SessionOptions& options) {
    const Time start = Clock::System()->Now();
    const auto session = Session::Create(options, Clock::System());
    if (!session.ok()) return session.status();
    const absl::Status status = JoinRun(session->get(), &memory_).status();
    EXPECT_LT(Clock::System()->Now() - start, kLong / 2) << "well within the connect timeout";
    return status;
  }

  const std::string folder_;
  TestAuthority authority_{"test authority"};
};

TEST_F(SecureSessionTest, JoinsOverMutualTlsUnderTheCertificatesNameWithItsToken) {
  v1::Join join;
  wire::Peer peer;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      peer = wire::PeerOf(*s.context());
                      join = s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }},
                    ServerCredentials());
  const SessionOptions options =
      SecureOptions(server.address(), &authority_, WorkerCertificate(&authority_));
  const auto session = MustCreate(options);
  const auto run = JoinRun(session.get(), &memory_);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(server.uploaded(), x_);
  EXPECT_EQ(session->name(), "gpu-7");
  session->Leave("done").IgnoreError();
  server.Stop();
  EXPECT_EQ(join.name(), "gpu-7");
  EXPECT_EQ(join.token(), "secret");
  EXPECT_TRUE(peer.HasRole(wire::Role::kWorker));
}

TEST_F(SecureSessionTest, ACertificateThatTheServerDoesNotAcceptIsNamed) {
  FakeServer server(kPlan, {}, ServerCredentials());
  TestAuthority other("other authority");
  SessionOptions options = SecureOptions(server.address(), &other, WorkerCertificate(&other));
  // It trusts both, so that only the server has a reason to refuse.
  options.tls_ca = WriteTestFile(folder_, "both.pem", other.pem() + authority_.pem(), 0644);
  const absl::Status status = JoinWith(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("does not accept certificate " + options.tls_certificate));
}

TEST_F(SecureSessionTest, AServerOfAnotherAuthorityIsRefused) {
  FakeServer server(kPlan, {}, ServerCredentials());
  TestAuthority other("other authority");
  const SessionOptions options = SecureOptions(server.address(), &other, WorkerCertificate(&other));
  const absl::Status status = JoinWith(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("was not issued by " + options.tls_ca));
}

TEST_F(SecureSessionTest, AServerWhoseCertificateDoesNotNameItIsRefused) {
  FakeServer server(kPlan, {}, ServerCredentials("signvote:role:server", false));
  const absl::Status status =
      JoinWith(SecureOptions(server.address(), &authority_, WorkerCertificate(&authority_)));
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not name this address"));
}

TEST_F(SecureSessionTest, AWorkersCertificateDoesNotMakeAServer) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.AwaitJoin();
                      s.Send(s.Welcome(v1::Welcome::STATE_UPLOAD));
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }},
                    ServerCredentials("signvote:role:worker"));
  const absl::Status status =
      JoinWith(SecureOptions(server.address(), &authority_, WorkerCertificate(&authority_)));
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("lacks the server's role"));
  EXPECT_TRUE(server.uploaded().empty());
}

TEST_F(SecureSessionTest, PlaintextAgainstATlsServerIsExplained) {
  FakeServer server(kPlan, {}, ServerCredentials());
  const absl::Status status = JoinWith(Options(server.address()));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("it wants TLS"));
}

TEST_F(SecureSessionTest, TlsAgainstAPlaintextServerIsExplained) {
  FakeServer server(kPlan, {});
  const absl::Status status =
      JoinWith(SecureOptions(server.address(), &authority_, WorkerCertificate(&authority_)));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not speak TLS"));
}

TEST_F(SecureSessionTest, ATokenFileThatOthersCanReadIsRefused) {
  SessionOptions options =
      SecureOptions("127.0.0.1:1", &authority_, WorkerCertificate(&authority_));
  ASSERT_EQ(chmod(options.token_file.c_str(), 0644), 0);
  const absl::Status status = Session::Create(options, Clock::System()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("chmod 600"));
}

TEST_F(SecureSessionTest, UnusableOptionsAreRefusedBeforeAnythingIsDialled) {
  const SessionOptions good =
      SecureOptions("127.0.0.1:1", &authority_, WorkerCertificate(&authority_));
  auto code = [](const SessionOptions& options) {
    return Session::Create(options, Clock::System()).status().code();
  };
  EXPECT_EQ(code(good), absl::StatusCode::kOk);
  SessionOptions options = good;
  for (const char* address : {"nowhere", "127.0.0.1:70000", "127.0.0.1:0", ":7070"}) {
    options.server = address;
    EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_EQ(Session::CheckOptions(options, Clock::System()).code(),
              absl::StatusCode::kInvalidArgument);
  }
  options = good;
  options.insecure = true;
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument) << "certificates and --insecure";
  options = good;
  options.tls_key.clear();
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options = good;
  options.token_file = WriteTestFile(folder_, "empty", "\n", 0600);
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options = good;
  constexpr char kMoreThanOne[] = "junk holds more than one token";
  constexpr char kNoText[] = "junk has characters that are not printable ASCII";
  for (const auto& [junk, said] :
       {std::pair("two tokens", kMoreThanOne), std::pair("to\xffken", kNoText),
        std::pair("tok\x01n", kNoText)}) {
    options.token_file = WriteTestFile(folder_, "junk", junk, 0600);
    const absl::Status status = Session::CheckOptions(options, Clock::System());
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(said));
  }
  options.token_file = folder_ + "/absent";
  EXPECT_EQ(code(options), absl::StatusCode::kNotFound);
  options = Options("127.0.0.1:1");
  options.name = "not a name";
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options.name.clear();
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace signvote::testing
