#include "server/rpc/tls_credentials.h"

#include <gtest/gtest.h>

#include "tests/unit/proto/wire/test_certificates.h"
#include "tests/unit/server/rpc/training_service_fixture.h"

namespace signvote::rpc {
namespace {

using ::signvote::testing::TestAuthority;
using ::signvote::testing::TestCertificate;

class TlsCredentialsTest : public TrainingServiceTest {
 protected:
  static wire::TlsMaterial ServerMaterial(TestAuthority& authority) {
    const TestCertificate own = authority.Issue({.uris = {"signvote:role:server"}});
    return {
        .ca_pem = authority.pem(), .certificate_pem = own.certificate_pem, .key_pem = own.key_pem};
  }
  std::unique_ptr<WireClient> Client(TestAuthority& authority, const std::string& name) {
    const TestCertificate own =
        authority.Issue({.dns_names = {name}, .uris = {"signvote:role:worker"}});
    return std::make_unique<WireClient>(
        address_, TestLayout(),
        wire::MtlsChannelCredentials({.ca_pem = authority.pem(),
                                      .certificate_pem = own.certificate_pem,
                                      .key_pem = own.key_pem}));
  }
};

TEST_F(TlsCredentialsTest, NewCertificatesServeNewHandshakesAndOldConnectionsGoOn) {
  TestAuthority before("before"), after("after");
  around_.tls = std::make_shared<TlsSource>(ServerMaterial(before));
  run::RunOptions options = Options();
  options.main_rounds_max = 1000;
  StartServer(std::move(options));
  auto a = Client(before, "a");
  ASSERT_TRUE(a->JoinRun("a"));
  EXPECT_FALSE(Client(after, "b")->JoinRun("b"));

  around_.tls->Replace(ServerMaterial(after));
  EXPECT_TRUE(Client(after, "b")->JoinRun("b"));
  auto stale = Client(before, "c");
  EXPECT_FALSE(stale->JoinRun("c"));
  v1::ServerMessage message;
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(a->Vote(RandomBits(kCoordinates, 1)));
  EXPECT_TRUE(a->ReadUntil(v1::ServerMessage::kCommit, &message)) << "its connection goes on";
}

// gRPC's core asks for the certificates at each handshake, long after whoever started the server
// has let go of them.
TEST_F(TlsCredentialsTest, TheServerKeepsWhatItsHandshakesAskFor) {
  TestAuthority authority("the only one");
  around_.tls = std::make_shared<TlsSource>(ServerMaterial(authority));
  const std::weak_ptr<TlsSource> source = around_.tls;
  StartServer();
  around_.tls.reset();
  ASSERT_FALSE(source.expired());
  EXPECT_TRUE(Client(authority, "a")->JoinRun("a"));
  TearDown();
  EXPECT_TRUE(source.expired()) << "no longer than the server";
}

}  // namespace
}  // namespace signvote::rpc
