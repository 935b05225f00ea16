// The whole server in one process behind real gRPC, against a client written from the .proto alone:
// what only sockets, threads and files can show. Everything else is tested on Run itself
// (tests/unit/server/run).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <thread>

#include <nlohmann/json.hpp>

#include "common/exit_codes.h"
#include "common/export_metadata.h"
#include "common/model_file.h"
#include "common/status.h"
#include "server/replica/master_replica.h"
#include "signvote/v1/admin.grpc.pb.h"
#include "tests/unit/server/rpc/training_service_fixture.h"

namespace signvote::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string ReadText(const std::string& path) {
  return FileSystem::Posix()->ReadFile(path, 64 << 20).value_or("");
}

TEST_F(TrainingServiceTest, OneWorkerTrainsARunFromItsUploadToTheEnd) {
  around_.round_log = dir_ / "rounds";
  around_.event_log = dir_ / "events";
  run::RunOptions options = Options();
  options.digest_every = 2;
  StartServer(std::move(options));
  auto client = NewClient();
  for (size_t i = 0; i < client->x.size(); ++i) client->x[i] = std::sin(static_cast<float>(i));
  ASSERT_TRUE(client->JoinRun("w0"));
  EXPECT_EQ(client->welcome.state(), v1::Welcome::STATE_UPLOAD);
  v1::ServerMessage message;
  int digests = 0;
  bool finished = false;
  while (!finished && client->Read(&message)) {
    if (message.has_round_open()) {
      ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, client->open.round()), 2.5));
    }
    if (message.has_commit()) {
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
  ASSERT_TRUE(run_->WaitUntilEnded(kLong));
  EXPECT_TRUE(run_->end_status().ok()) << Describe(run_->end_status());
  // gRPC ends the upload's call behind its reply.
  EXPECT_TRUE(Eventually([&] { return Look().wire.up_setup_bytes >= 4 * kCoordinates; }));
  const run::StatusPage page = Look();
  EXPECT_EQ(page.master_digest, client->Digest());
  EXPECT_EQ(page.wire.ballots, 3u);
  EXPECT_GE(page.wire.up_rounds_bytes, 3 * kCoordinates / 8);
  EXPECT_LE(page.wire.up_rounds_bytes, 3 * kCoordinates / 8 * 11 / 10);
  run_->CloseStreams(seconds(5));
  EXPECT_TRUE(client->Finish().ok());

  const auto final = run_->FinalReplica([] { return false; });
  ASSERT_TRUE(final.ok()) << Describe(final.status());
  EXPECT_EQ(final->origin.round, Round(3));
  const std::span<const float> exported = final->replica->x();
  EXPECT_TRUE(std::equal(exported.begin(), exported.end(), client->x.begin(), client->x.end()));

  TearDown();  // the logs are written to their end
  std::istringstream rounds(ReadText(dir_ / "rounds"));
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
  EXPECT_THAT(ReadText(dir_ / "events"),
              AllOf(HasSubstr("\"kind\":\"joined\""), HasSubstr("\"kind\":\"member\""),
                    HasSubstr("\"kind\":\"finished\"")));
}

// Larger than what a server may send to a worker that does not read.
TEST_F(TrainingServiceTest, AStopSendsTheLastCommitToAWorkerThatReadsItLate) {
  constexpr uint64_t kLarge = 8'000'000;
  StartServer();
  auto client = std::make_unique<WireClient>(
      address_, TestLayout(kLarge), grpc::InsecureChannelCredentials(), WireClient::Window::kFixed);
  ASSERT_TRUE(client->JoinRun("w0"));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  run_->RequestStop();  // the round that is open may complete
  ASSERT_TRUE(client->Vote(RandomBits(kLarge, 0), 2.5));
  ASSERT_TRUE(run_->WaitUntilEnded(kLong));
  std::thread closing([this] { run_->CloseStreams(kLong); });
  EXPECT_TRUE(client->ReadUntil(v1::ServerMessage::kCommit, &message));
  EXPECT_EQ(client->verdict, RandomBits(kLarge, 0));
  EXPECT_EQ(client->Finish().error_code(), grpc::StatusCode::CANCELLED);
  closing.join();
}

TEST_F(TrainingServiceTest, ALateJoinerGetsTheReplicaAndTheMissingCommitsAndVotes) {
  run::RunOptions options = Options();
  options.main_rounds_max = 40;
  options.digest_every = 0;
  StartServer(std::move(options));
  auto first = NewClient();
  ASSERT_TRUE(first->JoinRun("first"));
  std::thread voter([&] {
    v1::ServerMessage message;
    while (first->Read(&message)) {
      if (message.has_round_open()) {
        // Half of the run goes by meanwhile, and half is left for the newcomer.
        if (first->open.round() == 20) {
          EXPECT_TRUE(Eventually([&] { return Look().joins == 2; }));
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
  EXPECT_TRUE(late->JoinRun("late"));
  EXPECT_EQ(late->welcome.state(), v1::Welcome::STATE_FETCH);
  bool voted = false, finished = false;
  v1::ServerMessage message;
  while (!finished && late->Read(&message)) {
    if (message.has_round_open())
      voted = late->Vote(RandomBits(kCoordinates, 99 + late->open.round()));
    if (message.has_commit()) {
      EXPECT_TRUE(late->Apply(message.commit()));
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
  ASSERT_TRUE(run_->WaitUntilEnded(kLong));
  EXPECT_TRUE(run_->end_status().ok()) << Describe(run_->end_status());
  EXPECT_EQ(Look().master_digest, first->Digest());
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

TEST_F(TrainingServiceTest, MalformedMessagesEndTheirSessionAndNothingElse) {
  run::RunOptions options = Options();
  options.main_rounds_max = 100;
  StartServer(std::move(options));
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

TEST_F(TrainingServiceTest, ACommitIsAppliedOnceNothingIsOnItsWayOrAMomentLater) {
  StartServer();
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  run_->outbound()->Add(1);
  const Time begin = Clock::System()->Now();
  ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, 0)));
  ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kCommit, &message));
  ASSERT_TRUE(run_->HealthNow(kLong).ok());  // the run's thread has done with that commit
  // Whoever asks for the model now gets it with that one.
  EXPECT_EQ(run_->CopyReplica(run::RunThread::CopyOf::kCommitted, kLong)->origin.round, Round(1));
  EXPECT_GE(Clock::System()->Now() - begin, milliseconds(100));
  run_->outbound()->Remove(1);
}

TEST_F(TrainingServiceTest, ASlowApplierHoldsUpNoAnswer) {
  run::RunOptions options = Options();
  options.main_rounds_max = 100;
  options.model.sizes.catch_up_bytes = 0;  // four rounds
  around_.applier_delay = std::chrono::hours(1);
  StartServer(std::move(options));
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  v1::ServerMessage message;
  for (int round = 0; round < 4; ++round) {
    ASSERT_TRUE(client->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
    ASSERT_TRUE(client->Vote(RandomBits(kCoordinates, client->open.round())));
  }
  ASSERT_TRUE(Eventually([&] { return Look().round == Round(4); }));
  for (int i = 0; i < 5; ++i) {
    const Time begin = Clock::System()->Now();
    const auto health = run_->HealthNow(seconds(1));
    ASSERT_TRUE(health.ok()) << Describe(health.status());
    EXPECT_LT(Clock::System()->Now() - begin, seconds(1));
    EXPECT_THAT(health->not_ready_because, HasSubstr("its own applier"));
  }
  auto other = NewClient();
  ASSERT_TRUE(other->SendJoin(other->MakeJoin("other")));
  EXPECT_TRUE(other->ReadWelcome());
}

TEST_F(TrainingServiceTest, AdminCallsPauseResumeDrainEvictAndExport) {
  run::RunOptions options = Options();
  options.main_rounds_max = 1000;
  StartServer(std::move(options));
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
  EXPECT_GT(status.resident_bytes(), 0u);
  ASSERT_EQ(status.workers_size(), 1);
  EXPECT_EQ(status.workers(0).name(), "w");
  EXPECT_EQ(status.workers(0).role(), v1::Worker::ROLE_MEMBER);
  ASSERT_TRUE(client->Apply(message.commit()));
  ASSERT_TRUE(Eventually([&] { return Look().health.applier_lag == 0; }));
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
  EXPECT_EQ(Look().losses, 0u);

  v1::EvictRequest evict;
  evict.set_worker("w");
  EXPECT_TRUE(call(&v1::Admin::Stub::Evict, evict, v1::EvictReply()).ok());
  auto again = NewClient();
  ASSERT_TRUE(again->SendJoin(again->MakeJoin("w")));
  EXPECT_EQ(again->Finish().error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

// Goal: who always has a call waiting sees what happened and the last state. Method: a worker that
// votes; a call in between, and one that waits while the run is stopped.
TEST_F(TrainingServiceTest, AWatcherLearnsWhatHappenedAndHowTheRunEnded) {
  run::RunOptions options = Options();
  options.main_rounds_max = 1000;
  StartServer(std::move(options));
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
  ASSERT_EQ(reply.events_size(), 2);
  EXPECT_EQ(reply.events(0).kind(), v1::Event::KIND_JOINED);
  EXPECT_EQ(reply.events(1).kind(), v1::Event::KIND_MEMBER);
  EXPECT_EQ(reply.status().round(), 1u);
  ASSERT_EQ(reply.series().loss_size(), 1);
  EXPECT_EQ(reply.series().loss(0), 2.5f);
  EXPECT_EQ(reply.series().stepsize(0), 0.01f);

  std::thread stop([&] {
    std::this_thread::sleep_for(milliseconds(200));
    a->Cancel();
    run_->RequestStop();
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

TEST_F(TrainingServiceTest, InitialParametersFromAFileNeedNoUpload) {
  const std::vector<float> x(kCoordinates, 0.25f);
  around_.init = dir_ / "init.safetensors";
  ASSERT_TRUE(WriteModel(FileSystem::Posix(), around_.init, {}, TestLayout(), x, {}, "").ok());
  ASSERT_TRUE(
      WriteFileAtomically(FileSystem::Posix(), dir_ / "config.json", R"({"a": 1})", 0644).ok());
  StartServer();
  auto other = NewClient(kCoordinates + 1);
  v1::Join join = other->MakeJoin("other");
  join.set_model_config_json(R"({"a": 1})");
  ASSERT_TRUE(other->SendJoin(join));
  grpc::Status status = other->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("--init"));
  auto stranger = NewClient();
  join = stranger->MakeJoin("stranger");
  join.set_model_config_json(R"({"a": 2})");
  ASSERT_TRUE(stranger->SendJoin(join));
  status = stranger->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("\"a\""));
  auto client = NewClient();
  join = client->MakeJoin("w");
  join.set_model_config_json(R"({"a": 1})");
  ASSERT_TRUE(client->SendJoin(join));
  ASSERT_TRUE(client->ReadWelcome());
  EXPECT_EQ(client->welcome.state(), v1::Welcome::STATE_FETCH);
  ASSERT_TRUE(client->Fetch().ok());
  EXPECT_EQ(client->x, x);
}

TEST_F(TrainingServiceTest, NewTokensDecideOverJoinsAndNotOverSessions) {
  const auto tokens = [&](const std::string& text) {
    return *run::TokenTable::Parse(text, "tokens");
  };
  around_.tokens = tokens("a secret-a\nb secret-b\n");
  run::RunOptions options = Options();
  options.main_rounds_max = 1000;
  StartServer(std::move(options));
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
  ASSERT_TRUE(run_->Call([table = tokens("b changed\nc secret-c\n")](run::Run& run, Time) {
    run.ReplaceTokens(table);
  }));
  auto c = NewClient();
  ASSERT_TRUE(c->JoinRun("c", "secret-c"));
  EXPECT_TRUE(refused("a", "secret-a"));
  EXPECT_TRUE(refused("b", "secret-b"));
  ASSERT_TRUE(a->Vote(RandomBits(kCoordinates, 1)));
  EXPECT_TRUE(a->ReadUntil(v1::ServerMessage::kCommit, &message));
}

TEST_F(TrainingServiceTest, APortInUseIsAnErrorThatNamesAddressAndRemedy) {
  StartServer();
  auto second = GrpcServer::Start({.listen = address_}, run_.get(), FileSystem::Posix(), Rng(5, 6),
                                  Clock::System());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(ExitCodeFor(second.status()), ExitCode::kPortInUse);
  EXPECT_THAT(
      Describe(second.status()),
      AllOf(HasSubstr(address_), HasSubstr("Address already in use"), HasSubstr("--listen")));
}

TEST_F(TrainingServiceTest, AConnectionIsSomebodysWithItsFirstCall) {
  StartServer();
  auto client = NewClient();
  ASSERT_TRUE(client->JoinRun("w"));
  EXPECT_TRUE(Eventually([&] { return server_->connections().waiting == 0; }));
  EXPECT_EQ(server_->connections().turned_away, 0u);
  grpc::ChannelArguments own;
  own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // another connection than the client's
  auto idle = grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), own);
  ASSERT_TRUE(idle->WaitForConnected(std::chrono::system_clock::now() + kLong));
  // A connection that is being handed on may count twice for a moment.
  EXPECT_TRUE(Eventually([&] { return server_->connections().waiting == 1; }))
      << "it has made no call";
}

}  // namespace
}  // namespace signvote::rpc
