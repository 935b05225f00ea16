#include "worker/session/session.h"

#include <atomic>
#include <limits>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "tests/unit/worker/session/session_fixture.h"

namespace signvote::testing {
namespace {

using ::testing::HasSubstr;

TEST_F(SessionTest, UploadsVotesAppliesAndFinishes) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  const std::vector<float> start = x_;
  std::vector<v1::WorkerMessage::MessageCase> order;
  v1::Join join;
  v1::Scalars scalars;
  v1::ReplicaDigest digest;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      join = s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      EXPECT_EQ(s.AwaitChunks(0, 0, kChunks), ballot);
                      scalars = s.Await(v1::WorkerMessage::kScalars).scalars();
                      s.Decide(0, 0, verdict, 0.25f);
                      s.Finish(1);
                      digest = s.Await(v1::WorkerMessage::kReplicaDigest).replica_digest();
                      order = s.order;
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  const auto run = JoinRun(session.get(), &memory_);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->run_id, server.run_id());
  EXPECT_EQ(run->seed, 7u);
  EXPECT_EQ(run->main_rounds, 100u);
  EXPECT_EQ(run->layout.digest(), layout_.digest());
  EXPECT_EQ(run->rule, "alias");
  EXPECT_FALSE(run->needs_x0);
  EXPECT_EQ(run->plan.chunks(), kChunks);
  EXPECT_EQ(run->direction.kind, DirectionKind::kSignum);
  EXPECT_EQ(server.uploaded(), start);

  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value());
  EXPECT_EQ((*ticket)->data_step.value(), 1000u);
  EXPECT_EQ((*ticket)->share.value(), 3u);
  EXPECT_EQ((*ticket)->wanted, std::vector<ScalarKind>{ScalarKind::kPrevInner});
  EXPECT_FALSE((*ticket)->observer);
  EXPECT_TRUE((*ticket)->replica_moved) << "there is none before it";
  SendBallot(session.get(), ballot);
  ASSERT_TRUE(
      session->SendScalars({.loss = 1.5, .g_l1 = 2, .g_l2_squared = 3, .wanted = {4}, .samples = 8})
          .ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 1u);
  EXPECT_TRUE(outcome->contiguous);  // the upload came before there was a previous replica
  EXPECT_EQ(outcome->next_round.value(), 1u);
  EXPECT_EQ(outcome->stepsize, 0.25f);
  EXPECT_EQ(outcome->loss, 2.5);
  EXPECT_EQ(outcome->voters, 1u);
  EXPECT_EQ(std::vector<uint8_t>(outcome->verdict, outcome->verdict + verdict.size()), verdict);
  EXPECT_LE(outcome->times.opened, outcome->times.first_chunk);
  EXPECT_LE(outcome->times.first_chunk, outcome->times.first_verdict);
  EXPECT_LE(outcome->times.first_verdict, outcome->times.committed);
  ExpectStepped(x_, start, verdict, 0.25f);

  const auto end = session->NextRound();
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_FALSE(end->has_value());
  EXPECT_TRUE(session->finished());
  EXPECT_FALSE(session->drained());
  EXPECT_TRUE(session->Leave("finished").ok());
  server.Stop();

  EXPECT_EQ(join.name(), "w1");
  ASSERT_EQ(join.tensors_size(), 2);
  EXPECT_EQ(join.tensors(1).name(), "b");
  EXPECT_FALSE(join.has_round());
  EXPECT_EQ(scalars.loss(), 1.5);
  ASSERT_EQ(scalars.wanted_size(), 1);
  EXPECT_EQ(scalars.wanted(0), 4);
  EXPECT_EQ(digest.round(), 1u);
  EXPECT_EQ(digest.digest(), ReplicaDigest(x_.data(), 0, kD));
  // Join, Ready, the chunks, then the scalars.
  ASSERT_EQ(order.size(), kChunks + 4);
  EXPECT_EQ(order[0], v1::WorkerMessage::kJoin);
  EXPECT_EQ(order[1], v1::WorkerMessage::kReady);
  EXPECT_EQ(order[kChunks + 2], v1::WorkerMessage::kScalars);
  EXPECT_EQ(order[kChunks + 3], v1::WorkerMessage::kReplicaDigest);
  const SessionStats stats = session->Stats();
  EXPECT_EQ(stats.rounds_voted, 1u);
  EXPECT_EQ(stats.rounds_received, 1u);
  EXPECT_EQ(stats.rounds_applied, 1u);
  EXPECT_EQ(stats.state_transfers, 1u);
  EXPECT_EQ(stats.reconnects, 0u);
}

TEST_F(SessionTest, BytesOfRoundsAndOfSetUpAreToldApart) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  constexpr uint64_t kRounds = 40;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      for (uint64_t round = 0; round < kRounds; ++round) {
                        s.OpenRound(round);
                        s.AwaitChunks(round, 0, kChunks);
                        s.Await(v1::WorkerMessage::kScalars);
                        s.Decide(round, 0, verdict, 0.25f);
                      }
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  for (uint64_t round = 0; round < kRounds; ++round) {
    Vote(session.get(), round, ballot);
    const auto outcome = session->WaitCommit();
    ASSERT_TRUE(outcome.ok());
    EXPECT_TRUE(outcome->contiguous);
  }
  const SessionStats stats = session->Stats();
  EXPECT_TRUE(stats.connected);
  // Small chunks carry much framing; this is about which pot the bytes fall into.
  EXPECT_GE(stats.wire_sent_bytes, kRounds * kPlan.TotalBytes());
  EXPECT_LE(stats.wire_sent_bytes, kRounds * (kPlan.TotalBytes() + kChunks * 120 + 400));
  EXPECT_GE(stats.wire_received_bytes, kRounds * kPlan.TotalBytes());
  EXPECT_LE(stats.wire_received_bytes, kRounds * (kPlan.TotalBytes() + kChunks * 120 + 400));
  EXPECT_GE(stats.setup_sent_bytes, kD * sizeof(float));
  EXPECT_LE(stats.setup_sent_bytes, kD * sizeof(float) + 10000);
  EXPECT_GT(stats.join_seconds, 0);
}

// Goal: sessions of one process share nothing, not even the knowledge of each other's sockets.
TEST_F(SessionTest, TwoSessionsOfOneProcessCountTheirOwnBytes) {
  const std::vector<uint8_t> bits = RandomBits(1);
  Signal b_is_read;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, kChunks);
                              s.Decide(0, 0, bits, 0.25f);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            },
                            [&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitRead();
                              b_is_read.Set();
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  std::vector<float> y = StartValues();
  HostReplicaMemory other(y);
  const auto a = MustCreate(Options(server.address()));
  const auto b = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(a.get(), &memory_).ok());
  ASSERT_TRUE(JoinRun(b.get(), &other).ok());
  ASSERT_TRUE(b->NextRound().ok());
  ASSERT_TRUE(b_is_read.Await());
  Vote(a.get(), 0, bits);
  ASSERT_TRUE(a->WaitCommit().ok());
  const uint64_t d = kPlan.TotalBytes();
  EXPECT_GT(a->Stats().wire_received_bytes, d);
  EXPECT_LT(b->Stats().wire_received_bytes, d);
  EXPECT_GT(b->Stats().setup_sent_bytes, kD * 4) << "its own upload";
  EXPECT_GT(a->Stats().setup_sent_bytes, kD * 4);
}

TEST_F(SessionTest, ANewAttemptGetsTheSameBallotAlsoWhileTheCallerComputes) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  Signal resent;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0, 0);
                      s.AwaitChunks(0, 0, 4);
                      s.OpenRound(0, 1);
                      s.AwaitChunks(0, 1, 4);  // again, before the caller has sent anything more
                      resent.Set();
                      EXPECT_EQ(s.AwaitChunks(0, 1, kChunks - 4).size(), ballot.size());
                      EXPECT_EQ(s.Await(v1::WorkerMessage::kScalars).scalars().attempt(), 1u);
                      s.OpenRound(0, 2);
                      EXPECT_EQ(s.AwaitChunks(0, 2, kChunks), ballot);
                      EXPECT_EQ(s.Await(v1::WorkerMessage::kScalars).scalars().attempt(), 2u);
                      s.Decide(0, 2, verdict, 0.5f);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const std::vector<float> start = x_;
  ASSERT_TRUE(session->NextRound().ok());
  SendBallot(session.get(), ballot, 0, 4);
  ASSERT_TRUE(resent.Await());
  SendBallot(session.get(), ballot, 4, kChunks);
  ASSERT_TRUE(session->SendScalars({.loss = 1}).ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 1u);
  ExpectStepped(x_, start, verdict, 0.5f);
}

// Goal:   a chunk that is handed over while a new attempt opens is sent under the new one, once.
// Method: the second attempt opens when the first chunk of the first one has come, so that the
// link's thread and the
//         caller race; there are many rounds, because each gives the race a few microseconds.
TEST_F(SessionTest, NoChunkIsLostWhileANewAttemptOpens) {
  constexpr uint64_t kRounds = 1000;
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      for (uint64_t round = 0; round < kRounds; ++round) {
                        s.OpenRound(round, 0);
                        s.Await(v1::WorkerMessage::kBallotChunk);
                        s.OpenRound(round, 1);
                        for (uint32_t left = kChunks; left > 0;) {
                          const v1::WorkerMessage got = s.Await(v1::WorkerMessage::kBallotChunk);
                          if (!got.has_ballot_chunk()) return grpc::Status::OK;
                          if (got.ballot_chunk().attempt() == 1) --left;
                        }
                        // Not those of the first attempt, nor of earlier rounds.
                        while (true) {
                          const v1::WorkerMessage got = s.Await(v1::WorkerMessage::kScalars);
                          if (!got.has_scalars()) return grpc::Status::OK;
                          if (got.scalars().round() == round && got.scalars().attempt() == 1) break;
                        }
                        s.Decide(round, 1, verdict, 0.25f);
                      }
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  SessionOptions options = Options(server.address());
  options.wait_timeout = std::chrono::seconds(5);
  const auto session = MustCreate(options);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  // Whoever looks at the session makes its threads wait for one another.
  const std::jthread onlooker([&](std::stop_token stop) {
    while (!stop.stop_requested()) (void)session->Stats();
  });
  for (uint64_t round = 0; round < kRounds; ++round) {
    ASSERT_TRUE(session->NextRound().ok());
    for (uint32_t k = 0; k < kChunks; ++k) {
      SendBallot(session.get(), ballot, k, k + 1);
      for (Time until = Clock::System()->Now() + std::chrono::microseconds(20);
           Clock::System()->Now() < until;) {
      }
    }
    ASSERT_TRUE(session->SendScalars({}).ok());
    const auto outcome = session->WaitCommit();
    ASSERT_TRUE(outcome.ok()) << "round " << round << ": " << outcome.status();
  }
}

TEST_F(SessionTest, AVerdictOfAnEarlierAttemptIsNotApplied) {
  const std::vector<uint8_t> ballot = RandomBits(1), early = RandomBits(2), late = RandomBits(3);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0, 0);
                      s.AwaitChunks(0, 0, kChunks);
                      for (uint32_t k = 0; k + 1 < kChunks; ++k) s.SendVerdictChunk(0, 0, k, early);
                      s.OpenRound(0, 1);
                      s.AwaitChunks(0, 1, kChunks);
                      s.Decide(0, 1, late, 0.5f);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const std::vector<float> start = x_;
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  ExpectStepped(x_, start, late, 0.5f);
  EXPECT_EQ(session->Stats().verdict_mismatches, 0u);
}

TEST_F(SessionTest, PingsAreAnsweredWhileTheCallerComputes) {
  Signal answered;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      v1::ServerMessage ping;
                      ping.mutable_ping()->set_nonce(4711);
                      s.Send(ping);
                      if (s.Await(v1::WorkerMessage::kPong).pong().nonce() == 4711) answered.Set();
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  EXPECT_TRUE(answered.Await());
}

TEST_F(SessionTest, ADigestIsSentWhenTheCommitAsksForIt) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  v1::ReplicaDigest digest;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitChunks(0, 0, kChunks);
                      s.SendVerdict(0, 0, verdict);
                      v1::ServerMessage commit = s.Commit(0, 0, verdict, 0.5f);
                      commit.mutable_commit()->set_digest_due(true);
                      s.Send(commit);
                      digest = s.Await(v1::WorkerMessage::kReplicaDigest).replica_digest();
                      s.OpenRound(1);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  ASSERT_TRUE(session->NextRound().ok());
  server.Stop();
  EXPECT_EQ(digest.round(), 1u);
  EXPECT_EQ(digest.digest(), ReplicaDigest(x_.data(), 0, kD));
}

TEST_F(SessionTest, AnAbstentionIsSentInPlaceOfTheRest) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  v1::Abstain abstain;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0, 1);
                      abstain = s.Await(v1::WorkerMessage::kAbstain).abstain();
                      s.Decide(0, 1, verdict, 0.5f);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  ASSERT_TRUE(session->Abstain(AbstainReason::kNonFiniteLoss).ok());
  ASSERT_TRUE(session->WaitCommit().ok());
  server.Stop();
  EXPECT_EQ(abstain.round(), 0u);
  EXPECT_EQ(abstain.attempt(), 1u);
  EXPECT_EQ(abstain.reason(), v1::Abstain::REASON_NONFINITE_LOSS);
}

// A worker that computes for long while the others go on: it catches up in one go and votes in the
// newest round.
TEST_F(SessionTest, ASlowWorkerSkipsTheRoundsItMissed) {
  std::vector<std::vector<uint8_t>> verdicts;
  for (uint64_t r = 0; r < 8; ++r) verdicts.push_back(RandomBits(20 + r));
  Signal missed;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0, 0, v1::RoundOpen::ROLE_OBSERVER);
                      s.AwaitChunks(0, 0, 1);
                      for (uint64_t r = 0; r < 8; ++r) {
                        s.Decide(r, 0, verdicts[r], 0.5f);
                        if (r < 7) s.OpenRound(r + 1, 0, v1::RoundOpen::ROLE_OBSERVER);
                      }
                      s.OpenRound(8, 0, v1::RoundOpen::ROLE_OBSERVER);
                      s.AwaitRead();
                      missed.Set();
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  std::vector<float> expected = x_;
  const auto first = session->NextRound();
  ASSERT_TRUE(first.ok() && first->has_value());
  EXPECT_TRUE((*first)->observer);
  const std::vector<uint8_t> ballot = RandomBits(1);
  SendBallot(session.get(), ballot, 0, 1);
  ASSERT_TRUE(missed.Await());
  ASSERT_TRUE(session->WaitCommit().ok());
  const auto next = session->NextRound();
  ASSERT_TRUE(next.ok() && next->has_value());
  EXPECT_EQ((*next)->round.value(), 8u);
  for (const auto& verdict : verdicts)
    ApplyStep(layout_, 0.5f, 0, kD, verdict.data(), 0, expected.data());
  EXPECT_EQ(x_, expected);
}

// Memory that says when so many blocks of it are in use.
class CountedMemory : public std::pmr::memory_resource {
 public:
  explicit CountedMemory(int blocks) : left_(blocks) {}
  Signal in_use;

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    if (--left_ == 0) in_use.Set();
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* p, size_t bytes, size_t alignment) override {
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    return this == &other;
  }
  std::atomic<int> left_;
};

// More rounds than the session keeps verdicts for: it stops reading, and goes on where it stopped.
TEST_F(SessionTest, AVerySlowWorkerHoldsTheStreamBackAndLosesNothing) {
  constexpr uint64_t kRoundsKept = 16, kRounds = 60;
  CountedMemory memory(kRoundsKept);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitChunks(0, 0, 1);
                      for (uint64_t r = 0; r < kRounds; ++r) s.Decide(r, 0, RandomBits(r), 0.5f);
                      s.OpenRound(kRounds);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  SessionOptions options = Options(server.address());
  options.bits_memory = &memory;
  const auto session = MustCreate(options);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  std::vector<float> expected = x_;
  const std::vector<uint8_t> ballot = RandomBits(1);
  ASSERT_TRUE(session->NextRound().ok());
  SendBallot(session.get(), ballot, 0, 1);
  ASSERT_TRUE(memory.in_use.Await());
  EXPECT_LE(session->Stats().rounds_received, kRoundsKept);
  ASSERT_TRUE(session->WaitCommit().ok());
  const auto next = session->NextRound();
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ((*next)->round.value(), kRounds);
  for (uint64_t r = 0; r < kRounds; ++r)
    ApplyStep(layout_, 0.5f, 0, kD, RandomBits(r).data(), 0, expected.data());
  EXPECT_EQ(x_, expected);
  EXPECT_EQ(session->Stats().rounds_received, kRounds);
}

TEST_F(SessionTest, ARequestedDrainLeavesAfterTheRound) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  Signal left;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitChunks(0, 0, kChunks);
                      s.Decide(0, 0, verdict, 0.5f);
                      s.OpenRound(1);
                      if (s.Await(v1::WorkerMessage::kLeave).leave().reason() == "maintenance")
                        left.Set();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok());
  session->RequestDrain("maintenance");
  SendBallot(session.get(), ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->commits, 1u);
  const auto end = session->NextRound();
  ASSERT_TRUE(end.ok());
  EXPECT_FALSE(end->has_value());
  EXPECT_TRUE(session->drained());
  EXPECT_FALSE(session->finished());
  EXPECT_TRUE(left.Await());
}

TEST_F(SessionTest, TheServersDrainIsObeyedWhileWaitingForARound) {
  Signal left;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      v1::ServerMessage drain;
                      drain.mutable_drain()->set_reason("operator");
                      s.Send(drain);
                      if (s.Await(v1::WorkerMessage::kLeave).leave().reason() == "operator")
                        left.Set();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto end = session->NextRound();
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_FALSE(end->has_value());
  EXPECT_TRUE(session->drained());
  EXPECT_TRUE(left.Await());
}

TEST_F(SessionTest, AServerThatHasTheLastDigestMayGoBeforeTheCallerAsksForTheNextRound) {
  Signal said;
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitChunks(0, 0, kChunks);
                      s.SendVerdict(0, 0, verdict);
                      v1::ServerMessage commit = s.Commit(0, 0, verdict, 0.25f);
                      commit.mutable_commit()->set_digest_due(true);
                      s.Send(commit);
                      s.Finish(1);
                      s.Await(v1::WorkerMessage::kReplicaDigest);
                      said.Set();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  ASSERT_TRUE(said.Await());
  server.StopAfterCalls();
  const Time start = Clock::System()->Now();
  const auto end = session->NextRound();
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_FALSE(end->has_value());
  EXPECT_TRUE(session->finished());
  EXPECT_TRUE(session->Leave("finished").ok());
  EXPECT_EQ(session->Stats().reconnects, 0u);
  EXPECT_LT(Clock::System()->Now() - start, kLong / 2) << "no goodbye is waited for";
}

TEST_F(SessionTest, AFinishedRunEndsAtOnceForAWorkerThatComesLate) {
  const std::vector<float> state = StartValues(3.0f);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_FETCH);
                      s.Finish(9);
                      EXPECT_EQ(s.Await(v1::WorkerMessage::kReplicaDigest).replica_digest().round(),
                                9u);
                      return grpc::Status::OK;
                    }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 9, 0, kD));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto end = session->NextRound();
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_FALSE(end->has_value());
  EXPECT_TRUE(session->finished());
  EXPECT_EQ(session->replica_round(), Round(9));
}

TEST_F(SessionTest, WhatTheServerRefusesEndsTheSessionWithItsStatusAndIsNotRetried) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::UNAUTHENTICATED, grpc::StatusCode::PERMISSION_DENIED,
        grpc::StatusCode::FAILED_PRECONDITION, grpc::StatusCode::ALREADY_EXISTS,
        grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::INVALID_ARGUMENT}) {
    FakeServer server(kPlan, {[&](FakeSession& s) {
                        s.AwaitJoin();
                        return grpc::Status(code, "because of this");
                      }});
    const auto session = MustCreate(Options(server.address()));
    const absl::Status status = JoinRun(session.get(), &memory_).status();
    EXPECT_EQ(static_cast<int>(status.code()), static_cast<int>(code));
    EXPECT_EQ(std::string(status.message()),
              "server " + server.address() + " refused worker w1: because of this");
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kRefused);
    EXPECT_EQ(server.connections(), 1);
  }
}

TEST_F(SessionTest, AnotherProtocolVersionIsRefusedWithBothVersions) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.AwaitJoin();
                      v1::ServerMessage welcome = s.Welcome(v1::Welcome::STATE_UPLOAD);
                      welcome.mutable_welcome()->set_protocol(3);
                      s.Send(welcome);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  const absl::Status status = JoinRun(session.get(), &memory_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the server speaks protocol 3, this worker 2"));
}

TEST_F(SessionTest, MalformedMessagesOfTheServerEndTheSession) {
  enum Fault {
    kNoWelcome,
    kBadChunkSize,
    kBadRunId,
    kWrongPayload,
    kUnknownCommit,
    kBadStepsize,
    kTinyMessages
  };
  for (const Fault fault : {kNoWelcome, kBadChunkSize, kBadRunId, kWrongPayload, kUnknownCommit,
                            kBadStepsize, kTinyMessages}) {
    FakeServer server(
        kPlan, {[&](FakeSession& s) {
          s.AwaitJoin();
          v1::ServerMessage welcome = s.Welcome(v1::Welcome::STATE_UPLOAD);
          if (fault == kBadChunkSize) welcome.mutable_welcome()->set_chunk_coordinates(1000);
          if (fault == kBadRunId) welcome.mutable_welcome()->set_run_id("short");
          if (fault == kTinyMessages) welcome.mutable_welcome()->set_message_bytes_max(10);
          if (fault != kNoWelcome) s.Send(welcome);
          s.OpenRound(0);
          if (fault >= kWrongPayload && fault <= kBadStepsize) {
            s.Await(v1::WorkerMessage::kReady);
            const std::vector<uint8_t> bits = RandomBits(1);
            s.SendVerdict(0, 0, bits);
            v1::ServerMessage commit = s.Commit(0, 0, bits, 0.5f);
            if (fault == kWrongPayload) {
              v1::ServerMessage chunk;
              chunk.mutable_verdict_chunk()->set_run_id(
                  std::string(RunId::FromRandom(1, 2).bytes()));
              chunk.mutable_verdict_chunk()->set_payload("too short");
              s.Send(chunk);
            }
            if (fault == kUnknownCommit)
              commit.mutable_commit()->set_kind(v1::Commit::KIND_UNSPECIFIED);
            if (fault == kBadStepsize)
              commit.mutable_commit()->set_stepsize(std::numeric_limits<float>::infinity());
            s.Send(commit);
          }
          s.AwaitEnd();
          return grpc::Status::OK;
        }});
    const auto session = MustCreate(Options(server.address()));
    absl::Status status = JoinRun(session.get(), &memory_).status();
    if (status.ok()) status = session->NextRound().status();
    if (status.ok()) status = session->WaitCommit().status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("worker w1 cannot work with server"))
        << fault;
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kRefused) << fault;
    EXPECT_EQ(server.connections(), 1) << fault;
  }
}

// A GPU that was lost: what it held is unknown, so nothing may go on with it.
TEST_F(SessionTest, WhatTheReplicasMemoryFailsWithIsReturned) {
  struct LostMemory : HostReplicaMemory {
    using HostReplicaMemory::HostReplicaMemory;
    absl::Status Apply(const Layout&, const StepArguments&, uint64_t, uint64_t,
                       const uint8_t*) override {
      return absl::InternalError("cudaMemcpyAsync: unspecified launch failure");
    }
  };
  const std::vector<uint8_t> bits = RandomBits(1);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitChunks(0, 0, kChunks);
                      s.Decide(0, 0, bits, 0.25f);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  LostMemory lost(x_);
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &lost).ok());
  Vote(session.get(), 0, bits);
  EXPECT_EQ(session->WaitCommit().status(),
            absl::InternalError("cudaMemcpyAsync: unspecified launch failure"));
  EXPECT_TRUE(session->Leave("device lost").ok());
}

TEST_F(SessionTest, CallsOutOfOrderAreRefused) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  const std::vector<uint8_t> bits = RandomBits(1);
  EXPECT_EQ(session->NextRound().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->SendChunk(ChunkIndex(0), ChunkOf(bits, 0)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->Attach(&memory_).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(session->Join(ModelOf(layout_)).ok());
  EXPECT_EQ(session->Join(ModelOf(layout_)).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->NextRound().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->Abstain(AbstainReason::kOther).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->Attach(nullptr).code(), absl::StatusCode::kInvalidArgument);
  std::vector<float> more(kD + 1);
  HostReplicaMemory wrong(more);
  EXPECT_EQ(session->Attach(&wrong).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(session->Attach(&memory_).ok());
  EXPECT_EQ(session->Attach(&wrong).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->WaitCommit().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->SendScalars({}).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(session->NextRound().ok());
  EXPECT_EQ(session->SendScalars({.wanted = {1, 2}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(session->SendScalars({.displacement_mean = {1}}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(session->SendChunk(ChunkIndex(0), nullptr).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(session->SendChunk(ChunkIndex(kChunks), ChunkOf(bits, 0)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(session->SendChunk(ChunkIndex(0), ChunkOf(bits, 0)).ok());
  EXPECT_EQ(session->SendChunk(ChunkIndex(0), ChunkOf(bits, 0)).code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace signvote::testing
