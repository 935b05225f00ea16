// How a session ends with its run, however much of the run's end it has heard of.

#include "worker/session/session.h"

#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "tests/unit/worker/session/session_fixture.h"

namespace signvote::testing {
namespace {

TEST_F(SessionTest, AFinishedRunsMissingCommitIsFetchedOverANewConnection) {
  const std::vector<uint8_t> ballot = RandomBits(1), verdict = RandomBits(2);
  std::optional<uint64_t> joined_at, digest;
  FakeServer server(
      kPlan, {[&](FakeSession& s) {
                s.LetIn(v1::Welcome::STATE_UPLOAD);
                s.OpenRound(0);
                s.AwaitChunks(0, 0, kChunks);
                s.Finish(1);
                s.AwaitEnd();
                return grpc::Status::OK;
              },
              [&](FakeSession& s) {
                joined_at = s.LetIn(v1::Welcome::STATE_KEEP).round();
                s.Decide(0, 0, verdict, 0.5f);
                s.Finish(1);
                digest = s.Await(v1::WorkerMessage::kReplicaDigest).replica_digest().digest();
                return grpc::Status::OK;
              }});
  const std::vector<float> before = x_;
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_TRUE(outcome->finished);
  const auto next = session->NextRound();
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_FALSE(next->has_value());
  EXPECT_TRUE(session->finished());
  ExpectStepped(x_, before, verdict, 0.5f);
  server.Stop();
  EXPECT_EQ(joined_at, 0u);
  EXPECT_EQ(digest, *memory_.Digest());
}

TEST_F(SessionTest, ARunThatIsOverIsNotLookedFor) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      return grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED,
                                          "waited 300 s for workers in round 0 (--wait-timeout)");
                    }});
  const auto session = MustCreate(Options(server.address()));
  absl::Status status = JoinRun(session.get(), &memory_).status();
  if (status.ok()) status = session->NextRound().status();
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kWaitTimeout) << status;
  EXPECT_EQ(std::string(status.message()),
            "server " + server.address() +
                " has ended the run: waited 300 s for workers in round 0 (--wait-timeout)");
  EXPECT_EQ(server.connections(), 1);
}

TEST_F(SessionTest, ARunThatEndedBadlyEndsItsWorkersWithTheServersExitCode) {
  for (const ExitCode code : kRunEnds) {
    FakeServer server(kPlan, {[&](FakeSession& s) {
                        s.LetIn(v1::Welcome::STATE_UPLOAD);
                        s.context()->AddTrailingMetadata("signvote-exit-code",
                                                         std::to_string(static_cast<int>(code)));
                        return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                                            "diverged: 5 rounds");
                      }});
    const auto session = MustCreate(Options(server.address()));
    absl::Status status = JoinRun(session.get(), &memory_).status();
    if (status.ok()) status = session->NextRound().status();
    EXPECT_EQ(ExitCodeFor(status), code) << status;
    EXPECT_EQ(std::string(status.message()),
              "server " + server.address() + " has ended the run: diverged: 5 rounds");
    EXPECT_EQ(server.connections(), 1);
  }
}

// What only the digests of the finished run have shown.
TEST_F(SessionTest, AFinishedRunWhoseReplicasDifferFromTheServersEndsItsWorkersWithThat) {
  FakeServer server(kPlan, {[&](FakeSession& s) {
                      s.LetIn(v1::Welcome::STATE_UPLOAD);
                      s.Finish(0);
                      s.Await(v1::WorkerMessage::kReplicaDigest);
                      s.context()->AddTrailingMetadata("signvote-exit-code", "9");
                      return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                                          "most replicas differ");
                    }});
  const auto session = MustCreate(Options(server.address()));
  absl::Status status = JoinRun(session.get(), &memory_).status();
  if (status.ok()) status = session->NextRound().status();
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kReplicaMismatch) << status;
  EXPECT_EQ(std::string(status.message()),
            "server " + server.address() + " has ended the run: most replicas differ");
  EXPECT_FALSE(session->finished());
  EXPECT_EQ(server.connections(), 1);
}

TEST_F(SessionTest, NoOtherExitCodeOfAServerIsTaken) {
  for (const char* text : {"0", "3", "-8", "08", "88", ""}) {
    FakeServer server(kPlan, {[&](FakeSession& s) {
                        s.LetIn(v1::Welcome::STATE_UPLOAD);
                        s.context()->AddTrailingMetadata("signvote-exit-code", text);
                        return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "no");
                      }});
    const auto session = MustCreate(Options(server.address()));
    absl::Status status = JoinRun(session.get(), &memory_).status();
    if (status.ok()) status = session->NextRound().status();
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kRefused) << "'" << text << "': " << status;
  }
}

TEST_F(SessionTest, AServerThatGoesWithTheLastCommitsIsNamed) {
  const std::vector<uint8_t> ballot = RandomBits(1);
  FakeServer server(kPlan, {[&](FakeSession& s) {
                              s.LetIn(v1::Welcome::STATE_UPLOAD);
                              s.OpenRound(0);
                              s.AwaitChunks(0, 0, kChunks);
                              s.Finish(1);
                              return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
                            },
                            [&](FakeSession&) {
                              return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                                                  "another run");
                            }});
  const auto session = MustCreate(Options(server.address()));
  ASSERT_TRUE(JoinRun(session.get(), &memory_).ok());
  Vote(session.get(), 0, ballot);
  const auto outcome = session->WaitCommit();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_TRUE(outcome->finished);
  const absl::Status status = session->NextRound().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(std::string(status.message()),
            "server " + server.address() +
                " has ended the run and is gone; this worker's replica stands at round 0 of 1");
}

}  // namespace
}  // namespace signvote::testing
