#include "worker/session/session.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/apply.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/rng.h"
#include "proto/wire/security.h"
#include "tests/unit/proto/wire/test_certificates.h"
#include "tests/unit/worker/session/fake_server.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;
using testing::FakeServer;
using testing::FakeSession;
using testing::TestAuthority;
using testing::TestCertificate;
using testing::WriteTestFile;

constexpr uint64_t kD = 5000;  // several chunks, the last one odd

Layout TestLayout(uint64_t d = kD) {
  std::vector<TensorSpec> tensors(2);
  tensors[0].name = "a";
  tensors[0].shape = {d - 1000};
  tensors[1].name = "b";
  tensors[1].shape = {10, 100};
  tensors[1].step_scale = 0.5f;
  tensors[1].weight_decay = 0.1f;
  return *Layout::Make(tensors);
}
const ChunkPlan kPlan(kD, 512);
const uint32_t kChunks = kPlan.chunks();

std::vector<uint8_t> RandomBits(uint64_t seed) {
  std::vector<uint8_t> bits(kPlan.TotalBytes());
  Rng rng(seed, 0);
  for (uint8_t& byte : bits) byte = static_cast<uint8_t>(rng.Next());
  return bits;
}

std::vector<float> StartValues(float scale = 1.0f) {
  std::vector<float> x(kD);
  for (size_t i = 0; i < x.size(); ++i) x[i] = scale * static_cast<float>(i % 17) - 3.0f;
  return x;
}

SessionOptions Options(const std::string& server) {
  SessionOptions options;
  options.server = server;
  options.name = "w1";
  options.insecure = true;
  options.connect_timeout = std::chrono::seconds(5);
  options.server_timeout = std::chrono::seconds(10);
  options.wait_timeout = std::chrono::seconds(20);
  options.finish_timeout = std::chrono::seconds(5);
  return options;
}

std::unique_ptr<Session> MustCreate(const SessionOptions& options) {
  auto session = Session::Create(options, Clock::System());
  EXPECT_TRUE(session.ok()) << session.status();
  return session.ok() ? *std::move(session) : nullptr;
}

// Whether the server's side gets there within a few seconds.
bool Becomes(const std::atomic<bool>& flag) {
  for (int i = 0; i < 5000 && !flag; ++i) usleep(1000);
  return flag;
}

void SendBallot(Session* session, const std::vector<uint8_t>& bits, uint32_t from = 0, uint32_t to = kChunks) {
  for (uint32_t k = from; k < to; ++k) {
    ASSERT_TRUE(session->SendChunk(ChunkIndex(k), bits.data() + kPlan.ByteOffset(ChunkIndex(k))).ok());
  }
}

// One whole round of a well-behaved worker.
void Vote(Session* session, uint64_t round, const std::vector<uint8_t>& bits) {
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  ASSERT_TRUE(ticket->has_value());
  ASSERT_EQ((*ticket)->round.value(), round);
  SendBallot(session, bits);
  ASSERT_TRUE(session->SendScalars({.loss = 1.5, .g_l1 = 2, .g_l2_squared = 3, .samples = 8}).ok());
}

void ExpectStepped(const std::vector<float>& x, std::vector<float> from, const std::vector<uint8_t>& bits,
                   float stepsize) {
  ApplyStep(TestLayout(), stepsize, 0, kD, bits.data(), 0, from.data());
  EXPECT_EQ(x, from);
}

class SessionTest : public ::testing::Test {
 protected:
  SessionTest() : layout_(TestLayout()), x_(StartValues()) {}
  const Layout layout_;
  std::vector<float> x_;
};

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
  const auto run = session->Join(layout_, x_);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->run_id, server.run_id());
  EXPECT_EQ(run->seed, 7u);
  EXPECT_EQ(run->rounds_max, 100u);
  EXPECT_EQ(run->plan.chunks(), kChunks);
  EXPECT_EQ(run->direction.kind, DirectionKind::kSignum);
  EXPECT_EQ(server.uploaded(), start);

  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok() && ticket->has_value());
  EXPECT_EQ((*ticket)->data_step.value(), 1000u);
  EXPECT_EQ((*ticket)->share.value(), 3u);
  EXPECT_FALSE((*ticket)->observer);
  SendBallot(session.get(), ballot);
  ASSERT_TRUE(session->SendScalars({.loss = 1.5, .g_l1 = 2, .g_l2_squared = 3, .prev_inner = 4, .samples = 8}).ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 1u);
  EXPECT_FALSE(outcome->contiguous) << "the upload is a state transfer";
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
  EXPECT_EQ(join.layout().digest(), layout_.digest());
  EXPECT_EQ(join.layout().tensors_size(), 2);
  EXPECT_FALSE(join.has_round());
  EXPECT_EQ(scalars.loss(), 1.5);
  EXPECT_EQ(scalars.prev_inner(), 4);
  EXPECT_FALSE(scalars.has_probe_l1());
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
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  for (uint64_t round = 0; round < kRounds; ++round) {
    Vote(session.get(), round, ballot);
    const auto outcome = session->WaitCommit();
    ASSERT_TRUE(outcome.ok());
    EXPECT_EQ(outcome->contiguous, round > 0);
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

TEST_F(SessionTest, ANewAttemptGetsTheSameBallotAlsoWhileTheCallerComputes) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  std::atomic<bool> resent{false};
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    s.OpenRound(0, 0);
    s.AwaitChunks(0, 0, 4);
    s.OpenRound(0, 1);
    s.AwaitChunks(0, 1, 4);  // again, before the caller has sent anything more
    resent = true;
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
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  const std::vector<float> start = x_;
  ASSERT_TRUE(session->NextRound().ok());
  SendBallot(session.get(), ballot, 0, 4);
  ASSERT_TRUE(Becomes(resent));
  SendBallot(session.get(), ballot, 4, kChunks);
  ASSERT_TRUE(session->SendScalars({.loss = 1}).ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 1u);
  ExpectStepped(x_, start, verdict, 0.5f);
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
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  const std::vector<float> start = x_;
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  ExpectStepped(x_, start, late, 0.5f);
  EXPECT_EQ(session->Stats().verdict_mismatches, 0u);
}

TEST_F(SessionTest, ALostConnectionIsRemadeAndTheBallotSentAgainUnderTheNewEpoch) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2), verdict1 = RandomBits(3);
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
                              EXPECT_EQ(s.Await(v1::WorkerMessage::kScalars).scalars().attempt(), 4u);
                              s.Decide(1, 4, verdict1, 0.125f);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  std::vector<float> expected = x_;
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  Vote(session.get(), 1, ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_TRUE(outcome->contiguous);
  ApplyStep(layout_, 0.25f, 0, kD, verdict.data(), 0, expected.data());
  ExpectStepped(x_, expected, verdict1, 0.125f);
  EXPECT_EQ(second.round(), 1u);
  EXPECT_EQ(second.epoch(), 1u);
  EXPECT_EQ(second.run_id(), server.run_id().bytes());
  EXPECT_EQ(session->Stats().reconnects, 1u);
}

TEST_F(SessionTest, TheConnectionIsRemadeWhileTheCallerComputes) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  std::atomic<bool> back{false};
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
                              back = true;
                              s.AwaitChunks(0, 0, kChunks - 3);
                              s.Await(v1::WorkerMessage::kScalars);
                              s.Decide(0, 0, verdict, 0.25f);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  SendBallot(session.get(), ballot, 0, 3);
  ASSERT_TRUE(Becomes(back)) << "no call is needed for that";
  SendBallot(session.get(), ballot, 3, kChunks);
  ASSERT_TRUE(session->SendScalars({}).ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->next_round.value(), 1u);
}

TEST_F(SessionTest, CommitsMissedWhileAwayAreAppliedInOrder) {
  const std::vector<uint8_t> ballot = RandomBits(1);
  const std::vector<std::vector<uint8_t>> verdicts = {RandomBits(10), RandomBits(11), RandomBits(12)};
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
  ASSERT_TRUE(session->Join(layout_, x_).ok());
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
  for (uint64_t r = 0; r < 3; ++r) ApplyStep(layout_, 0.5f, 0, kD, verdicts[r].data(), 0, expected.data());
  EXPECT_EQ(x_, expected);
  EXPECT_EQ(session->Stats().rounds_applied, 3u);
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
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  const std::vector<float> start = x_;
  Vote(session.get(), 0, ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  ExpectStepped(x_, start, right, 0.25f);
  EXPECT_EQ(session->Stats().verdict_mismatches, 1u);
  EXPECT_TRUE(second.has_round());
  EXPECT_EQ(second.round(), 0u);
}

v1::StateChunk StatePart(const std::vector<float>& values, uint64_t round, uint64_t first, uint64_t count) {
  v1::StateChunk chunk;
  chunk.set_round(round);
  chunk.set_first(first);
  chunk.set_count(count);
  chunk.set_payload(values.data() + first, count * 4);
  chunk.set_checksum(Xxh3(values.data() + first, count * 4));
  return chunk;
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
  server.fetch = [&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 1, 0, kD));
    return grpc::Status::OK;
  };
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_FALSE(outcome->contiguous);
  EXPECT_EQ(outcome->next_round.value(), 1u);
  EXPECT_EQ(x_, state);
  EXPECT_FALSE(third.has_round());
  EXPECT_EQ(session->Stats().verdict_mismatches, 2u);
}

// Goal: the parts of a fetched replica stand at different rounds; commits move each part from its own round on.
TEST_F(SessionTest, AFetchedReplicaIsLevelledPartByPart) {
  const std::vector<std::vector<uint8_t>> verdicts = {RandomBits(10), RandomBits(11), RandomBits(12)};
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
  server.fetch = [&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(history[1], 1, 0, 1001));
    out->Write(StatePart(history[1], 1, 1001, 999));
    out->Write(StatePart(history[2], 2, 2000, 2000));
    out->Write(StatePart(history[3], 3, 4000, 1000));
    return grpc::Status::OK;
  };
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
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
  server.fetch = [&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 5, 0, kD));
    return grpc::Status::OK;
  };
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
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
  server.fetch = [&](grpc::ServerWriter<v1::StateChunk>* out) {
    const int n = fetch++;
    v1::StateChunk chunk = StatePart(state, 2, 0, 2500);
    if (n == 0) chunk.set_checksum(1);
    if (n == 1) chunk.set_first(7);
    out->Write(chunk);
    if (n == 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut");
    out->Write(StatePart(state, 2, 2500, kD - 2500));
    return grpc::Status::OK;
  };
  const auto session = MustCreate(Options(server.address()));
  const auto run = session->Join(layout_, x_);
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
  const absl::Status status = session->Join(layout_, x_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("5 times in a row: nothing to fetch"));
}

TEST_F(SessionTest, PingsAreAnsweredWhileTheCallerComputes) {
  std::atomic<bool> answered{false};
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    v1::ServerMessage ping;
    ping.mutable_ping()->set_nonce(4711);
    s.Send(ping);
    answered = s.Await(v1::WorkerMessage::kPong).pong().nonce() == 4711;
    s.AwaitEnd();
    return grpc::Status::OK;
  }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  EXPECT_TRUE(Becomes(answered));
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
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  Vote(session.get(), 0, ballot);
  ASSERT_TRUE(session->WaitCommit().ok());
  ASSERT_TRUE(session->NextRound().ok());
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
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  ASSERT_TRUE(session->Abstain(AbstainReason::kNonFiniteLoss).ok());
  ASSERT_TRUE(session->WaitCommit().ok());
  EXPECT_EQ(abstain.round(), 0u);
  EXPECT_EQ(abstain.attempt(), 1u);
  EXPECT_EQ(abstain.reason(), v1::Abstain::REASON_NONFINITE_LOSS);
}

// A worker that computes for long while the others go on: it catches up in one go and votes in the newest round.
TEST_F(SessionTest, ASlowWorkerSkipsTheRoundsItMissed) {
  std::vector<std::vector<uint8_t>> verdicts;
  for (uint64_t r = 0; r < 8; ++r) verdicts.push_back(RandomBits(20 + r));
  std::atomic<bool> sent{false};
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    s.OpenRound(0, 0, v1::RoundOpen::ROLE_OBSERVER);
    s.AwaitChunks(0, 0, 1);
    for (uint64_t r = 0; r < 8; ++r) {
      s.Decide(r, 0, verdicts[r], 0.5f);
      if (r < 7) s.OpenRound(r + 1, 0, v1::RoundOpen::ROLE_OBSERVER);
    }
    s.OpenRound(8, 0, v1::RoundOpen::ROLE_OBSERVER);
    sent = true;
    s.AwaitEnd();
    return grpc::Status::OK;
  }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  std::vector<float> expected = x_;
  const auto first = session->NextRound();
  ASSERT_TRUE(first.ok() && first->has_value());
  EXPECT_TRUE((*first)->observer);
  const std::vector<uint8_t> ballot = RandomBits(1);
  SendBallot(session.get(), ballot, 0, 1);
  ASSERT_TRUE(Becomes(sent));
  usleep(50000);
  ASSERT_TRUE(session->WaitCommit().ok());
  const auto next = session->NextRound();
  ASSERT_TRUE(next.ok() && next->has_value());
  EXPECT_EQ((*next)->round.value(), 8u);
  for (const auto& verdict : verdicts) ApplyStep(layout_, 0.5f, 0, kD, verdict.data(), 0, expected.data());
  EXPECT_EQ(x_, expected);
}

// More rounds than the session keeps verdicts for: it stops reading, and goes on where it stopped.
TEST_F(SessionTest, AVerySlowWorkerHoldsTheStreamBackAndLosesNothing) {
  constexpr uint64_t kRounds = 60;
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    s.OpenRound(0);
    s.AwaitChunks(0, 0, 1);
    for (uint64_t r = 0; r < kRounds; ++r) s.Decide(r, 0, RandomBits(r), 0.5f);
    s.OpenRound(kRounds);
    s.AwaitEnd();
    return grpc::Status::OK;
  }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  std::vector<float> expected = x_;
  const std::vector<uint8_t> ballot = RandomBits(1);
  ASSERT_TRUE(session->NextRound().ok());
  SendBallot(session.get(), ballot, 0, 1);
  usleep(300000);
  ASSERT_TRUE(session->WaitCommit().ok());
  const auto next = session->NextRound();
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ((*next)->round.value(), kRounds);
  for (uint64_t r = 0; r < kRounds; ++r) ApplyStep(layout_, 0.5f, 0, kD, RandomBits(r).data(), 0, expected.data());
  EXPECT_EQ(x_, expected);
}

TEST_F(SessionTest, ARequestedDrainLeavesAfterTheRound) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  std::string reason;
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    s.OpenRound(0);
    s.AwaitChunks(0, 0, kChunks);
    s.Decide(0, 0, verdict, 0.5f);
    s.OpenRound(1);
    reason = s.Await(v1::WorkerMessage::kLeave).leave().reason();
    return grpc::Status::OK;
  }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
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
  server.Stop();
  EXPECT_EQ(reason, "maintenance");
}

TEST_F(SessionTest, TheServersDrainIsObeyedWhileWaitingForARound) {
  std::atomic<bool> left{false};
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    v1::ServerMessage drain;
    drain.mutable_drain()->set_reason("operator");
    s.Send(drain);
    left = s.Await(v1::WorkerMessage::kLeave).leave().reason() == "operator";
    return grpc::Status::OK;
  }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  const auto end = session->NextRound();
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_FALSE(end->has_value());
  EXPECT_TRUE(session->drained());
  server.Stop();
  EXPECT_TRUE(left);
}

TEST_F(SessionTest, AFinishedRunEndsAtOnceForAWorkerThatComesLate) {
  const std::vector<float> state = StartValues(3.0f);
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_FETCH);
    s.Finish(9);
    EXPECT_EQ(s.Await(v1::WorkerMessage::kReplicaDigest).replica_digest().round(), 9u);
    return grpc::Status::OK;
  }});
  server.fetch = [&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 9, 0, kD));
    return grpc::Status::OK;
  };
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  const auto end = session->NextRound();
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_FALSE(end->has_value());
  EXPECT_TRUE(session->finished());
}

TEST_F(SessionTest, AWaitThatLastsTooLongNamesWhomTheServerWaitsFor) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    s.OpenRound(0);
    s.Notice("round 0 waits for w7");
    s.AwaitEnd();
    return grpc::Status::OK;
  }});
  SessionOptions options = Options(server.address());
  options.wait_timeout = std::chrono::milliseconds(400);
  const auto session = MustCreate(options);
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  const absl::Status status = session->WaitCommit().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("for round 0 to be committed"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the server says: round 0 waits for w7"));
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kWaitTimeout);
}

TEST_F(SessionTest, AServerThatIsNotThereIsGivenUpAfterTheConnectTimeout) {
  int port = 0;
  {
    FakeServer gone(kPlan, {});
    port = gone.port();
  }
  SessionOptions options = Options("127.0.0.1:" + std::to_string(port));
  options.connect_timeout = std::chrono::milliseconds(500);
  const auto session = MustCreate(options);
  const Time start = Clock::System()->Now();
  const absl::Status status = session->Join(layout_, x_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("could not reach server 127.0.0.1:"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("Connection refused"));
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kUnavailable);
  EXPECT_LT(Clock::System()->Now() - start, std::chrono::seconds(5));
}

TEST_F(SessionTest, AServerThatNeverAnswersIsGivenUpAfterTheConnectTimeout) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
    s.AwaitEnd();
    return grpc::Status::OK;
  }});
  SessionOptions options = Options(server.address());
  options.connect_timeout = std::chrono::milliseconds(300);
  const auto session = MustCreate(options);
  const absl::Status status = session->Join(layout_, x_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no answer"));
}

TEST_F(SessionTest, ALostServerIsGivenUpAfterTheServerTimeout) {
  auto server = std::make_unique<FakeServer>(kPlan, std::vector<FakeServer::Script>{[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    s.OpenRound(0);
    s.AwaitEnd();
    return grpc::Status::OK;
  }});
  SessionOptions options = Options(server->address());
  options.server_timeout = std::chrono::milliseconds(600);
  const auto session = MustCreate(options);
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  ASSERT_TRUE(session->NextRound().ok());
  server.reset();
  const absl::Status status = session->WaitCommit().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("lost server"));
  EXPECT_EQ(session->NextRound().status(), status) << "every later call says the same";
}

TEST_F(SessionTest, AServerThatComesBackOnItsPortIsFoundAgain) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  auto server = std::make_unique<FakeServer>(kPlan, std::vector<FakeServer::Script>{[&](FakeSession& s) {
    s.LetIn(v1::Welcome::STATE_UPLOAD);
    s.OpenRound(0);
    s.AwaitEnd();
    return grpc::Status::OK;
  }});
  const int port = server->port();
  const auto session = MustCreate(Options(server->address()));
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  Vote(session.get(), 0, ballot);
  server.reset();
  std::thread later([&] {
    usleep(300000);
    server = std::make_unique<FakeServer>(
        kPlan,
        std::vector<FakeServer::Script>{[&](FakeSession& s) {
          s.epoch = 2;
          s.LetIn(v1::Welcome::STATE_KEEP);
          s.OpenRound(0, 1);
          s.AwaitChunks(0, 1, kChunks);
          s.Decide(0, 1, verdict, 0.5f);
          s.AwaitEnd();
          return grpc::Status::OK;
        }},
        grpc::InsecureServerCredentials(), port);
  });
  const auto outcome = session->WaitCommit();
  later.join();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->commits, 1u);
}

TEST_F(SessionTest, WhatTheServerRefusesEndsTheSessionWithItsStatusAndIsNotRetried) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::UNAUTHENTICATED, grpc::StatusCode::PERMISSION_DENIED, grpc::StatusCode::FAILED_PRECONDITION,
        grpc::StatusCode::ALREADY_EXISTS, grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::INVALID_ARGUMENT}) {
    FakeServer server(kPlan, {[&](FakeSession& s) {
      s.AwaitJoin();
      return grpc::Status(code, "because of this");
    }});
    const auto session = MustCreate(Options(server.address()));
    const absl::Status status = session->Join(layout_, x_).status();
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
    welcome.mutable_welcome()->set_protocol(2);
    s.Send(welcome);
    s.AwaitEnd();
    return grpc::Status::OK;
  }});
  const auto session = MustCreate(Options(server.address()));
  const absl::Status status = session->Join(layout_, x_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the server speaks protocol 2, this worker 1"));
}

TEST_F(SessionTest, MalformedMessagesOfTheServerEndTheSession) {
  enum Fault { kNoWelcome, kBadChunkSize, kBadRunId, kWrongPayload, kUnknownCommit, kBadStepsize, kTinyMessages };
  for (const Fault fault :
       {kNoWelcome, kBadChunkSize, kBadRunId, kWrongPayload, kUnknownCommit, kBadStepsize, kTinyMessages}) {
    FakeServer server(kPlan, {[&](FakeSession& s) {
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
          chunk.mutable_verdict_chunk()->set_run_id(std::string(RunId::FromRandom(1, 2).bytes()));
          chunk.mutable_verdict_chunk()->set_payload("too short");
          s.Send(chunk);
        }
        if (fault == kUnknownCommit) commit.mutable_commit()->set_kind(v1::Commit::KIND_UNSPECIFIED);
        if (fault == kBadStepsize) commit.mutable_commit()->set_stepsize(std::numeric_limits<float>::infinity());
        s.Send(commit);
      }
      s.AwaitEnd();
      return grpc::Status::OK;
    }});
    const auto session = MustCreate(Options(server.address()));
    absl::Status status = session->Join(layout_, x_).status();
    if (status.ok()) status = session->NextRound().status();
    if (status.ok()) status = session->WaitCommit().status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("worker w1 cannot work with server")) << fault;
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kRefused) << fault;
    EXPECT_EQ(server.connections(), 1) << fault;
  }
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
  EXPECT_EQ(session->SendChunk(ChunkIndex(0), bits.data()).code(), absl::StatusCode::kFailedPrecondition);
  std::vector<float> wrong(kD + 1);
  EXPECT_EQ(session->Join(layout_, wrong).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(session->Join(layout_, x_).ok());
  EXPECT_EQ(session->Join(layout_, x_).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->WaitCommit().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->SendScalars({}).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(session->NextRound().ok());
  EXPECT_EQ(session->SendChunk(ChunkIndex(kChunks), bits.data()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(session->SendChunk(ChunkIndex(0), bits.data()).ok());
  EXPECT_EQ(session->SendChunk(ChunkIndex(0), bits.data()).code(), absl::StatusCode::kFailedPrecondition);
}

// ---- certificates, tokens, options --------------------------------------------------------------------------------

class SecureSessionTest : public SessionTest {
 protected:
  SecureSessionTest() : folder_(::testing::TempDir() + "session_test_" + std::to_string(getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~SecureSessionTest() override { std::filesystem::remove_all(folder_); }

  SessionOptions SecureOptions(const std::string& server, TestAuthority* trusts, const TestCertificate& certificate) {
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
  std::shared_ptr<grpc::ServerCredentials> ServerCredentials(const std::string& role = "signvote:role:server",
                                                             bool loopback = true) {
    const TestCertificate certificate =
        authority_.Issue({.dns_names = {"head"}, .uris = {role}, .loopback_addresses = loopback});
    return wire::MtlsServerCredentials({.ca_pem = authority_.pem(), .certificate_pem = certificate.certificate_pem,
                                        .key_pem = certificate.key_pem, .dns_names = {}, .uris = {}});
  }
  absl::Status JoinWith(const SessionOptions& options) {
    const Time start = Clock::System()->Now();
    const auto session = Session::Create(options, Clock::System());
    if (!session.ok()) return session.status();
    const absl::Status status = (*session)->Join(layout_, x_).status();
    EXPECT_LT(Clock::System()->Now() - start, std::chrono::seconds(4)) << "well within the connect timeout";
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
  const SessionOptions options = SecureOptions(server.address(), &authority_, WorkerCertificate(&authority_));
  const auto session = MustCreate(options);
  const auto run = session->Join(layout_, x_);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(server.uploaded(), x_);
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
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not accept certificate " + options.tls_certificate));
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
  const absl::Status status = JoinWith(SecureOptions(server.address(), &authority_, WorkerCertificate(&authority_)));
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
  const absl::Status status = JoinWith(SecureOptions(server.address(), &authority_, WorkerCertificate(&authority_)));
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
  const absl::Status status = JoinWith(SecureOptions(server.address(), &authority_, WorkerCertificate(&authority_)));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not speak TLS"));
}

TEST_F(SecureSessionTest, ATokenFileThatOthersCanReadIsRefused) {
  SessionOptions options = SecureOptions("127.0.0.1:1", &authority_, WorkerCertificate(&authority_));
  ASSERT_EQ(chmod(options.token_file.c_str(), 0644), 0);
  const absl::Status status = Session::Create(options, Clock::System()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("chmod 600"));
}

TEST_F(SecureSessionTest, UnusableOptionsAreRefusedBeforeAnythingIsDialled) {
  const SessionOptions good = SecureOptions("127.0.0.1:1", &authority_, WorkerCertificate(&authority_));
  auto code = [](const SessionOptions& options) {
    return Session::Create(options, Clock::System()).status().code();
  };
  EXPECT_EQ(code(good), absl::StatusCode::kOk);
  SessionOptions options = good;
  options.server = "nowhere";
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
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
  options.token_file = folder_ + "/absent";
  EXPECT_EQ(code(options), absl::StatusCode::kNotFound);
  options = Options("127.0.0.1:1");
  options.name = "not a name";
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options.name.clear();
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace signvote
