// What a session is told by a run of its own choosing: the order of tensors, commits of every kind; and
// what other languages' bindings need of it.

#include <sys/wait.h>

#include <atomic>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/worker/session/session_fixture.h"
#include "worker/session/session.h"

namespace signvote::testing {
namespace {

using ::testing::HasSubstr;

// Goal: a worker whose model lists its tensors in another order uploads, votes and applies in the
// run's.
TEST_F(SessionTest, AJoinerAdoptsTheRunsOrderOfTensors) {
  v1::Join join;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      join = s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ModelDescription model = ModelOf(layout_);
  std::swap(model.tensors[0], model.tensors[1]);
  model.config_json = R"({"model_type": "x"})";
  model.identity_text = "loss=mse";
  model.can_probe = true;
  model.held_out_hash = 17;
  const auto run = session->Join(model);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->layout.FirstDifference(layout_), "");
  ASSERT_TRUE(session->Attach(&memory_).ok());
  EXPECT_EQ(server.uploaded(), x_);
  EXPECT_TRUE(session->Leave("done").ok());
  server.Stop();
  ASSERT_EQ(join.tensors_size(), 2);
  EXPECT_EQ(join.tensors(0).name(), "b") << "the model's own order";
  EXPECT_EQ(join.model_config_json(), R"({"model_type": "x"})");
  EXPECT_EQ(join.identity_text(), "loss=mse");
  EXPECT_TRUE(join.can_probe());
  EXPECT_EQ(join.held_out_hash(), 17u);
}

TEST_F(SessionTest, AModelThatIsNotTheRunsIsRefusedByItsFirstTensorThatDiffers) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.AwaitJoin();
                      s.Send(s.Welcome(v1::Welcome::STATE_UPLOAD));
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ModelDescription model = ModelOf(layout_);
  model.tensors[1].shape = {100, 10};
  const absl::Status status = session->Join(model).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("tensor b is [10, 100] in the run and [100, 10] in this worker's model"));
}

TEST_F(SessionTest, CommitsOfEveryKindMoveTheReplicaAndSaySo) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  const std::vector<float> x0 = x_;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.needs_x0 = true;
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      for (uint64_t round = 0; round < 5; ++round) {
                        s.OpenRound(round);
                        s.AwaitChunks(round, 0, kChunks);
                        s.Await(v1::WorkerMessage::kScalars);
                        v1::ServerMessage commit = s.Commit(round, 0, verdict, 0.25f);
                        if (round == 1) commit = s.CommitOf(round, v1::Commit::KIND_NONE);
                        if (round == 2) commit.mutable_commit()->set_rho(0.5f);
                        if (round == 3) commit.mutable_commit()->set_decay_step(0.75f);
                        if (round == 4) commit = s.CommitOf(round, v1::Commit::KIND_REWIND);
                        if (commit.commit().kind() == v1::Commit::KIND_STEP)
                          s.SendVerdict(round, 0, verdict);
                        s.Send(commit);
                      }
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  const auto run = JoinRun(session.get(), &memory_);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_TRUE(run->needs_x0);
  std::vector<float> expected = x_;
  for (uint64_t round = 0; round < 5; ++round) {
    Vote(session.get(), round, ballot);
    const auto outcome = session->WaitCommit();
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    EXPECT_EQ(outcome->commits, 1u);
    EXPECT_TRUE(outcome->contiguous);
    EXPECT_EQ(outcome->next_round.value(), round + 1);
    EXPECT_EQ(outcome->next_data_step.value(), round + 1001);
    EXPECT_EQ(outcome->rewound, round == 4);
    StepArguments step{.gamma = 0.25f};
    switch (round) {
      case 1:
        EXPECT_EQ(outcome->kind, CommitKind::kNone);
        EXPECT_EQ(outcome->reason, "because of this");
        break;
      case 4:
        EXPECT_EQ(outcome->kind, CommitKind::kRewind);
        expected = x0;
        break;
      default:
        EXPECT_EQ(outcome->kind, CommitKind::kStep);
        if (round == 2) step.rho = 0.5f;
        if (round == 3) step.decay_step = 0.75f;
        EXPECT_EQ(outcome->rho, step.rho);
        EXPECT_EQ(outcome->decay_step, round == 3 ? 0.75f : 0.25f);
        ApplyStep(layout_, step, 0, kD, verdict.data(), 0, x0.data(), expected.data());
    }
    EXPECT_EQ(outcome->verdict != nullptr, outcome->kind == CommitKind::kStep);
    EXPECT_EQ(x_, expected) << round;
  }
}

// Goal: what is said of the run goes with the replica that is there, and with no other.
TEST_F(SessionTest, WhereTheRunStandsIsToldOfTheReplicaAsItIs) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  v1::Join join;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      join = s.AwaitJoin();
                      v1::ServerMessage welcome = s.Welcome(v1::Welcome::STATE_UPLOAD);
                      welcome.mutable_welcome()->set_run_head("head");
                      s.Send(welcome);
                      s.Await(v1::WorkerMessage::kReady);
                      for (uint64_t round = 0; round < 3; ++round) {
                        s.OpenRound(round);
                        s.AwaitChunks(round, 0, kChunks);
                        s.Await(v1::WorkerMessage::kScalars);
                        v1::ServerMessage commit = s.Commit(round, 0, verdict, 0.25f);
                        if (round != 1) commit.mutable_commit()->set_run_state("said");
                        s.SendVerdict(round, 0, verdict);
                        s.Send(commit);
                      }
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  SessionOptions options = Options(server.address());
  options.wants_run_state = true;
  const auto session = MustCreate(options);
  const auto run = JoinRun(session.get(), &memory_);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->run_head, "head");
  EXPECT_EQ(session->run_state(), "") << "no commit has come";
  for (uint64_t round = 0; round < 3; ++round) {
    Vote(session.get(), round, ballot);
    ASSERT_TRUE(session->WaitCommit().ok());
    EXPECT_EQ(session->run_state(), round == 1 ? "" : "said") << round;
  }
  EXPECT_TRUE(session->Leave("done").ok());
  server.Stop();
  EXPECT_TRUE(join.wants_run_state());
}

// Goal: a server that has lost rounds asks for them anew, and nobody waits for the commit of one of them.
TEST_F(SessionTest, AWorkerWhoseRoundTheServerLostVotesInTheOneThatIsOpen) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  const std::vector<float> state = StartValues(2.0f);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, kChunks);
                              s.Decide(0, 0, verdict, 0.25f);
                              s.OpenRound(1);
                              s.AwaitChunks(1, 0, kChunks);
                              return grpc::Status(grpc::StatusCode::UNAVAILABLE, "killed");
                            },
                            [&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_FETCH);
                              s.OpenRound(0);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 0, 0, kD));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  Vote(session.get(), 1, ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 0u);
  EXPECT_FALSE(outcome->contiguous);
  EXPECT_EQ(outcome->next_round.value(), 0u);
  EXPECT_EQ(x_, state);
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value());
  EXPECT_EQ((*ticket)->round.value(), 0u);
  server.Stop();
}

// Goal: a server that is killed before anything of its run is on the disk costs no worker its life, whoever
// had brought the parameters.
TEST_F(SessionTest, WhatWasFetchedBeforeTheFirstCommitIsUploadedToAServerThatBeginsAgain) {
  const std::vector<float> state = StartValues(2.0f);
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_FETCH);
                              s.OpenRound(0);
                              return grpc::Status(grpc::StatusCode::UNAVAILABLE, "killed");
                            },
                            [&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, kChunks);
                              s.Await(v1::WorkerMessage::kScalars);
                              s.Decide(0, 0, verdict, 0.25f);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 0, 0, kD));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->next_round.value(), 1u);
  EXPECT_EQ(server.uploaded(), state);
}

// A rewind among the rounds that went on without this worker.
TEST_F(SessionTest, ATicketSaysThatTheReplicaWasMovedAndRewoundMeanwhile) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  const std::vector<float> x0 = x_;
  Signal voted, missed;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.needs_x0 = true;
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitChunks(0, 0, kChunks);
                      s.Decide(0, 0, verdict, 0.25f);
                      EXPECT_TRUE(voted.Await());
                      s.Send(s.CommitOf(1, v1::Commit::KIND_REWIND));
                      s.Decide(2, 0, verdict, 0.25f);
                      s.OpenRound(3);
                      s.AwaitRead();
                      missed.Set();
                      s.AwaitChunks(3, 0, kChunks);
                      s.Decide(3, 0, verdict, 0.25f);
                      s.OpenRound(4);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  voted.Set();
  ASSERT_TRUE(missed.Await());
  auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value());
  EXPECT_EQ((*ticket)->round.value(), 3u);
  EXPECT_TRUE((*ticket)->replica_moved);
  EXPECT_TRUE((*ticket)->rewound);
  SendBallot(session.get(), ballot);
  ASSERT_TRUE(session->SendScalars({}).ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_TRUE(outcome->contiguous) << "what the ticket said is not said again";
  EXPECT_FALSE(outcome->rewound);
  ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value());
  EXPECT_FALSE((*ticket)->replica_moved);
  EXPECT_FALSE((*ticket)->rewound);
  std::vector<float> expected = x0;
  for (int i = 0; i < 2; ++i) ApplyStep(layout_, 0.25f, 0, kD, verdict.data(), 0, expected.data());
  EXPECT_EQ(x_, expected);
}

TEST_F(SessionTest, LogLinesGoWhereTheCallerWants) {
  LogLines lines;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.Notice("waiting for w2");
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  SessionOptions options = Options(server.address());
  options.log = lines.Sink();
  const auto session = MustCreate(options);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  EXPECT_TRUE(lines.Await("the server says text"));
}

TEST_F(SessionTest, AnInterruptionEndsAWaitAndChangesNothing) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  Signal go_on;
  std::atomic<bool> interrupt{false};
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitChunks(0, 0, kChunks);
                      EXPECT_TRUE(go_on.Await());
                      s.Decide(0, 0, verdict, 0.25f);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  SessionOptions options = Options(server.address());
  options.interrupted = [&] { return interrupt.load(); };
  const auto session = MustCreate(options);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  interrupt = true;
  EXPECT_EQ(session->WaitCommit().status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(session->drained());
  interrupt = false;
  go_on.Set();
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 1u);
}

// As a data loader's process would that was forked from a worker's.
TEST_F(SessionTest, AForkedChildThatEndsLeavesItsParentsSessionAlone) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  Signal go_on;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitChunks(0, 0, kChunks);
                      EXPECT_TRUE(go_on.Await());
                      s.Decide(0, 0, verdict, 0.25f);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    session.reset();
    _exit(0);
  }
  int how = 0;
  ASSERT_EQ(waitpid(child, &how, 0), child);
  EXPECT_TRUE(WIFEXITED(how));
  go_on.Set();
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(session->Stats().reconnects, 0u);
}

}  // namespace
}  // namespace signvote::testing
