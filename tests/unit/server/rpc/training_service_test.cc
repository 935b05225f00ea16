// The whole server in one process behind real gRPC, against a client written from the .proto alone.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <thread>

#include <nlohmann/json.hpp>

#include "common/coin.h"
#include "common/exit_codes.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "server/rpc/history.h"
#include "signvote/v1/admin.grpc.pb.h"
#include "tests/unit/server/rpc/training_service_fixture.h"

namespace signvote::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(TrainingServiceTest, OneWorkerTrainsARunFromItsUploadToTheEnd) {
  StartServer({.rounds_max = 3,
               .digest_every = 2,
               .round_log_path = dir_ / "rounds",
               .event_log_path = dir_ / "events"});
  auto client = NewClient();
  for (size_t i = 0; i < client->x.size(); ++i) client->x[i] = std::sin(static_cast<float>(i));
  ASSERT_TRUE(client->JoinRun("w0"));
  EXPECT_EQ(client->welcome.state(), v1::Welcome::STATE_UPLOAD);
  v1::ServerMessage message;
  int digests = 0;
  bool finished = false;
  while (!finished && client->Read(&message)) {
    if (message.has_round_open()) {
      EXPECT_EQ(client->open.members(), 1u);
      ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, client->open.round()), 2.5));
    }
    if (message.has_commit()) {
      EXPECT_EQ(message.commit().loss(), 2.5);
      EXPECT_EQ(message.commit().voters(), 1u);
      // One ballot: the verdict is the ballot.
      EXPECT_EQ(client->verdict, RandomBits(kCoordinates, message.commit().round()));
      ASSERT_TRUE(client->Apply(message.commit()));
      if (message.commit().digest_due()) {
        ++digests;
        client->SendDigest();
      }
    }
    finished = message.has_finish();
  }
  ASSERT_TRUE(finished);
  EXPECT_EQ(message.finish().rounds(), 3u);
  EXPECT_EQ(digests, 2);
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  EXPECT_TRUE(coordinator_->end_status().ok()) << Describe(coordinator_->end_status());
  // gRPC ends the upload's call behind its reply.
  EXPECT_TRUE(
      Eventually([&] { return Look().status.wire().up_setup_bytes() >= 4 * kCoordinates; }));
  const ServerSnapshot snapshot = Look();
  EXPECT_EQ(snapshot.status.master_digest(), client->Digest());
  EXPECT_EQ(snapshot.status.master_digest_round(), 3u);
  EXPECT_EQ(snapshot.status.wire().ballots(), 3u);
  EXPECT_EQ(snapshot.status.wire().fp32_equivalent_bytes(), 3 * 4 * kCoordinates);
  EXPECT_GE(snapshot.status.wire().up_rounds_bytes(), 3 * kCoordinates / 8);
  EXPECT_LE(snapshot.status.wire().up_rounds_bytes(), 3 * kCoordinates / 8 * 11 / 10);
  EXPECT_EQ(snapshot.status.workers(0).agreement(), 1.0);
  coordinator_->CloseSessions(seconds(5));
  EXPECT_TRUE(client->Finish().ok());

  ASSERT_TRUE(coordinator_->ExportFinal(dir_ / "model.safetensors").ok());
  const auto file = SafetensorsFile::Open(FileSystem::Posix(), dir_ / "model.safetensors");
  ASSERT_TRUE(file.ok()) << Describe(file.status());
  std::vector<float> exported(kCoordinates);
  ASSERT_TRUE((*file)->CopyInto(TestLayout(), exported).ok());
  EXPECT_EQ(exported, client->x);

  std::istringstream rounds(*FileSystem::Posix()->ReadFile(dir_ / "rounds", 1 << 20));
  std::string line;
  for (uint64_t r = 0; r < 3; ++r) {
    ASSERT_TRUE(std::getline(rounds, line));
    const nlohmann::json json = nlohmann::json::parse(line);
    EXPECT_EQ(json["round"], r);
    EXPECT_EQ(json["stepsize"].get<float>(), 0.01f);
    EXPECT_EQ(json["workers"][0]["name"], "w0");
    EXPECT_EQ(json["workers"][0]["loss"], 2.5);
    EXPECT_EQ(json["members"], nlohmann::json({"w0"}));
  }
  EXPECT_THAT(*FileSystem::Posix()->ReadFile(dir_ / "events", 1 << 20),
              AllOf(HasSubstr("\"kind\":\"joined\""), HasSubstr("\"kind\":\"member\""),
                    HasSubstr("\"kind\":\"finished\"")));
}

TEST_F(TrainingServiceTest, TheVerdictIsTheMajorityWithSeededCoinsForTies) {
  StartServer({.seed = 42, .rounds_max = 1, .workers_min = 2});
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->JoinRun("b"));
  EXPECT_EQ(b->welcome.state(), v1::Welcome::STATE_FETCH);
  EXPECT_EQ(b->x, a->x);
  v1::ServerMessage message;
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(b->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  EXPECT_NE(a->open.share(), b->open.share());
  const std::vector<uint8_t> bits_a = RandomBits(kCoordinates, 1),
                             bits_b = RandomBits(kCoordinates, 2);
  ASSERT_TRUE(a->Vote(bits_a));
  ASSERT_TRUE(b->Vote(bits_b));
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kCommit, &message));
  ASSERT_TRUE(b->ReadUntil(v1::ServerMessage::kCommit, &message));
  EXPECT_EQ(a->verdict, b->verdict);
  for (uint64_t i = 0; i < kCoordinates; ++i) {
    const uint32_t ones = GetBit(bits_a.data(), i) + GetBit(bits_b.data(), i);
    const bool coin = (TieCoinWord(42, Round(0), i / 64) >> (i % 64)) & 1;
    ASSERT_EQ(GetBit(a->verdict.data(), i), ones == 2 || (ones == 1 && coin)) << i;
  }
  EXPECT_GT(Look().ties, kCoordinates / 3);
}

TEST_F(TrainingServiceTest, ALateJoinerGetsTheReplicaAndTheMissingCommitsAndVotes) {
  StartServer({.rounds_max = 40, .digest_every = 0});
  auto first = NewClient();
  ASSERT_TRUE(first->JoinRun("first"));
  std::thread voter([&] {
    v1::ServerMessage message;
    while (first->Read(&message)) {
      if (message.has_round_open()) {
        // Half of the run goes by meanwhile, and half is left for the newcomer.
        if (first->open.round() == 20) {
          EXPECT_TRUE(Eventually([&] { return Look().status.joins() == 2; }));
        }
        first->Vote(RandomBits(kCoordinates, first->open.round()));
      }
      if (message.has_commit() && !first->Apply(message.commit())) break;
      if (message.has_finish()) {
        first->SendDigest();
        return;
      }
    }
    ADD_FAILURE() << "the first worker did not get to the end";
  });
  auto late = NewClient();
  ASSERT_TRUE(late->JoinRun("late"));
  EXPECT_EQ(late->welcome.state(), v1::Welcome::STATE_FETCH);
  bool voted = false, finished = false;
  v1::ServerMessage message;
  while (!finished && late->Read(&message)) {
    if (message.has_round_open())
      voted = late->Vote(RandomBits(kCoordinates, 99 + late->open.round()));
    if (message.has_commit()) {
      ASSERT_TRUE(late->Apply(message.commit()));
    }
    if (message.has_finish()) {
      finished = true;
      late->SendDigest();
    }
  }
  voter.join();
  EXPECT_TRUE(finished);
  EXPECT_TRUE(voted);
  EXPECT_EQ(late->Digest(), first->Digest());
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  EXPECT_TRUE(coordinator_->end_status().ok()) << Describe(coordinator_->end_status());
  EXPECT_EQ(Look().status.master_digest(), first->Digest());
}

TEST_F(TrainingServiceTest, AWorkerThatIsStillJoiningWhenTheRunEndsIsToldThatItHasFinished) {
  StartServer({.rounds_max = 3, .digest_every = 0});
  auto first = NewClient();
  ASSERT_TRUE(first->JoinRun("first"));
  auto late = NewClient();
  ASSERT_TRUE(late->SendJoin(late->MakeJoin("late")));
  ASSERT_TRUE(late->ReadWelcome());
  ASSERT_EQ(late->welcome.state(), v1::Welcome::STATE_FETCH);  // and never is Ready
  v1::ServerMessage message;
  while (!message.has_finish()) {
    ASSERT_TRUE(first->Read(&message));
    if (message.has_round_open()) first->Vote(RandomBits(kCoordinates, first->open.round()));
    if (message.has_commit()) {
      ASSERT_TRUE(first->Apply(message.commit()));
    }
  }
  first->SendDigest();
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  ASSERT_TRUE(late->ReadUntil(v1::ServerMessage::kFinish, &message));
  EXPECT_EQ(message.finish().rounds(), 3u);
}

TEST_F(TrainingServiceTest, AWorkerThatVanishesIsNotWaitedForAndComesBackWithItsOwnReplica) {
  StartServer({.rounds_max = 1000, .workers_min = 2});
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->JoinRun("b"));
  v1::ServerMessage message;
  ASSERT_TRUE(b->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  const uint64_t incarnation = b->welcome.incarnation();
  const std::string run_id = b->welcome.run_id();
  b->Cancel();
  // Its round commits without it.
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(Eventually([&] { return Look().status.losses() == 1; }));
  ASSERT_TRUE(a->Vote(RandomBits(kCoordinates, 1)));
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kCommit, &message));
  EXPECT_EQ(message.commit().voters(), 1u);

  auto again = NewClient();
  v1::Join join = again->MakeJoin("b");
  join.set_run_id(run_id);
  join.set_round(0);
  join.set_epoch(1);
  again->x = b->x;
  ASSERT_TRUE(again->SendJoin(join));
  ASSERT_TRUE(again->ReadWelcome());
  EXPECT_EQ(again->welcome.state(), v1::Welcome::STATE_KEEP);
  EXPECT_GT(again->welcome.incarnation(), incarnation);
  ASSERT_TRUE(again->SendReady(0));
  // The commit it missed comes with its verdict.
  ASSERT_TRUE(again->ReadUntil(v1::ServerMessage::kCommit, &message));
  EXPECT_EQ(message.commit().round(), 0u);
  EXPECT_TRUE(again->Apply(message.commit()));
  EXPECT_EQ(again->verdict, RandomBits(kCoordinates, 1));
}

TEST_F(TrainingServiceTest, ALostUploaderPassesTheLeaseOn) {
  StartServer();
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->SendJoin(a->MakeJoin("a")));
  ASSERT_TRUE(a->ReadWelcome());
  EXPECT_EQ(a->welcome.state(), v1::Welcome::STATE_UPLOAD);
  ASSERT_TRUE(b->SendJoin(b->MakeJoin("b")));
  v1::ServerMessage message;
  ASSERT_TRUE(b->ReadUntil(v1::ServerMessage::kNotice, &message));
  EXPECT_THAT(message.notice().text(), HasSubstr("from a"));
  a->Cancel();
  ASSERT_TRUE(b->ReadWelcome());
  EXPECT_EQ(b->welcome.state(), v1::Welcome::STATE_UPLOAD);
  EXPECT_TRUE(b->Upload().ok());
}

TEST_F(TrainingServiceTest, AnUploaderWithoutProgressLosesItsLease) {
  StartServer({.upload_timeout = milliseconds(200)});
  auto a = NewClient();
  ASSERT_TRUE(a->SendJoin(a->MakeJoin("a")));
  ASSERT_TRUE(a->ReadWelcome());
  const grpc::Status status = a->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_THAT(status.error_message(), HasSubstr("--upload-timeout"));
  EXPECT_EQ(a->Upload().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(TrainingServiceTest, AnUploadThatIsNotFiniteNamesTheParameter) {
  StartServer();
  auto a = NewClient();
  a->x[7] = std::nanf("");
  ASSERT_TRUE(a->SendJoin(a->MakeJoin("a")));
  ASSERT_TRUE(a->ReadWelcome());
  const grpc::Status status = a->Upload();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("parameter 7 of tensor 'w'"));
}

TEST_F(TrainingServiceTest, OtherVersionsLayoutsAndRunsAreRefusedWithBothSides) {
  StartServer();
  auto good = NewClient();
  ASSERT_TRUE(good->JoinRun("good"));

  auto version = NewClient();
  v1::Join join = version->MakeJoin("v");
  join.set_protocol_min(2);
  join.set_protocol_max(3);
  ASSERT_TRUE(version->SendJoin(join));
  grpc::Status status = version->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("speaks 1"), HasSubstr("speaks 2 to 3")));

  auto layout = NewClient(kCoordinates + 5);
  ASSERT_TRUE(layout->SendJoin(layout->MakeJoin("l")));
  status = layout->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  char mine[20], theirs[20];
  std::snprintf(mine, sizeof(mine), "%016lx", TestLayout().digest());
  std::snprintf(theirs, sizeof(theirs), "%016lx", TestLayout(kCoordinates + 5).digest());
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr(mine), HasSubstr(theirs), HasSubstr("w")));

  auto run = NewClient();
  join = run->MakeJoin("r");
  join.set_run_id(std::string(16, 'x'));
  ASSERT_TRUE(run->SendJoin(join));
  status = run->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr(coordinator_->run_id().ToText()));

  auto lying = NewClient();
  join = lying->MakeJoin("d");
  join.mutable_layout()->set_digest(1);
  ASSERT_TRUE(lying->SendJoin(join));
  EXPECT_EQ(lying->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Look().refusals, 4u);
}

TEST_F(TrainingServiceTest, ANameInALiveSessionIsRefused) {
  StartServer({.workers_min = 2, .ping_timeout = kLong});
  auto old = NewClient();
  ASSERT_TRUE(old->JoinRun("w"));
  std::thread reader([&] {  // answers the ping
    v1::ServerMessage message;
    while (old->Read(&message)) {
    }
  });
  auto second = NewClient();
  ASSERT_TRUE(second->SendJoin(second->MakeJoin("w")));
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::ALREADY_EXISTS);
  old->Cancel();
  reader.join();
}

TEST_F(TrainingServiceTest, ADeadSessionIsFencedWhenItsNameJoinsAgain) {
  StartServer({.workers_min = 2, .ping_timeout = milliseconds(200)});
  auto old = NewClient();
  old->answer_pings = false;
  ASSERT_TRUE(old->JoinRun("w"));
  auto second = NewClient();
  ASSERT_TRUE(second->SendJoin(second->MakeJoin("w")));
  ASSERT_TRUE(second->ReadWelcome());
  EXPECT_EQ(second->welcome.incarnation(), 2u);
  EXPECT_EQ(old->Finish().error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(TrainingServiceTest, TheRunIsFullAtWorkersMax) {
  StartServer({.workers_max = 1});
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->SendJoin(b->MakeJoin("b")));
  EXPECT_EQ(b->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(TrainingServiceTest, MalformedMessagesEndTheirSessionAndNothingElse) {
  StartServer({.rounds_max = 100});
  struct Case {
    const char* what;
    std::function<void(v1::BallotChunk*)> spoil;
    grpc::StatusCode code;
    const char* words;
  };
  const std::vector<Case> cases = {
      {"a wrong chunk", [](v1::BallotChunk* c) { c->set_chunk(77); },
       grpc::StatusCode::INVALID_ARGUMENT, "chunks"},
      {"a short chunk", [](v1::BallotChunk* c) { c->mutable_payload()->pop_back(); },
       grpc::StatusCode::INVALID_ARGUMENT, "must have"},
      {"a flipped bit", [](v1::BallotChunk* c) { (*c->mutable_payload())[0] ^= 1; },
       grpc::StatusCode::DATA_LOSS, "checksum"},
      {"a round that is not open", [](v1::BallotChunk* c) { c->set_round(50); },
       grpc::StatusCode::INVALID_ARGUMENT, "before that round was opened"},
      {"another run", [](v1::BallotChunk* c) { c->set_run_id(std::string(16, 'q')); },
       grpc::StatusCode::INVALID_ARGUMENT, "is of run"},
      {"another epoch", [](v1::BallotChunk* c) { c->set_epoch(9); },
       grpc::StatusCode::INVALID_ARGUMENT, "epoch"},
      {"padding bits",
       [](v1::BallotChunk* c) {
         c->set_chunk(2);
         c->mutable_payload()->assign(std::string((kCoordinates - 2 * 102400 + 7) / 8, '\0'));
         c->mutable_payload()->back() = '\x80';
         c->set_checksum(Xxh3(c->payload().data(), c->payload().size()));
       },
       grpc::StatusCode::INVALID_ARGUMENT, "after the last coordinate"},
  };
  for (const Case& spoiled : cases) {
    SCOPED_TRACE(spoiled.what);
    auto client = NewClient();
    ASSERT_TRUE(client->JoinRun("w"));
    v1::ServerMessage message;
    ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
    v1::BallotChunk chunk = client->MakeChunk(0, RandomBits(kCoordinates, 1));
    spoiled.spoil(&chunk);
    client->SendChunk(chunk);
    const grpc::Status status = client->Finish();
    EXPECT_EQ(status.error_code(), spoiled.code);
    EXPECT_THAT(status.error_message(), HasSubstr(spoiled.words));
  }
  auto empty = NewClient();
  empty->Send(v1::WorkerMessage());
  EXPECT_EQ(empty->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  auto early = NewClient();
  early->SendReady(0);
  EXPECT_EQ(early->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  // The server goes on as if nothing had been.
  auto good = NewClient();
  ASSERT_TRUE(good->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(good->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(good->Vote(RandomBits(kCoordinates, 3)));
  ASSERT_TRUE(good->ReadUntil(v1::ServerMessage::kCommit, &message));
}

TEST_F(TrainingServiceTest, AReplayedBallotIsCountedOnceAndChangesNothing) {
  StartServer({.rounds_max = 2, .workers_min = 2});
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->JoinRun("b"));
  v1::ServerMessage message;
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(b->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 5);
  ASSERT_TRUE(a->Vote(bits));
  ASSERT_TRUE(
      a->SendChunk(a->MakeChunk(0, RandomBits(kCoordinates, 6))));  // a second, different vote
  ASSERT_TRUE(Eventually([&] { return Look().status.duplicate_chunks() == 1; }));
  ASSERT_TRUE(b->Vote(bits));
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kCommit, &message));
  EXPECT_EQ(message.commit().counted(0), 2u);
  EXPECT_EQ(a->verdict, bits);
  // Late: its round is committed.
  v1::BallotChunk late = b->MakeChunk(0, bits);
  late.set_round(0);
  ASSERT_TRUE(b->SendChunk(late));
  EXPECT_TRUE(Eventually([&] { return Look().status.late_chunks() == 1; }));
}

TEST_F(TrainingServiceTest, AWorkerThatReadsNothingIsClosedAndTheOthersGoOn) {
  StartServer({.rounds_max = 100'000, .workers_min = 2, .session_buffer_bytes = 1 << 20},
              Deadlines::kOn);  // the deaf one's ballots are not waited for
  auto a = NewClient(), deaf = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(deaf->JoinRun("deaf"));
  const std::vector<uint8_t> bits = RandomBits(kCoordinates, 5);
  v1::ServerMessage message;
  ASSERT_TRUE(deaf->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(deaf->Vote(bits));  // and then nothing, not even reading
  bool closed = false;
  while (!closed && a->Read(&message)) {
    if (message.has_round_open()) {
      ASSERT_TRUE(a->Vote(bits));
      closed = Look().status.losses() == 1;
    }
  }
  EXPECT_TRUE(closed);
}

TEST_F(TrainingServiceTest, ADelayedApplierSlowsNoCommitWhileTheRingLasts) {
  StartServer({.rounds_max = 20, .test_applier_delay = std::chrono::hours(1)});
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  uint64_t commits = 0;
  while (commits < 20 && client->Read(&message)) {
    if (message.has_round_open()) client->Vote(RandomBits(kCoordinates, client->open.round()));
    if (message.has_commit()) ++commits;
  }
  EXPECT_EQ(commits, 20u);
  EXPECT_EQ(Look().applier_lag, 20u);
}

TEST_F(TrainingServiceTest, AdminCallsPauseResumeDrainEvictAndExport) {
  StartServer({.rounds_max = 1000});
  auto admin =
      v1::Admin::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
  const auto call = [&](auto method, auto request, auto reply) {
    grpc::ClientContext context;
    return (admin.get()->*method)(&context, request, &reply);
  };
  const auto drain = [&](const std::string& name) {
    v1::DrainRequest request;
    request.set_worker(name);
    return call(&v1::Admin::Stub::Drain, request, v1::DrainReply());
  };
  EXPECT_EQ(drain("nobody").error_code(), grpc::StatusCode::NOT_FOUND);
  {
    grpc::ClientContext context;
    v1::ExportChunk chunk;
    auto reader = admin->Export(&context, v1::ExportRequest());
    EXPECT_FALSE(reader->Read(&chunk));
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  }
  auto client = NewClient();
  for (float& v : client->x) v = 1.5f;
  v1::Join join = client->MakeJoin("w");
  join.set_model_config_json("{}");
  ASSERT_TRUE(client->SendJoin(join));
  ASSERT_TRUE(client->ReadWelcome());
  ASSERT_TRUE(client->Upload().ok());
  ASSERT_TRUE(client->SendReady(0));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));

  EXPECT_TRUE(call(&v1::Admin::Stub::Pause, v1::PauseRequest(), v1::PauseReply()).ok());
  ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, 1)));
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kCommit, &message));
  v1::Status status;
  grpc::ClientContext context;
  ASSERT_TRUE(admin->GetStatus(&context, v1::GetStatusRequest(), &status).ok());
  EXPECT_EQ(status.phase(), v1::Status::PHASE_PAUSED);
  EXPECT_EQ(status.round(), 1u);
  ASSERT_EQ(status.workers_size(), 1);
  EXPECT_EQ(status.workers(0).name(), "w");
  EXPECT_EQ(status.workers(0).role(), v1::Worker::ROLE_MEMBER);
  ASSERT_TRUE(client->Apply(message.commit()));
  ASSERT_TRUE(Eventually([&] { return Look().applier_lag == 0; }));
  {
    grpc::ClientContext export_context;
    v1::ExportChunk chunk;
    auto reader = admin->Export(&export_context, v1::ExportRequest());
    std::string file;
    std::string config;
    while (reader->Read(&chunk)) {
      if (file.empty()) config = chunk.config_json();
      file += chunk.data();
      EXPECT_EQ(chunk.round(), 1u);
    }
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(file.size(), chunk.total_bytes());
    EXPECT_EQ(config, "{}");
    ASSERT_GT(file.size(), 4 * kCoordinates);
    EXPECT_EQ(std::memcmp(file.data() + file.size() - 4 * kCoordinates, client->x.data(),
                          4 * kCoordinates),
              0);
  }
  EXPECT_TRUE(call(&v1::Admin::Stub::Resume, v1::ResumeRequest(), v1::ResumeReply()).ok());
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  EXPECT_TRUE(drain("w").ok());
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kDrain, &message));
  v1::WorkerMessage leave;
  leave.mutable_leave()->set_reason("drained");
  ASSERT_TRUE(client->Send(leave));
  EXPECT_TRUE(client->Finish().ok());
  EXPECT_EQ(Look().status.losses(), 0u);

  v1::EvictRequest evict;
  evict.set_worker("w");
  EXPECT_TRUE(call(&v1::Admin::Stub::Evict, evict, v1::EvictReply()).ok());
  auto again = NewClient();
  ASSERT_TRUE(again->SendJoin(again->MakeJoin("w")));
  EXPECT_EQ(again->Finish().error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(TrainingServiceTest, AStopLetsTheOpenRoundCompleteAndTellsTheWorkers) {
  StartServer({.rounds_max = 1000});
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  coordinator_->RequestStop();
  ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, 1)));
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kCommit, &message));
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  EXPECT_TRUE(coordinator_->end_status().ok()) << Describe(coordinator_->end_status());
  coordinator_->CloseSessions(seconds(5));
  EXPECT_EQ(client->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(TrainingServiceTest, AStopBeforeTheFirstWorkerEndsAtOnce) {
  StartServer();
  coordinator_->RequestStop();
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  EXPECT_TRUE(coordinator_->end_status().ok());
  EXPECT_EQ(coordinator_->ExportFinal(dir_ / "none").code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TrainingServiceTest, WaitingForWorkersEndsWithItsOwnExitCode) {
  StartServer({.wait_timeout = milliseconds(150)});
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  EXPECT_EQ(ExitCodeFor(coordinator_->end_status()), ExitCode::kWaitTimeout);
}

TEST_F(TrainingServiceTest, AllAbstainingEndsTheRunAsDiverged) {
  StartServer({.rounds_max = 1000});
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  v1::WorkerMessage abstain;
  abstain.mutable_abstain()->set_round(0);
  abstain.mutable_abstain()->set_reason(v1::Abstain::REASON_NONFINITE_LOSS);
  ASSERT_TRUE(client->Send(abstain));
  ASSERT_TRUE(coordinator_->WaitUntilEnded(kLong));
  EXPECT_EQ(ExitCodeFor(coordinator_->end_status()), ExitCode::kDiverged);
  EXPECT_TRUE(coordinator_->ExportFinal(dir_ / "last.safetensors").ok());
}

// Goal: who always has a call waiting sees what happened and the last state. Method: a worker that
// votes and is paused; a call in between, and one that waits while the run is stopped.
TEST_F(TrainingServiceTest, AWatcherLearnsWhatHappenedAndHowTheRunEnded) {
  StartServer({.rounds_max = 1000});
  auto admin =
      v1::Admin::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
  const auto watch = [&](uint64_t after, uint32_t wait_ms) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(30));
    v1::WatchRequest request;
    request.set_events_after(after);
    request.set_wait_ms(wait_ms);
    v1::WatchReply reply;
    const grpc::Status status = admin->Watch(&context, request, &reply);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return reply;
  };
  const auto words = [](const v1::WatchReply& reply) {
    std::vector<std::string> out;
    for (const v1::Event& event : reply.events()) out.emplace_back(EventWord(event.kind()));
    return out;
  };
  EXPECT_EQ(watch(0, 0).events_size(), 0);
  const Time begin = Clock::System()->Now();
  (void)watch(0, 300);  // nothing happens: the time is all that counts
  EXPECT_GE(Clock::System()->Now() - begin, milliseconds(300));

  auto a = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  v1::ServerMessage message;
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(a->Vote(RandomBits(kCoordinates, 1), 2.5));
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  v1::WatchReply reply = watch(0, 0);
  EXPECT_EQ(words(reply), (std::vector<std::string>{"joined", "member"}));
  EXPECT_EQ(reply.status().round(), 1u);
  ASSERT_EQ(reply.series().loss_size(), 1);
  EXPECT_EQ(reply.series().loss(0), 2.5f);
  EXPECT_EQ(reply.series().stepsize(0), 0.01f);

  const auto call = [&](auto method, auto request, auto answer) {
    grpc::ClientContext context;
    return (admin.get()->*method)(&context, request, &answer).ok();
  };
  for (int i = 0; i < 2; ++i) {  // the second one changes nothing
    EXPECT_TRUE(call(&v1::Admin::Stub::Pause, v1::PauseRequest(), v1::PauseReply()));
  }
  EXPECT_TRUE(call(&v1::Admin::Stub::Resume, v1::ResumeRequest(), v1::ResumeReply()));
  const uint64_t seen = reply.events(1).sequence();
  reply = watch(seen, 0);
  EXPECT_EQ(words(reply), (std::vector<std::string>{"paused", "resumed"}));

  std::thread stop([&] {
    std::this_thread::sleep_for(milliseconds(200));
    a->Cancel();
    coordinator_->RequestStop();
  });
  reply = watch(reply.events(1).sequence(), 60'000);
  stop.join();
  EXPECT_EQ(reply.status().phase(), v1::Status::PHASE_ENDED);
  ASSERT_GE(reply.events_size(), 1);
  const v1::Event& last = reply.events(reply.events_size() - 1);
  EXPECT_EQ(last.kind(), v1::Event::KIND_ENDED);
  EXPECT_EQ(last.reason(), "stopped by the operator");
  EXPECT_EQ(watch(last.sequence(), 60'000).events_size(), 0) << "nothing is waited for any more";
}

TEST_F(TrainingServiceTest, AnAbstentionIsToldOncePerSpellWithItsReason) {
  StartServer({.rounds_max = 1000, .workers_min = 2});
  auto a = NewClient(), b = NewClient();
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->JoinRun("b"));
  v1::ServerMessage message;
  for (const bool counted : {false, false, true, false}) {
    for (WireClient* client : {a.get(), b.get()}) {
      ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
      if (client == a.get() || counted) {
        ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, 1), 2.5));
      } else {
        v1::WorkerMessage abstain;
        abstain.mutable_abstain()->set_round(client->open.round());
        abstain.mutable_abstain()->set_reason(v1::Abstain::REASON_NONFINITE_LOSS);
        ASSERT_TRUE(client->Send(abstain));
      }
    }
  }
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  grpc::ClientContext context;
  v1::WatchReply reply;
  ASSERT_TRUE(v1::Admin::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()))
                  ->Watch(&context, v1::WatchRequest(), &reply)
                  .ok());
  std::vector<uint64_t> rounds;
  for (const v1::Event& event : reply.events()) {
    if (event.kind() != v1::Event::KIND_ABSTAINED) continue;
    EXPECT_EQ(event.worker(), "b");
    EXPECT_EQ(event.reason(), "non-finite loss");
    rounds.push_back(event.round());
  }
  EXPECT_EQ(rounds, (std::vector<uint64_t>{1, 4}));
}

TEST_F(TrainingServiceTest, AReplicaThatDiffersIsToldToFetchTheStateAgain) {
  StartServer({.rounds_max = 1000, .workers_min = 3, .digest_every = 1});
  auto a = NewClient(), b = NewClient(), c = NewClient();
  v1::ServerMessage message;
  ASSERT_TRUE(a->JoinRun("a"));
  ASSERT_TRUE(b->JoinRun("b"));
  ASSERT_TRUE(c->JoinRun("c"));
  for (WireClient* client : {a.get(), b.get(), c.get()}) {
    ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
    ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, 1)));
  }
  c->x[0] += 1;
  for (WireClient* client : {a.get(), b.get(), c.get()}) {
    ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kCommit, &message));
    ASSERT_TRUE(client->Apply(message.commit()));
    ASSERT_TRUE(client->SendDigest());
  }
  ASSERT_TRUE(c->ReadUntil(v1::ServerMessage::kResync, &message));
  EXPECT_NE(c->Digest(), a->Digest());
  ASSERT_TRUE(c->Fetch().ok());
  EXPECT_EQ(c->Digest(), a->Digest());
  ASSERT_TRUE(c->SendReady(c->round));
  // It is asked for its ballot again, in the round that is open.
  ASSERT_TRUE(c->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  EXPECT_EQ(message.round_open().round(), 1u);
  EXPECT_EQ(Look().digest_mismatches, 1u);
}

TEST_F(TrainingServiceTest, InitialParametersFromAFileNeedNoUpload) {
  const std::vector<float> x(kCoordinates, 0.25f);
  ASSERT_TRUE(
      WriteSafetensors(FileSystem::Posix(), dir_ / "init.safetensors", TestLayout(), x, {}).ok());
  StartServer({.init_path = dir_ / "init.safetensors"});
  auto other = NewClient(kCoordinates + 1);
  ASSERT_TRUE(other->SendJoin(other->MakeJoin("other")));
  const grpc::Status status = other->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("--init"));
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  EXPECT_EQ(client->welcome.state(), v1::Welcome::STATE_FETCH);
  EXPECT_EQ(client->x, x);
}

TEST_F(TrainingServiceTest, NewTokensDecideOverJoinsAndNotOverSessions) {
  const auto tokens = [&](const std::string& text) {
    EXPECT_TRUE(WriteFileAtomically(FileSystem::Posix(), dir_ / "tokens", text, 0600).ok());
    return *TokenTable::Load(FileSystem::Posix(), dir_ / "tokens");
  };
  StartServer({.rounds_max = 1000, .tokens = tokens("a secret-a\nb secret-b\n")});
  auto a = NewClient();
  ASSERT_TRUE(a->JoinRun("a", "secret-a"));
  v1::ServerMessage message;
  ASSERT_TRUE(a->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  const auto refused = [&](const std::string& name, const std::string& token) {
    auto client = NewClient();
    v1::Join join = client->MakeJoin(name);
    join.set_token(token);
    return client->SendJoin(join) &&
           client->Finish().error_code() == grpc::StatusCode::UNAUTHENTICATED;
  };
  EXPECT_TRUE(refused("c", "secret-c"));
  coordinator_->ReplaceTokens(tokens("b changed\nc secret-c\n"));
  auto c = NewClient();
  ASSERT_TRUE(c->JoinRun("c", "secret-c"));
  EXPECT_TRUE(refused("a", "secret-a"));
  EXPECT_TRUE(refused("b", "secret-b"));
  ASSERT_TRUE(a->Vote(RandomBits(kCoordinates, 1)));
  EXPECT_TRUE(a->ReadUntil(v1::ServerMessage::kCommit, &message));
}

TEST_F(TrainingServiceTest, APortInUseIsAnErrorThatNamesAddressAndRemedy) {
  StartServer();
  auto second = GrpcServer::Start({.listen = address_}, coordinator_.get());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(ExitCodeFor(second.status()), ExitCode::kPortInUse);
  EXPECT_THAT(
      Describe(second.status()),
      AllOf(HasSubstr(address_), HasSubstr("Address already in use"), HasSubstr("--listen")));
}

}  // namespace
}  // namespace signvote::rpc
