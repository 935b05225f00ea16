// What a malicious or broken worker must not bring about: the server's end, memory or files without a bound, another
// worker's disadvantage, and words that accuse the wrong one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <thread>

#include "server/rpc/history.h"
#include "signvote/v1/admin.grpc.pb.h"
#include "tests/unit/server/rpc/training_service_fixture.h"

namespace signvote::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class HostileWorkerTest : public TrainingServiceTest {
 protected:
  v1::WatchReply Watch() {
    grpc::ClientContext context;
    v1::WatchReply reply;
    const grpc::Status status =
        v1::Admin::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()))
            ->Watch(&context, v1::WatchRequest(), &reply);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return reply;
  }
  // "joined a", in order.
  std::vector<std::string> Events() {
    std::vector<std::string> out;
    const v1::WatchReply reply = Watch();
    for (const v1::Event& event : reply.events())
      out.push_back(std::string(EventWord(event.kind())) + " " + event.worker());
    return out;
  }
  bool Closing(const WireClient& client) {
    const auto session = coordinator_->hub()->tickets()->Find(client.welcome.ticket());
    return session == nullptr || session->closing();
  }
  std::string ReadText(const std::string& path) {
    return FileSystem::Posix()->ReadFile(path, 64 << 20).value_or("");
  }
};

// Goal: whoever cuts its session while its upload completes neither ends the server nor starts the run from parameters
// that nobody stands for. Method: the engine's thread is held up, so that the session's end lies in the inbox before
// the upload's.
TEST_F(HostileWorkerTest, AnUploadThatOutlivesItsSessionStartsNoRun) {
  for (const bool another_waits : {false, true}) {
    StartServer();
    auto a = NewClient(), b = NewClient();
    ASSERT_TRUE(a->SendJoin(a->MakeJoin("a")));
    ASSERT_TRUE(a->ReadWelcome());
    v1::ServerMessage message;
    if (another_waits) {
      ASSERT_TRUE(b->SendJoin(b->MakeJoin("b")));
      ASSERT_TRUE(b->ReadUntil(v1::ServerMessage::kNotice, &message));
    }
    std::promise<void> go;
    ASSERT_TRUE(coordinator_->Post([gate = std::make_shared<std::future<void>>(go.get_future())] {
      gate->wait_for(seconds(20));
    }));
    a->Cancel();
    ASSERT_TRUE(Eventually([&] { return Closing(*a); }));
    EXPECT_TRUE(a->Upload().ok());
    go.set_value();
    if (!another_waits) {
      // Nothing binds the run to the layout of one that is gone.
      ASSERT_TRUE(Eventually(
          [&] { return Look().not_ready_because == "waiting for the first worker"; }));
      ASSERT_TRUE(b->SendJoin(b->MakeJoin("b")));
    }
    ASSERT_TRUE(b->ReadWelcome());
    EXPECT_EQ(b->welcome.state(), v1::Welcome::STATE_UPLOAD);
    for (float& x : b->x) x = 0.5f;
    ASSERT_TRUE(b->Upload().ok());
    ASSERT_TRUE(b->SendReady(0));
    ASSERT_TRUE(b->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
    const auto exported = coordinator_->CopyReplica();
    ASSERT_TRUE(exported.ok());
    EXPECT_EQ(exported->x, b->x);
    b->Cancel();
    TearDown();
  }
}

TEST_F(HostileWorkerTest, NamesWithoutEndMakeNobodyForgetAMemberOfTheOpenRound) {
  StartServer({.rounds_max = 2,
               .workers_min = 2,
               .deadline = {.enabled = false},
               .names_max = 2,
               .round_log_path = dir_ / "rounds"});
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->JoinRun("b"));
  v1::ServerMessage message;
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  b->Cancel();
  ASSERT_TRUE(Eventually([&] { return Look().status.losses() == 1; }));
  for (const char* name : {"c", "d", "e"}) {
    auto other = NewClient();
    ASSERT_TRUE(other->SendJoin(other->MakeJoin(name)));
    ASSERT_TRUE(other->ReadWelcome());
  }
  ASSERT_TRUE(a->Vote(RandomBits(kCoordinates, 1)));
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kCommit, &message));
  ASSERT_TRUE(Eventually([&] { return Look().status.round() == 1; }));
  EXPECT_THAT(ReadText(dir_ / "rounds"), HasSubstr("\"members\":[\"a\",\"b\"]"));
}

}  // namespace
}  // namespace signvote::rpc
