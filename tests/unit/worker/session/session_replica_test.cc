// Whose the replica is while another state comes in its place.

#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/worker/session/session_fixture.h"
#include "worker/session/session.h"

namespace signvote::testing {
namespace {

// Whoever saves it then has a replica of the run, should the state never come.
TEST_F(SessionTest, AReplicaThatIsTheRunsIsOfferedOnceBeforeAStateIsWrittenOverIt) {
  const std::vector<float> start = x_;
  Signal cut;
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away");
                            },
                            [&](FakeSession& s) {
                              s.AwaitJoin();
                              s.Send(s.Welcome(v1::Welcome::STATE_FETCH));
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            },
                            [&](FakeSession& s) {
                              s.AwaitJoin();
                              EXPECT_TRUE(cut.Await());
                              return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "evicted");
                            }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(StartValues(3.0f), 5, 0, 2500));
    cut.Set();
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut");
  });
  SessionOptions options = Options(server.address());
  std::vector<uint64_t> offered;
  std::vector<float> seen;
  options.before_transfer = [&](Round round) {
    offered.push_back(round.value());
    seen = x_;
  };
  const auto session = MustCreate(options);
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto next = session->NextRound();
  EXPECT_EQ(next.status().code(), absl::StatusCode::kPermissionDenied) << next.status();
  EXPECT_FALSE(session->replica_round().has_value());
  EXPECT_EQ(offered, std::vector<uint64_t>{0}) << "and not the half that came";
  EXPECT_EQ(seen, start);
  EXPECT_NE(x_, start);
}

TEST_F(SessionTest, AReplicaThatTheServerFoundToDifferIsTheRunsOnlyOnceTheStateHasCome) {
  const std::vector<float> state = StartValues(3.0f);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              v1::ServerMessage resync;
                              resync.mutable_resync()->set_round(0);
                              s.Send(resync);
                              s.Await(v1::WorkerMessage::kReady);
                              return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away");
                            },
                            [&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_FETCH);
                              s.OpenRound(5);
                              s.AwaitEnd();
                              return grpc::Status::OK;
                            }});
  server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
    out->Write(StatePart(state, 5, 0, kD));
    return grpc::Status::OK;
  });
  SessionOptions options = Options(server.address());
  std::vector<uint64_t> offered;
  std::vector<std::optional<Round>> rounds;
  Session* asked = nullptr;
  options.before_transfer = [&](Round round) {
    offered.push_back(round.value());
    rounds.push_back(asked->replica_round());
  };
  const auto session = MustCreate(options);
  asked = session.get();
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  const auto next = session->NextRound();
  ASSERT_TRUE(next.ok() && next->has_value()) << next.status();
  EXPECT_EQ((*next)->round.value(), 5u);
  EXPECT_EQ(offered, std::vector<uint64_t>{5}) << "the one that differed was not";
  EXPECT_EQ(rounds, std::vector<std::optional<Round>>{Round(5)});
  EXPECT_EQ(x_, state);
  server.Stop();
}

// Of a device's memory a second one beside the first is what may not be there.
TEST_F(SessionTest, RoomForX0ThatIsThereIsNotTakenOnceMore) {
  class Counting final : public HostReplicaMemory {
   public:
    using HostReplicaMemory::HostReplicaMemory;
    absl::Status KeepX0() override {
      ++times;
      return HostReplicaMemory::KeepX0();
    }
    int times = 0;
  };
  for (const bool before : {false, true}) {
    const std::vector<float> state = StartValues(2.0f), x0 = StartValues(3.0f);
    FakeServer server(kPlan, {[&](FakeSession& s) {
                        s.needs_x0 = true;
                        s.LetIn(v1::Welcome::STATE_FETCH);
                        s.OpenRound(4);
                        s.AwaitEnd();
                        return grpc::Status::OK;
                      }});
    server.SetFetch([&](grpc::ServerWriter<v1::StateChunk>* out) {
      out->Write(StatePart(state, 4, 0, kD));
      out->Write(StatePart(x0, 0, 0, kD, 1));
      return grpc::Status::OK;
    });
    Counting memory(x_);
    if (before) ASSERT_TRUE(memory.KeepX0().ok());
    const auto session = MustCreate(Options(server.address()));
    ASSERT_TRUE(JoinRun(session.get(), &memory).ok());
    EXPECT_EQ(memory.times, 1) << before;
    EXPECT_TRUE(memory.keeps_x0());
  }
}

}  // namespace
}  // namespace signvote::testing
