// How the session mends what breaks: connections, verdicts, state transfers, servers that are gone.

#include "worker/session/session.h"

#include <atomic>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "tests/support/held_port.h"
#include "tests/unit/worker/session/session_fixture.h"

namespace signvote::testing {
namespace {

using ::testing::HasSubstr;

TEST_F(SessionTest, ALostConnectionIsRemadeAndTheBallotSentAgainUnderTheNewEpoch) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2),
                             verdict1 = RandomBits(3);
  v1::Join second;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, kChunks);
                              s.Decide(0, 0, verdict, 0.25f);
                              s.OpenRound(1);
                              s.AwaitChunks(1, 0, 3);
                              return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away");
                            },
                            [&](FakeSession& s) {
                              s.epoch = 2;
                              second = s.LetIn(v1::Welcome::STATE_KEEP);
                              s.OpenRound(1, 4);
                              EXPECT_EQ(s.AwaitChunks(1, 4, kChunks), ballot);
                              EXPECT_EQ(s.Await(v1::WorkerMessage::kScalars).scalars().attempt(),
                                        4u);
                              s.Decide(1, 4, verdict1, 0.125f);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  std::vector<float> expected = x_;
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  Vote(session.get(), 1, ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_TRUE(outcome->contiguous);
  ApplyStep(layout_, 0.25f, 0, kD, verdict.data(), 0, expected.data());
  ExpectStepped(x_, expected, verdict1, 0.125f);
  EXPECT_EQ(session->Stats().reconnects, 1u);
  server.Stop();
  EXPECT_EQ(second.round(), 1u);
  EXPECT_EQ(second.epoch(), 1u);
  EXPECT_EQ(second.run_id(), server.run_id().bytes());
}

TEST_F(SessionTest, TheConnectionIsRemadeWhileTheCallerComputes) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  Signal back;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, 3);
                              return grpc::Status(grpc::StatusCode::CANCELLED, "server stops");
                            },
                            [&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_KEEP);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, 3);
                              back.Set();
                              s.AwaitChunks(0, 0, kChunks - 3);
                              s.Await(v1::WorkerMessage::kScalars);
                              s.Decide(0, 0, verdict, 0.25f);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  SendBallot(session.get(), ballot, 0, 3);
  ASSERT_TRUE(back.Await()) << "no call is needed for that";
  SendBallot(session.get(), ballot, 3, kChunks);
  ASSERT_TRUE(session->SendScalars({}).ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->next_round.value(), 1u);
}

TEST_F(SessionTest, CommitsMissedWhileAwayAreAppliedInOrder) {
  const std::vector<uint8_t> ballot = RandomBits(1);
  const std::vector<std::vector<uint8_t>> verdicts = {RandomBits(10), RandomBits(11),
                                                      RandomBits(12)};
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, kChunks);
                              return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away");
                            },
                            [&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_KEEP);
                              EXPECT_EQ(s.ready_round, 0u);
                              for (uint64_t r = 0; r < 3; ++r) s.Decide(r, 0, verdicts[r], 0.5f);
                              s.OpenRound(3);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  std::vector<float> expected = x_;
  Vote(session.get(), 0, ballot);
  uint64_t commits = 0;
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  commits += outcome->commits;
  EXPECT_GE(commits, 1u);
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value());
  EXPECT_EQ((*ticket)->round.value(), 3u);
  for (uint64_t r = 0; r < 3; ++r)
    ApplyStep(layout_, 0.5f, 0, kD, verdicts[r].data(), 0, expected.data());
  EXPECT_EQ(x_, expected);
  EXPECT_EQ(session->Stats().rounds_applied, 3u);
  EXPECT_EQ(session->Stats().rounds_received, 0u) << "caught up: their bytes are set-up";
}

// A server that says more than the session keeps for a caller who computes: what did not fit is
// asked for again.
TEST_F(SessionTest, ACommitThatFoundNoRoomIsSentAgainByTheNextConnection) {
  constexpr uint32_t kMoreThanIsKept = 4096;
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  Signal back;
  std::vector<FakeServer::Script> scripts = {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    s.OpenRound(0);
    s.AwaitChunks(0, 0, 1);
    for (uint32_t a = 1; a <= kMoreThanIsKept; ++a) s.OpenRound(0, a);
    s.Decide(0, kMoreThanIsKept, verdict, 0.25f);
    s.AwaitEnd();
    return grpc::Status::OK;
  }};
  for (int i = 0; i < 20; ++i) {
    scripts.push_back([&](FakeSession& s) {
      EXPECT_EQ(s.LetIn(v1::Welcome::STATE_KEEP).round(), 0u);
      back.Set();
      s.Decide(0, 0, verdict, 0.25f);
      s.OpenRound(1);
      s.AwaitEnd();
      return grpc::Status::OK;
    });
  }
  FakeServer server(kPlan, std::move(scripts));
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const std::vector<float> start = x_;
  ASSERT_TRUE(session->NextRound().ok());
  SendBallot(session.get(), ballot, 0, 1);
  ASSERT_TRUE(back.Await());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 1u);
  ExpectStepped(x_, start, verdict, 0.25f);
}

TEST_F(SessionTest, AVerdictThatDoesNotMatchItsCommitIsCountedAndFetchedAgain) {
  const std::vector<uint8_t> ballot = RandomBits(1), right = RandomBits(2), wrong = RandomBits(3);
  v1::Join second;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, kChunks);
                              s.SendVerdict(0, 0, wrong);
                              s.Send(s.Commit(0, 0, right, 0.25f));
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            },
                            [&](FakeSession& s) {
                              second = s.LetIn(v1::Welcome::STATE_KEEP);
                              s.Decide(0, 0, right, 0.25f);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const std::vector<float> start = x_;
  Vote(session.get(), 0, ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  ExpectStepped(x_, start, right, 0.25f);
  EXPECT_EQ(session->Stats().verdict_mismatches, 1u);
  server.Stop();
  EXPECT_TRUE(second.has_round());
  EXPECT_EQ(second.round(), 0u);
}

TEST_F(SessionTest, ASecondMismatchFetchesTheWholeState) {
  const std::vector<uint8_t> ballot = RandomBits(1), right = RandomBits(2), wrong = RandomBits(3);
  const std::vector<float> state = StartValues(2.0f);
  auto bad = [&](FakeSession& s, v1::Welcome::State welcome) {
    s.LetIn(welcome);
    s.OpenRound(0);
    s.SendVerdict(0, 0, wrong);
    s.Send(s.Commit(0, 0, right, 0.25f));
    s.AwaitEnd();
    return grpc::Status::OK;
  };
  v1::Join third;
  FakeServer server(kPlan, {[&](FakeSession& s) { return bad(s, v1::Welcome::STATE_UPLOAD); },
                            [&](FakeSession& s) { return bad(s, v1::Welcome::STATE_KEEP); },
                            [&](FakeSession& s) {
                              third = s.LetIn(v1::Welcome::STATE_FETCH);
                              EXPECT_EQ(s.ready_round, 1u);
                              s.OpenRound(1);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 1, 0, kD));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_FALSE(outcome->contiguous);
  EXPECT_EQ(outcome->commits, 0u) << "the state came with all it needed";
  EXPECT_EQ(outcome->next_round.value(), 1u);
  EXPECT_EQ(x_, state);
  // opens once the server has read that the replica is ready
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value());
  EXPECT_EQ((*ticket)->round.value(), 1u);
  server.Stop();
  EXPECT_FALSE(third.has_round());
  EXPECT_EQ(session->Stats().verdict_mismatches, 2u);
}

// Goal: the parts of a fetched replica stand at different rounds; commits move each part from its
// own round on.
TEST_F(SessionTest, AFetchedReplicaIsLevelledPartByPart) {
  const std::vector<std::vector<uint8_t>> verdicts = {RandomBits(10), RandomBits(11),
                                                      RandomBits(12)};
  std::vector<std::vector<float>> history = {StartValues(2.0f)};
  for (uint64_t r = 0; r < 3; ++r) {
    history.push_back(history.back());
    ApplyStep(layout_, 0.5f, 0, kD, verdicts[r].data(), 0, history.back().data());
  }
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_FETCH);
                      EXPECT_EQ(s.ready_round, 1u);
                      for (uint64_t r = 1; r < 3; ++r) s.Decide(r, 0, verdicts[r], 0.5f);
                      s.OpenRound(3);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(history[1], 1, 0, 1001));
    out->Write(StatePart(history[1], 1, 1001, 999));
    out->Write(StatePart(history[2], 2, 2000, 2000));
    out->Write(StatePart(history[3], 3, 4000, 1000));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  EXPECT_EQ(x_, history[3]) << "Join returns a level replica";
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value());
  EXPECT_EQ((*ticket)->round.value(), 3u);
  const SessionStats stats = session->Stats();
  EXPECT_EQ(stats.state_transfers, 1u);
  EXPECT_GE(stats.setup_received_bytes, kD * sizeof(float) + 2 * kPlan.TotalBytes());
}

TEST_F(SessionTest, AResyncFetchesTheStateOverTheSameSession) {
  const std::vector<float> state = StartValues(3.0f);
  uint64_t ready = 0;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      v1::ServerMessage resync;
                      resync.mutable_resync()->set_round(5);
                      resync.mutable_resync()->set_reason("digest differs");
                      s.Send(resync);
                      ready = s.Await(v1::WorkerMessage::kReady).ready().round();
                      s.OpenRound(5);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 5, 0, kD));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  std::optional<RoundTicket> ticket;
  for (int i = 0; i < 3 && !(ticket && ticket->round.value() == 5); ++i) {
    const auto next = session->NextRound();
    ASSERT_TRUE(next.ok()) << next.status();
    ticket = *next;
    ASSERT_TRUE(ticket.has_value());
    if (ticket->round.value() != 5) {
      const auto outcome = session->WaitCommit();
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      EXPECT_FALSE(outcome->contiguous);
    }
  }
  ASSERT_TRUE(ticket.has_value());
  EXPECT_EQ(ticket->round.value(), 5u);
  server.Stop();
  EXPECT_EQ(ready, 5u);
  EXPECT_EQ(x_, state);
  EXPECT_EQ(server.connections(), 1);
}

TEST_F(SessionTest, ABrokenStateTransferIsTriedAgainByANewSession) {
  const std::vector<float> state = StartValues(3.0f);
  auto let_in = [&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_FETCH);
    s.OpenRound(2);
    s.AwaitEnd();
    return grpc::Status::OK;
  };
  FakeServer server(kPlan, {let_in, let_in, let_in, let_in});
  std::atomic<int> fetch{0};
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    const int n = fetch++;
    v1::StateChunk chunk = StatePart(state, 2, 0, 2500);
    if (n == 0) chunk.set_checksum(1);
    if (n == 1) chunk.set_first(7);
    out->Write(chunk);
    if (n == 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut");
    out->Write(StatePart(state, 2, 2500, kD - 2500));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  const auto run = JoinRun(session.get(), &memory_);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(x_, state);
  EXPECT_EQ(fetch, 4);
  EXPECT_EQ(session->Stats().state_transfers, 1u);
}

TEST_F(SessionTest, AStateTransferThatAlwaysFailsEndsTheSessionWithItsReason) {
  auto let_in = [&](FakeSession& s) {
    s.AwaitJoin();
    s.Send(s.Welcome(v1::Welcome::STATE_FETCH));
    s.AwaitEnd();
    return grpc::Status::OK;
  };
  FakeServer server(kPlan, std::vector<FakeServer::Script>(10, let_in));
  const auto session = MustCreate(Options(server.address()));
  const absl::Status status = JoinRun(session.get(), &memory_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("5 times in a row: nothing to fetch"));
}

// Goal: one transfer is enough however many rounds it takes, when commits come while it runs.
// Method: the state comes in parts, each followed by more rounds than a worker keeps verdicts for;
// the server says nothing of them again afterwards.
TEST_F(SessionTest, CommitsThatComeDuringATransferMoveThePartsThatAreThere) {
  constexpr uint64_t kParts = 10, kRoundsPerPart = 10;
  std::vector<std::vector<float>> history = {StartValues(2.0f)};
  for (uint64_t r = 0; r < kParts * kRoundsPerPart; ++r) {
    history.push_back(history.back());
    ApplyStep(layout_, 0.5f, 0, kD, RandomBits(r).data(), 0, history.back().data());
  }
  constexpr uint64_t kLast = (kParts - 1) * kRoundsPerPart;
  Signal parts[kParts], commits[kParts];
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.AwaitJoin();
                      s.Send(s.Welcome(v1::Welcome::STATE_FETCH));
                      for (uint64_t part = 0; part < kParts; ++part) {
                        EXPECT_TRUE(parts[part].Await());
                        if (part + 1 == kParts) break;
                        for (uint64_t r = part * kRoundsPerPart; r < (part + 1) * kRoundsPerPart;
                             ++r)
                          s.Decide(r, 0, RandomBits(r), 0.5f);
                        s.AwaitRead();
                        commits[part].Set();
                      }
                      s.ready_round = s.Await(v1::WorkerMessage::kReady).ready().round();
                      EXPECT_EQ(s.ready_round, kLast);
                      s.OpenRound(kLast);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    for (uint64_t part = 0; part < kParts; ++part) {
      const uint64_t first = part * (kD / kParts);
      out->Write(
          StatePart(history[part * kRoundsPerPart], part * kRoundsPerPart, first, kD / kParts));
      parts[part].Set();
      if (part + 1 < kParts && !commits[part].Await()) return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value()) << ticket.status();
  EXPECT_EQ((*ticket)->round.value(), kLast);
  EXPECT_EQ(x_, history[kLast]);
  EXPECT_EQ(session->Stats().state_transfers, 1u);
  EXPECT_EQ(session->Stats().verdict_mismatches, 0u);
}

// Goal: commits that find no free slot while the state comes are neither dropped nor asked for again.
// Method: the transfer goes on a while after more verdicts were sent than there are slots. A worker
// that read on would answer the ping behind them at once.
TEST_F(SessionTest, TheStreamWaitsWhileAStateIsFetchedAndEverySlotIsFull) {
  constexpr uint64_t kSlots = 16, kRounds = kSlots + 2;
  constexpr Duration kAWhile = std::chrono::milliseconds(200);
  std::vector<std::vector<float>> history = {StartValues(2.0f)};
  for (uint64_t r = 0; r < kRounds; ++r) {
    history.push_back(history.back());
    ApplyStep(layout_, 0.5f, 0, kD, RandomBits(r).data(), 0, history.back().data());
  }
  Signal sent;
  std::atomic<bool> goes_on{false};
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.AwaitJoin();
                      s.Send(s.Welcome(v1::Welcome::STATE_FETCH));
                      for (uint64_t r = 0; r < kSlots; ++r) s.Decide(r, 0, RandomBits(r), 0.5f);
                      s.AwaitRead();  // every slot is full
                      for (uint64_t r = kSlots; r < kRounds; ++r)
                        s.Decide(r, 0, RandomBits(r), 0.5f);
                      sent.Set();
                      s.AwaitRead();
                      EXPECT_TRUE(goes_on) << "it was read on though there was no room";
                      EXPECT_GE(s.Await(v1::WorkerMessage::kReady).ready().round(), kSlots);
                      s.OpenRound(kRounds);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    if (!sent.Await()) return grpc::Status::CANCELLED;
    // No event tells that nothing happens.
    (void)Signal().AwaitFor(kAWhile);
    goes_on = true;
    // The first part needs all commits; the second shows that it got them.
    out->Write(StatePart(history[0], 0, 0, 1000));
    out->Write(StatePart(history[kSlots], kSlots, 1000, kD - 1000));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value()) << ticket.status();
  EXPECT_EQ(x_, history[kRounds]);
  EXPECT_EQ(session->Stats().reconnects, 0u);
  EXPECT_EQ(session->Stats().verdict_mismatches, 0u);
}

TEST_F(SessionTest, AFetchedStateBringsX0WhereTheRunNeedsIt) {
  const std::vector<float> state = StartValues(2.0f), x0 = StartValues(3.0f);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.needs_x0 = true;
                      s.LetIn(v1::Welcome::STATE_FETCH);
                      s.Send(s.CommitOf(4, v1::Commit::KIND_REWIND));
                      s.OpenRound(5);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 4, 0, kD));
    out->Write(StatePart(x0, 0, 0, 2000, 1));
    out->Write(StatePart(x0, 0, 2000, kD - 2000, 1));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  EXPECT_EQ(x_, state);
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value()) << ticket.status();
  EXPECT_EQ(x_, x0);
}

TEST_F(SessionTest, AStateWithoutX0IsThatOfARunThatHasLetGoOfIt) {
  const std::vector<float> state = StartValues(2.0f);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.needs_x0 = true;
                      s.LetIn(v1::Welcome::STATE_FETCH);
                      s.OpenRound(4);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 4, 0, kD));
    return grpc::Status::OK;
  });
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value()) << ticket.status();
  EXPECT_EQ(x_, state);
  EXPECT_FALSE(memory_.keeps_x0());
}

TEST_F(SessionTest, X0IsLetGoOfWhenARoundOpensThatNeedsItNoMore) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.needs_x0 = true;
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.Await(v1::WorkerMessage::kAbstain);
                      s.Send(s.CommitOf(0, v1::Commit::KIND_NONE));
                      s.x0_over = true;
                      s.OpenRound(1);
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto first = session->NextRound();
  ASSERT_TRUE(first.ok() && first->has_value()) << first.status();
  EXPECT_TRUE(memory_.keeps_x0());
  ASSERT_TRUE(session->Abstain(AbstainReason::kNonFiniteLoss).ok());
  ASSERT_TRUE(session->WaitCommit().ok());
  const auto second = session->NextRound();
  ASSERT_TRUE(second.ok() && second->has_value()) << second.status();
  EXPECT_TRUE((*second)->x0_over);
  EXPECT_FALSE(memory_.keeps_x0());
}

TEST_F(SessionTest, AStateThatAlwaysFallsBehindEndsTheSessionWithTheNumberThatWouldHelp) {
  const std::vector<float> state = StartValues(2.0f);
  LogLines lines;
  auto in_vain = [&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_FETCH);
    return grpc::Status(grpc::StatusCode::ABORTED, "fetch the state again");
  };
  FakeServer server(kPlan, std::vector<FakeServer::Script>(10, in_vain));
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 4, 0, 1000));
    out->Write(StatePart(state, 11, 1000, kD - 1000));
    return grpc::Status::OK;
  });
  SessionOptions options = Options(server.address());
  options.log = lines.Sink();
  const auto session = MustCreate(options);
  const absl::Status status = JoinRun(session.get(), &memory_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("for 7 rounds); start the server with --catch-up-bytes of at least " +
                        std::to_string(8 * kPlan.TotalBytes())));
  EXPECT_TRUE(lines.Await("fell behind the commits that the server keeps"));
  EXPECT_EQ(session->Stats().state_transfers, 5u);
}

// Goal: neither side of a transfer that hangs keeps a worker that was asked to leave.
TEST_F(SessionTest, ADrainBreaksOffAStateTransfer) {
  for (const bool upload : {false, true}) {
    Signal begun, over;
    FakeServer server(
        kPlan, {[&](FakeSession& s) {
          s.AwaitJoin();
          s.Send(s.Welcome(upload ? v1::Welcome::STATE_UPLOAD : v1::Welcome::STATE_FETCH));
          EXPECT_EQ(s.Await(v1::WorkerMessage::kLeave).leave().reason(), "SIGTERM");
          over.Set();
          return grpc::Status::OK;
        }});
    server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
      out->Write(StatePart(StartValues(), 4, 0, 1000));
      begun.Set();
      EXPECT_TRUE(over.Await());
      return grpc::Status::OK;
    });
    server.SetUpload([&] {
      begun.Set();
      EXPECT_TRUE(over.Await());
    });
    const auto session = MustCreate(Options(server.address()));
    std::thread signal([&] {
      EXPECT_TRUE(begun.Await());
      session->RequestDrain("SIGTERM");
    });
    const absl::Status status = JoinRun(session.get(), &memory_).status();
    signal.join();
    over.Set();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
    EXPECT_TRUE(session->drained());
    EXPECT_EQ(session->replica_round(), std::nullopt);
    EXPECT_TRUE(session->Leave("drained").ok());
  }
}

TEST_F(SessionTest, AnInterruptionBreaksOffAStateTransferAndALaterCallBeginsItAnew) {
  const std::vector<float> state = StartValues(2.0f);
  Signal over;
  std::atomic<bool> interrupt{false};
  std::atomic<int> fetches{0};
  auto let_in = [&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_FETCH);
    s.AwaitEnd();
    return grpc::Status::OK;
  };
  FakeServer server(kPlan, {let_in, let_in});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 4, 0, 1000));
    if (fetches++ == 0) {
      interrupt = true;
      EXPECT_TRUE(over.Await());
    }
    out->Write(StatePart(state, 4, 1000, kD - 1000));
    return grpc::Status::OK;
  });
  SessionOptions options = Options(server.address());
  options.interrupted = [&] { return interrupt.load(); };
  const auto session = MustCreate(options);
  ASSERT_TRUE(session->Join(ModelOf(layout_)).ok());
  EXPECT_EQ(session->Attach(&memory_).code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(session->drained());
  interrupt = false;
  over.Set();
  ASSERT_TRUE(session->Attach(&memory_).ok());
  EXPECT_EQ(session->replica_round(), Round(4));
  EXPECT_EQ(x_, state);
  EXPECT_EQ(fetches, 2);
}

// Ten seconds are for a round that may yet be decided; without a server there is none.
TEST_F(SessionTest, AWorkerWhoseServerIsGoneLeavesSoonAfterItIsAskedTo) {
  const std::vector<uint8_t> ballot = RandomBits(1);
  const HeldPort port;
  LogLines lines;
  auto server =
      std::make_unique<FakeServer>(kPlan, std::vector<FakeServer::Script>{[&](FakeSession& s) {
                                     s.LetIn(v1::Welcome::STATE_UPLOAD);
                                     s.OpenRound(0);
                                     s.AwaitEnd();
                                     return grpc::Status::OK;
                                   }},
                                   grpc::InsecureServerCredentials(), port.port());
  SessionOptions options = Options(server->address());
  options.log = lines.Sink();
  const auto session = MustCreate(options);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  server.reset();
  ASSERT_TRUE(lines.Await("lost the server"));
  const Time start = Clock::System()->Now();
  session->RequestDrain("SIGTERM");
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 0u);
  EXPECT_TRUE(session->drained());
  EXPECT_TRUE(session->Leave("drained").ok());
  EXPECT_LT(Clock::System()->Now() - start, std::chrono::seconds(6)) << "2 s, on a busy machine";
}

// The system's clock, on which two hours pass from one look to the next once somebody says so.
class LeapingClock : public Clock {
 public:
  Time Now() const override {
    const int64_t looks = leaping ? ++looks_ : 0;
    return Clock::System()->Now() + looks * std::chrono::hours(2);
  }
  int64_t UnixMicros() const override { return Clock::System()->UnixMicros(); }
  void SleepFor(Duration d) override { Clock::System()->SleepFor(d); }

  std::atomic<bool> leaping{false};

 private:
  mutable std::atomic<int64_t> looks_{0};
};

TEST_F(SessionTest, AWaitThatLastsTooLongNamesWhomTheServerWaitsFor) {
  Signal noticed;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.OpenRound(0);
                      s.Notice("round 0 waits for w7");
                      s.AwaitRead();
                      noticed.Set();
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  SessionOptions options = Options(server.address());
  options.wait_timeout = std::chrono::hours(1);
  LeapingClock clock;
  const auto session = *Session::Create(options, &clock);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  ASSERT_TRUE(noticed.Await());
  clock.leaping = true;
  const absl::Status status = session->WaitCommit().status();
  clock.leaping = false;
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("for round 0 to be committed"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the server says: round 0 waits for w7"));
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kWaitTimeout);
}

TEST_F(SessionTest, AServerThatIsNotThereIsGivenUpAfterTheConnectTimeout) {
  const HeldPort nobody;
  SessionOptions options = Options(nobody.address());
  options.connect_timeout = std::chrono::seconds(1);
  const auto session = MustCreate(options);
  const Time start = Clock::System()->Now();
  const absl::Status status = JoinRun(session.get(), &memory_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("could not reach server 127.0.0.1:"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("Connection refused"));
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kUnavailable);
  EXPECT_GE(Clock::System()->Now() - start, options.connect_timeout);
  EXPECT_LT(Clock::System()->Now() - start, SessionOptions().connect_timeout);
}

TEST_F(SessionTest, AServerThatNeverAnswersIsGivenUpAfterTheConnectTimeout) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.AwaitEnd();
                      return grpc::Status::OK;
                    }});
  SessionOptions options = Options(server.address());
  options.connect_timeout = std::chrono::milliseconds(300);
  const auto session = MustCreate(options);
  const absl::Status status = JoinRun(session.get(), &memory_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no answer"));
}

TEST_F(SessionTest, ALostServerIsGivenUpAfterTheServerTimeout) {
  const HeldPort port;
  auto server =
      std::make_unique<FakeServer>(kPlan, std::vector<FakeServer::Script>{[&](FakeSession& s) {
                                     s.LetIn(v1::Welcome::STATE_UPLOAD);
                                     s.OpenRound(0);
                                     s.AwaitEnd();
                                     return grpc::Status::OK;
                                   }},
                                   grpc::InsecureServerCredentials(), port.port());
  SessionOptions options = Options(server->address());
  options.server_timeout = std::chrono::milliseconds(600);
  const auto session = MustCreate(options);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  server.reset();
  const absl::Status status = session->WaitCommit().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("lost server"));
  EXPECT_EQ(session->NextRound().status(), status) << "every later call says the same";
}

TEST_F(SessionTest, AServerThatComesBackOnItsPortIsFoundAgain) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  const HeldPort port;
  auto server =
      std::make_unique<FakeServer>(kPlan, std::vector<FakeServer::Script>{[&](FakeSession& s) {
                                     s.LetIn(v1::Welcome::STATE_UPLOAD);
                                     s.OpenRound(0);
                                     s.AwaitEnd();
                                     return grpc::Status::OK;
                                   }},
                                   grpc::InsecureServerCredentials(), port.port());
  LogLines lines;
  SessionOptions options = Options(server->address());
  options.log = lines.Sink();
  const auto session = MustCreate(options);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  server.reset();
  std::thread later([&] {
    EXPECT_TRUE(lines.Await("lost the server, reconnecting"));
    server =
        std::make_unique<FakeServer>(kPlan, std::vector<FakeServer::Script>{[&](FakeSession& s) {
                                       s.epoch = 2;
                                       s.LetIn(v1::Welcome::STATE_KEEP);
                                       s.OpenRound(0, 1);
                                       s.AwaitChunks(0, 1, kChunks);
                                       s.Decide(0, 1, verdict, 0.5f);
                                       s.AwaitEnd();
                                       return grpc::Status::OK;
                                     }},
                                     grpc::InsecureServerCredentials(), port.port());
  });
  const auto outcome = session->WaitCommit();
  later.join();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 1u);
}

}  // namespace
}  // namespace signvote::testing
