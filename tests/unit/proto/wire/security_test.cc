#include "proto/wire/security.h"

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/mutex.h"
#include "signvote/v1/training.grpc.pb.h"
#include "tests/unit/proto/wire/test_certificates.h"

namespace signvote::wire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TestAuthority;
using testing::TestCertificate;
using testing::TestCertificateRequest;
using testing::WriteTestFile;

class SecurityTest : public ::testing::Test {
 protected:
  SecurityTest() : folder_(::testing::TempDir() + "security_test_" + std::to_string(getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~SecurityTest() override { std::filesystem::remove_all(folder_); }

  TlsFiles Write(const std::string& ca_pem, const TestCertificate& certificate,
                 uint32_t key_mode = 0600) {
    return {.ca = WriteTestFile(folder_, "ca.pem", ca_pem, 0644),
            .certificate = WriteTestFile(folder_, "cert.pem", certificate.certificate_pem, 0644),
            .key = WriteTestFile(folder_, "key.pem", certificate.key_pem, key_mode)};
  }
  static int64_t Now() { return Clock::System()->UnixMicros() / 1000000; }
  absl::StatusOr<TlsMaterial> Load(const TlsFiles& files) {
    return LoadTls(FileSystem::Posix(), files, Now());
  }

  const std::string folder_;
  TestAuthority authority_{"test authority"};
};

TEST_F(SecurityTest, GoodFilesLoadWithTheirNames) {
  const auto material =
      Load(Write(authority_.pem(), authority_.Issue({.dns_names = {"w1", "w1.local"},
                                                     .uris = {"signvote:role:worker"},
                                                     .loopback_addresses = false})));
  ASSERT_TRUE(material.ok()) << material.status();
  EXPECT_THAT(material->dns_names, ElementsAre("w1", "w1.local"));
  EXPECT_THAT(material->uris, ElementsAre("signvote:role:worker"));
}

TEST_F(SecurityTest, AMissingPathNamesItsFlag) {
  TlsFiles files = Write(authority_.pem(), authority_.Issue({}));
  files.key.clear();
  const absl::Status status = Load(files).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--tls-key"));
}

TEST_F(SecurityTest, AMissingFileIsNamed) {
  TlsFiles files = Write(authority_.pem(), authority_.Issue({}));
  files.certificate = folder_ + "/absent.pem";
  const absl::Status status = Load(files).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("absent.pem"));
}

TEST_F(SecurityTest, AKeyThatOthersCanReadIsRefused) {
  const absl::Status status = Load(Write(authority_.pem(), authority_.Issue({}), 0644)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("chmod 600"));
}

TEST_F(SecurityTest, AnExpiredCertificateIsRefusedWithItsDate) {
  const absl::Status status =
      Load(Write(authority_.pem(), authority_.Issue({.valid_to_seconds = -60}))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expired on 20"));
}

TEST_F(SecurityTest, ACertificateOfTheFutureIsRefused) {
  const absl::Status status =
      Load(Write(authority_.pem(), authority_.Issue({.valid_from_seconds = 3600}))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("valid only from"));
}

TEST_F(SecurityTest, ACertificateOfAnotherAuthorityIsRefused) {
  TestAuthority other("other authority");
  const absl::Status status = Load(Write(authority_.pem(), other.Issue({}))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("was not issued by"));
}

TEST_F(SecurityTest, AKeyOfAnotherCertificateIsRefused) {
  TestCertificate mixed = authority_.Issue({});
  mixed.key_pem = authority_.Issue({}).key_pem;
  const absl::Status status = Load(Write(authority_.pem(), mixed)).status();
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not belong to"));
}

TEST_F(SecurityTest, OnlyAServersCertificateMakesAServer) {
  const TlsFiles server =
      Write(authority_.pem(), authority_.Issue({.uris = {"signvote:role:server"}}));
  EXPECT_TRUE(RequireServerRole(*Load(server), server).ok());
  const TlsFiles worker =
      Write(authority_.pem(), authority_.Issue({.uris = {"signvote:role:worker"}}));
  const absl::Status status = RequireServerRole(*Load(worker), worker);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  EXPECT_THAT(std::string(status.message()), HasSubstr("lacks the URI signvote:role:server"));
}

TEST_F(SecurityTest, FilesThatAreNotPemAreRefused) {
  const TestCertificate good = authority_.Issue({});
  for (const int broken : {0, 1, 2}) {
    TestCertificate certificate = good;
    if (broken == 1) certificate.certificate_pem = "garbage";
    if (broken == 2)
      certificate.key_pem = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    const absl::Status status =
        Load(Write(broken == 0 ? "" : authority_.pem(), certificate)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << broken;
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput) << broken;
  }
}

// Tells who called it.
class WhoCalls : public v1::Training::Service {
 public:
  grpc::Status FetchState(grpc::ServerContext* context, const v1::FetchStateRequest*,
                          grpc::ServerWriter<v1::StateChunk>*) override {
    MutexLock lock(&mu_);
    peer_ = PeerOf(*context);
    return grpc::Status::OK;
  }
  Peer peer() {
    MutexLock lock(&mu_);
    return peer_;
  }

 private:
  Mutex mu_;
  Peer peer_ ABSL_GUARDED_BY(mu_);
};

struct Dialled {
  grpc::Status status;
  Peer client_as_seen, server_as_seen;
};

Dialled Dial(const std::shared_ptr<grpc::ServerCredentials>& server_credentials,
             const std::shared_ptr<grpc::ChannelCredentials>& channel_credentials) {
  WhoCalls service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", server_credentials, &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  Dialled out;
  {
    const auto stub = v1::Training::NewStub(
        grpc::CreateChannel("127.0.0.1:" + std::to_string(port), channel_credentials));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const auto reader = stub->FetchState(&context, {});
    v1::StateChunk chunk;
    while (reader->Read(&chunk)) {
    }
    out.status = reader->Finish();
    if (out.status.ok()) out.server_as_seen = PeerOf(context);
  }
  server->Shutdown(std::chrono::system_clock::now());
  out.client_as_seen = service.peer();
  return out;
}

TlsMaterial Material(TestAuthority* authority, const TestCertificate& certificate) {
  return {.ca_pem = authority->pem(),
          .certificate_pem = certificate.certificate_pem,
          .key_pem = certificate.key_pem,
          .dns_names = {},
          .uris = {}};
}

TEST_F(SecurityTest, BothSidesSeeTheOthersNameAndRole) {
  const Dialled dialled = Dial(
      MtlsServerCredentials(
          Material(&authority_,
                   authority_.Issue({.dns_names = {"server"}, .uris = {"signvote:role:server"}}))),
      MtlsChannelCredentials(Material(
          &authority_, authority_.Issue({.dns_names = {"w1"},
                                         .uris = {"signvote:role:worker", "signvote:role:admin"},
                                         .loopback_addresses = false}))));
  ASSERT_TRUE(dialled.status.ok()) << dialled.status.error_message();
  EXPECT_TRUE(dialled.client_as_seen.authenticated);
  EXPECT_THAT(dialled.client_as_seen.dns_names, ElementsAre("w1"));
  EXPECT_TRUE(dialled.client_as_seen.HasRole(Role::kWorker));
  EXPECT_TRUE(dialled.client_as_seen.HasRole(Role::kAdmin));
  EXPECT_FALSE(dialled.client_as_seen.HasRole(Role::kServer));
  EXPECT_EQ(dialled.client_as_seen.address.substr(0, 15), "ipv4:127.0.0.1:");
  EXPECT_TRUE(dialled.server_as_seen.HasRole(Role::kServer));
}

TEST_F(SecurityTest, AClientOfAnotherAuthorityIsRefusedByTheHandshake) {
  TestAuthority other("other authority");
  TlsMaterial foreign = Material(&other, other.Issue({.dns_names = {"w1"}}));
  foreign.ca_pem = authority_.pem();  // it trusts the server, the server does not trust it
  const Dialled dialled = Dial(MtlsServerCredentials(Material(&authority_, authority_.Issue({}))),
                               MtlsChannelCredentials(foreign));
  EXPECT_EQ(dialled.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(dialled.client_as_seen.authenticated);
}

TEST_F(SecurityTest, AClientWithoutCertificateIsRefusedByTheHandshake) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = authority_.pem();
  const Dialled dialled = Dial(MtlsServerCredentials(Material(&authority_, authority_.Issue({}))),
                               grpc::SslCredentials(options));
  EXPECT_EQ(dialled.status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(SecurityTest, PlaintextPeersAreNotAuthenticated) {
  const Dialled dialled =
      Dial(grpc::InsecureServerCredentials(), grpc::InsecureChannelCredentials());
  ASSERT_TRUE(dialled.status.ok());
  EXPECT_FALSE(dialled.client_as_seen.authenticated);
  EXPECT_TRUE(dialled.client_as_seen.roles.empty());
  EXPECT_EQ(dialled.client_as_seen.address.substr(0, 15), "ipv4:127.0.0.1:");
}

}  // namespace
}  // namespace signvote::wire
