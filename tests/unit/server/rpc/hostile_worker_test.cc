// What a malicious or broken worker must not bring about: the server's end, memory, files or
// threads without a bound, another worker's disadvantage, and words that accuse the wrong one.

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

// Goal: whoever cuts its session while its upload completes neither ends the server nor starts the
// run from parameters that nobody stands for. Method: the engine's thread is held up, so that the
// session's end lies in the inbox before the upload's.
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
      ASSERT_TRUE(
          Eventually([&] { return Look().not_ready_because == "waiting for the first worker"; }));
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
  StartServer(
      {.rounds_max = 2, .workers_min = 2, .names_max = 2, .round_log_path = dir_ / "rounds"});
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

// A message of some kilobytes may decompress into gigabytes before any limit is looked at.
TEST_F(HostileWorkerTest, CompressedMessagesAreRefused) {
  StartServer();
  for (const grpc_compression_algorithm algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    auto client = NewClient();
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(30));
    context.set_compression_algorithm(algorithm);
    auto stream = client->stub()->Session(&context);
    v1::WorkerMessage message;
    *message.mutable_join() = client->MakeJoin("w");
    message.mutable_join()->set_model_config_json(std::string(1 << 19, ' '));
    (void)stream->Write(message);  // the server may be quicker
    v1::ServerMessage reply;
    EXPECT_FALSE(stream->Read(&reply));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
}

TEST_F(HostileWorkerTest, AFloodOfDigestsLeavesOneLineARound) {
  StartServer({.event_log_path = dir_ / "events"});
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  v1::WorkerMessage digest;
  for (uint64_t i = 0; i < 40; ++i) {
    digest.mutable_replica_digest()->set_round(i % 2 == 0 ? 0 : 1000 + i);
    digest.mutable_replica_digest()->set_digest(i);
    ASSERT_TRUE(client->Send(digest));
  }
  ASSERT_TRUE(Eventually([&] { return Look().stale_messages >= 40; }));
  const std::string log = ReadText(dir_ / "events");
  size_t lines = 0;
  for (size_t at = 0; (at = log.find("\"kind\":\"digest\"", at)) != std::string::npos; ++at)
    ++lines;
  EXPECT_LE(lines, 1u) << log;
}

TEST_F(HostileWorkerTest, LongTextsAreCut) {
  StartServer({.event_log_path = dir_ / "events"});
  const std::string text(1 << 20, 'x');
  {
    auto client = NewClient();
    v1::Join join = client->MakeJoin("w");
    join.set_protocol_min(9);
    join.set_protocol_max(9);
    join.set_software_version(text);
    ASSERT_TRUE(client->SendJoin(join));
    const grpc::Status status = client->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("protocol versions do not meet"));
  }
  {
    auto client = NewClient();
    ASSERT_TRUE(client->SendJoin(client->MakeJoin(text)));
    EXPECT_EQ(client->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  auto client = NewClient();
  v1::Join join = client->MakeJoin("w");
  join.set_metrics_address(text);
  ASSERT_TRUE(client->SendJoin(join));
  ASSERT_TRUE(client->ReadWelcome());
  EXPECT_LT(Watch().ByteSizeLong(), 10'000u);
  v1::WorkerMessage leave;
  leave.mutable_leave()->set_reason(text);
  ASSERT_TRUE(client->Send(leave));
  EXPECT_TRUE(client->Finish().ok());
  EXPECT_LT(ReadText(dir_ / "events").size(), 10'000u);
}

TEST_F(HostileWorkerTest, OnlyBallotsMayBeLarge) {
  StartServer();
  auto client = NewClient();
  v1::Join join = client->MakeJoin("w");
  join.set_token(std::string(9 << 20, 't'));
  (void)client->SendJoin(join);  // the server may be quicker
  const grpc::Status status = client->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("8388608"));
}

// Goal: streams that say nothing cannot keep out those who do. Method: more of them than are borne;
// the oldest go, the youngest may still join.
TEST_F(HostileWorkerTest, TooManySilentStreamsCostTheOldestTheirPlace) {
  StartServer();
  // The first, many at once, and the last: only then, because nobody hears when the server has a
  // silent stream.
  constexpr auto kLongAgo = milliseconds(500);
  auto oldest = NewClient();
  std::this_thread::sleep_for(kLongAgo);
  std::vector<std::unique_ptr<WireClient>> between;
  for (int i = 0; i < 38; ++i) between.push_back(NewClient());
  const grpc::Status status = oldest->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("32 streams"));
  auto youngest = NewClient();
  std::this_thread::sleep_for(kLongAgo);  // time to close the wrong ones
  EXPECT_TRUE(youngest->JoinRun("w"));
}

TEST_F(HostileWorkerTest, AnEvictedNameDoesNotJoinThroughTheBackDoor) {
  StartServer({.rounds_max = 1000, .ping_timeout = kLong});
  auto first = NewClient();
  ASSERT_TRUE(first->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(first->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  first->answer_pings = false;
  std::thread reader([&] {
    while (first->Read(&message)) {
    }
  });
  auto second = NewClient();
  EXPECT_TRUE(second->SendJoin(second->MakeJoin("w")));
  // Held: the first one is being asked whether it lives.
  EXPECT_TRUE(Eventually([&] { return first->pings == 1; }));
  std::promise<absl::Status> evicted;
  EXPECT_TRUE(coordinator_->Post([&] { evicted.set_value(coordinator_->Evict("w")); }));
  EXPECT_TRUE(evicted.get_future().get().ok());
  reader.join();
  EXPECT_EQ(first->Finish().error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(Events(), ElementsAre("joined w", "member w", "evicted w"));
  EXPECT_EQ(Look().stale_messages, 0u) << "the engine itself let go of it";
}

TEST_F(HostileWorkerTest, ANewcomerThatLeavesIsNotTakenForTheOneThatStays) {
  StartServer({.rounds_max = 1000, .ping_timeout = kLong});
  auto first = NewClient();
  ASSERT_TRUE(first->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(first->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  auto second = NewClient();
  ASSERT_TRUE(second->SendJoin(second->MakeJoin("w")));
  v1::WorkerMessage leave;
  leave.mutable_leave()->set_reason("changed my mind");
  ASSERT_TRUE(second->Send(leave));
  EXPECT_TRUE(second->Finish().ok());
  EXPECT_THAT(Events(), ElementsAre("joined w", "member w"));
}

TEST_F(HostileWorkerTest, AnAbstentionFromAnotherRoundExplainsNothing) {
  StartServer({.rounds_max = 1000,
               .workers_min = 2,
               .deadline = {.initial = milliseconds(300), .grace_ceiling = milliseconds(500)}},
              Deadlines::kOn);
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->JoinRun("b"));
  v1::ServerMessage message;
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  v1::WorkerMessage abstain;
  abstain.mutable_abstain()->set_round(77);
  abstain.mutable_abstain()->set_reason(v1::Abstain::REASON_NONFINITE_LOSS);
  ASSERT_TRUE(b->Send(abstain));
  ASSERT_TRUE(Eventually([&] { return Look().stale_messages == 1; }));
  ASSERT_TRUE(a->Vote(RandomBits(kCoordinates, 1)));
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kCommit, &message));
  const v1::WatchReply reply = Watch();
  ASSERT_GT(reply.events_size(), 0);
  const v1::Event& last = reply.events(reply.events_size() - 1);
  EXPECT_EQ(last.kind(), v1::Event::KIND_ABSTAINED);
  EXPECT_EQ(last.reason(), "no ballot in time");
}

TEST_F(HostileWorkerTest, ASecondFetchMayFollowTheFirstAtOnce) {
  StartServer({.rounds_max = 1000});
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->SendJoin(b->MakeJoin("b")));
  ASSERT_TRUE(b->ReadWelcome());
  for (int i = 0; i < 200; ++i) {
    const grpc::Status status = b->Fetch();
    ASSERT_TRUE(status.ok()) << i << ": " << status.error_message();
  }
}

TEST_F(HostileWorkerTest, TheEndOfARunIsNobodysRefusal) {
  StartServer({.rounds_max = 1000});
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  v1::WorkerMessage abstain;
  abstain.mutable_abstain()->set_reason(v1::Abstain::REASON_NONFINITE_LOSS);
  ASSERT_TRUE(client->Send(abstain));
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  coordinator_->CloseSessions(seconds(5));
  EXPECT_EQ(client->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Look().refusals, 0u);
}

// Exports hold a copy of the whole model for as long as their readers take.
TEST_F(HostileWorkerTest, ASecondExportWaitsForTheFirstOnesEnd) {
  StartServer({.rounds_max = 1000});
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16384);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto admin = v1::Admin::NewStub(
      grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
  v1::ExportChunk chunk;
  const auto second = [&] {
    grpc::ClientContext context;
    const auto reader = admin->Export(&context, v1::ExportRequest());
    while (reader->Read(&chunk)) {
    }
    return reader->Finish();
  };
  grpc::ClientContext slow;
  const auto reader = admin->Export(&slow, v1::ExportRequest());
  ASSERT_TRUE(reader->Read(&chunk));
  std::this_thread::sleep_for(milliseconds(100));  // the copy is long made
  const grpc::Status refused = second();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.error_message(), HasSubstr("another export"));
  slow.TryCancel();
  EXPECT_FALSE(reader->Finish().ok());
  EXPECT_TRUE(Eventually([&] { return second().ok(); }));
}

// Goal: open reflection calls do not take a thread each. Method: thirty of them, each answered once
// or refused.
TEST_F(HostileWorkerTest, OpenReflectionCallsTakeFewThreads) {
  StartServer();
  const auto threads = [] {
    const std::string status =
        FileSystem::Posix()->ReadFile("/proc/self/status", 1 << 16).value_or("");
    return std::atoi(status.c_str() + status.find("Threads:") + 8);
  };
  const auto channel = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
  const grpc::internal::RpcMethod method(
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      grpc::internal::RpcMethod::BIDI_STREAMING, channel);
  const grpc::Slice list_services(std::string("\x3a\x00", 2));
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>>> calls;
  int before = 0, answered = 0;
  for (int i = 0; i < 30; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    contexts.back()->set_deadline(std::chrono::system_clock::now() + seconds(30));
    calls.emplace_back(
        grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
            channel.get(), method, contexts.back().get()));
    grpc::ByteBuffer reply;
    (void)calls.back()->Write(grpc::ByteBuffer(&list_services, 1));  // refused: the read says so
    if (calls.back()->Read(&reply)) ++answered;
    if (i == 0) before = threads();
  }
  EXPECT_GE(answered, 1);
  EXPECT_LT(threads(), before + 16);
  for (const auto& context : contexts) context->TryCancel();
}

TEST_F(HostileWorkerTest, APauseBeforeTheFirstWorkerIsNoWaitForIt) {
  StartServer({.wait_timeout = seconds(1)});
  ASSERT_TRUE(coordinator_->Post([&] { (void)coordinator_->Pause(); }));
  EXPECT_FALSE(coordinator_->WaitUntilEnded(seconds(2)));
  ASSERT_TRUE(coordinator_->Post([&] { (void)coordinator_->Resume(); }));
  EXPECT_TRUE(coordinator_->WaitUntilEnded(kLong));
}

TEST_F(HostileWorkerTest, ARunThatIsOverIsNotStoppedByTheOperator) {
  StartServer({.rounds_max = 1});
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, 1)));
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kCommit, &message));
  ASSERT_TRUE(client->Apply(message.commit()));
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kFinish, &message));
  coordinator_->RequestStop();
  ASSERT_TRUE(client->SendDigest());
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  const v1::WatchReply reply = Watch();
  EXPECT_EQ(reply.events(reply.events_size() - 1).reason(), "");
}

}  // namespace
}  // namespace signvote::rpc
