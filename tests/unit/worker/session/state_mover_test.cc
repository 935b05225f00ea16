#include "worker/session/state_mover.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/unit/worker/session/run_messages.h"

namespace signvote::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Moved = StateMover::Moved;

constexpr uint64_t kD = 1500;

// A connection on which transfers do what the test says.
class FakeLine : public TransferLine {
 public:
  absl::Status PauseBeforeTransfer(uint64_t, Duration pause) override {
    pauses.push_back(pause);
    return pause_status;
  }
  std::shared_ptr<TransferStop> BeginTransfer(uint64_t connection) override {
    if (over) return nullptr;
    begun.push_back(connection);
    return stop = std::make_shared<TransferStop>();
  }
  absl::Status Fetch(const StateEvent&, TransferStop*, bool, ReplicaMemory*,
                     const std::function<absl::Status(const FetchedPart&)>& on_part,
                     wire::SocketBytes* moved) override {
    moved->received = 4 * kD;
    return fetch(on_part);
  }
  absl::Status Upload(const StateEvent&, TransferStop*, ReplicaMemory*,
                      wire::SocketBytes*) override {
    ++uploads;
    return upload_status;
  }
  bool Leaving() const override { return leaving; }
  void TransferSucceeded(uint64_t, Round stands_at) override { succeeded.push_back(stands_at); }
  void TransferFailed(uint64_t, absl::Status why) override {
    failed.push_back(std::string(why.message()));
  }

  std::vector<Duration> pauses;
  absl::Status pause_status, upload_status;
  bool over = false, leaving = false;
  std::vector<uint64_t> begun;
  std::shared_ptr<TransferStop> stop;
  std::function<absl::Status(const std::function<absl::Status(const FetchedPart&)>&)> fetch;
  int uploads = 0;
  std::vector<Round> succeeded;
  std::vector<std::string> failed;
};

class StateMoverTest : public ::testing::Test {
 protected:
  StateMoverTest() : x_(kD, 1.0f), memory_(x_), replica_(&layout_, &memory_, Replica::X0::kUnused) {
    line_.fetch = [](const auto& on_part) {
      return on_part({.round = Round(7), .first = 0, .count = kD});
    };
  }
  static StateEvent Event(TransferAction::Kind kind = TransferAction::Kind::kFetch) {
    return {.kind = kind, .connection = 3, .ticket = "ticket"};
  }
  absl::StatusOr<Moved> Fetch() { return mover_.Move(Event()); }
  absl::StatusOr<Moved> Upload() { return mover_.Move(Event(TransferAction::Kind::kUpload)); }
  static CommitEvent None(uint64_t round) {
    CommitEvent commit;
    commit.round = Round(round);
    commit.kind = CommitKind::kNone;
    return commit;
  }

  const Layout layout_ = SmallLayout();
  std::vector<float> x_;
  HostReplicaMemory memory_;
  Replica replica_;
  FakeLine line_;
  FakeClock clock_;
  std::vector<std::string> log_lines_;
  const SessionLog log_ = [this](LogLevel, std::string_view text, std::initializer_list<LogField>) {
    log_lines_.emplace_back(text);
  };
  int begins_ = 0;
  std::vector<uint64_t> applied_, let_go_;
  std::function<absl::Status()> arrived_ = [] { return absl::OkStatus(); };
  StateMover mover_{
      &line_,
      &clock_,
      &log_,
      {.server = "head:9", .first_pause = std::chrono::seconds(1), .verdict_bytes = 100},
      &replica_,
      &memory_,
      {.begins = [this] { ++begins_; },
       .take_arrived = [this] { return arrived_(); },
       .apply =
           [this](const CommitEvent& commit) {
             applied_.push_back(commit.round.value());
             return replica_.Apply(commit);
           },
       .let_go = [this](const CommitEvent& commit) { let_go_.push_back(commit.round.value()); }}};
};

TEST_F(StateMoverTest, AStateThatCameIsSaidWithItsRound) {
  EXPECT_EQ(*Fetch(), Moved::kDone);
  EXPECT_EQ(begins_, 1);
  EXPECT_THAT(line_.begun, ElementsAre(3));
  EXPECT_THAT(line_.succeeded, ElementsAre(Round(7)));
  EXPECT_THAT(line_.failed, IsEmpty());
  EXPECT_TRUE(replica_.level());
  EXPECT_FALSE(mover_.fetching());
  EXPECT_THAT(log_lines_, ElementsAre("fetched the state of the run"));
}

TEST_F(StateMoverTest, CommitsThatComeMeanwhileMoveWhatIsThere) {
  int looks = 0;
  arrived_ = [&] {
    EXPECT_TRUE(mover_.fetching());
    if (++looks == 2) {
      mover_.AddCommit(None(7));
      mover_.AddCommit(None(8));
    }
    return absl::OkStatus();
  };
  line_.fetch = [](const auto& on_part) {
    const absl::Status first = on_part({.round = Round(7), .first = 0, .count = 1000});
    if (!first.ok()) return first;
    return on_part({.round = Round(8), .first = 1000, .count = kD - 1000});
  };
  EXPECT_EQ(*Fetch(), Moved::kDone);
  EXPECT_THAT(applied_, ElementsAre(7, 8));
  EXPECT_THAT(let_go_, ElementsAre(7, 8));
  EXPECT_THAT(line_.succeeded, ElementsAre(Round(9)));
}

TEST_F(StateMoverTest, OwnParametersAreUploadedUnlessTheyAreTrained) {
  EXPECT_EQ(*Upload(), Moved::kDone);
  EXPECT_EQ(line_.uploads, 1);
  EXPECT_THAT(line_.succeeded, ElementsAre(Round(0)));
  mover_.Touched();
  const absl::Status status = Upload().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("server head:9 asks this worker for initial"));
  EXPECT_EQ(line_.uploads, 1);
}

TEST_F(StateMoverTest, AFetchedStateIsNotUploaded) {
  EXPECT_TRUE(Fetch().ok());
  EXPECT_EQ(Upload().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(StateMoverTest, WhatTheRunStartsWithIsUploadedAlsoWhereItWasFetchedUntilACommitMovesIt) {
  line_.fetch = [](const auto& on_part) {
    return on_part({.round = Round(0), .first = 0, .count = kD});
  };
  EXPECT_EQ(*Fetch(), Moved::kDone);
  EXPECT_EQ(*Upload(), Moved::kDone);
  EXPECT_EQ(*Upload(), Moved::kDone) << "as often as servers begin again";
  EXPECT_EQ(line_.uploads, 2);
  mover_.Touched();
  EXPECT_EQ(Upload().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(StateMoverTest, OverAConnectionThatIsGoneNothingBegins) {
  line_.over = true;
  EXPECT_EQ(*Fetch(), Moved::kDone);
  EXPECT_EQ(begins_, 0);
  EXPECT_THAT(line_.pauses, IsEmpty());
  line_.over = false;
  EXPECT_TRUE(Fetch().ok());
  EXPECT_THAT(line_.pauses, IsEmpty()) << "what did not begin was not in vain";
}

TEST_F(StateMoverTest, AFailureCostsTheConnectionAndFiveInARowEndIt) {
  line_.fetch = [](const auto&) { return absl::UnavailableError("cut"); };
  for (int i = 1; i < TransferRetries::kInVainMax; ++i) EXPECT_EQ(*Fetch(), Moved::kDone);
  const absl::Status status = Fetch().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(status.message()),
            "state transfer with head:9 failed 5 times in a row: cut");
  EXPECT_EQ(line_.failed.size(), 5u);
  EXPECT_EQ(line_.failed[0], "state transfer failed: cut");
  EXPECT_THAT(line_.succeeded, IsEmpty());
  EXPECT_EQ(replica_.received(), 0u);
  using std::chrono::seconds;
  EXPECT_THAT(line_.pauses, ElementsAre(seconds(1), seconds(2), seconds(4), seconds(8)));
}

TEST_F(StateMoverTest, AWishForAnotherTransferEndsTheOneThatRuns) {
  arrived_ = [] { return absl::AbortedError("the server asks for another state transfer"); };
  EXPECT_EQ(*Fetch(), Moved::kDone);
  EXPECT_EQ(line_.failed.size(), 1u);
}

TEST_F(StateMoverTest, AStateThatFallsBehindAgainAndAgainSaysWhatWouldHelp) {
  line_.fetch = [this](const auto& on_part) {
    clock_.Advance(std::chrono::seconds(4));
    const absl::Status first = on_part({.round = Round(7), .first = 0, .count = 1000});
    if (!first.ok()) return first;
    for (uint64_t round = 7; round < 10; ++round) mover_.AddCommit(None(round));
    return on_part({.round = Round(10), .first = 1000, .count = kD - 1000});
  };
  for (int i = 0; i < TransferRetries::kInVainMax; ++i) EXPECT_EQ(*Fetch(), Moved::kDone);
  const absl::Status status = Fetch().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("(4 s for 3 rounds)"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--catch-up-bytes of at least 400"));
  EXPECT_EQ(begins_, TransferRetries::kInVainMax);
  mover_.RoundOpened();
  EXPECT_TRUE(Fetch().ok()) << "a round that opened makes up for it";
}

TEST_F(StateMoverTest, InterruptedBeforeItBeganItIsPutOff) {
  line_.fetch = [](const auto&) { return absl::UnavailableError("cut"); };
  EXPECT_EQ(*Fetch(), Moved::kDone);
  line_.pause_status = absl::CancelledError("interrupted");
  EXPECT_EQ(*Fetch(), Moved::kPutOff);
  EXPECT_EQ(begins_, 1);
}

TEST_F(StateMoverTest, InterruptedWhileItRunsItIsGivenUpAndDoesNotCount) {
  line_.fetch = [this](const auto&) {
    line_.stop->Interrupted();
    return absl::CancelledError("broken off");
  };
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(line_.failed.size(), 1u) << "its ticket is used up";
  EXPECT_THAT(log_lines_, IsEmpty());
  line_.fetch = [](const auto& on_part) {
    return on_part({.round = Round(7), .first = 0, .count = kD});
  };
  EXPECT_TRUE(Fetch().ok());
  EXPECT_THAT(line_.pauses, IsEmpty());
}

TEST_F(StateMoverTest, WhoLeavesKeepsTheConnectionForTheGoodbye) {
  line_.fetch = [this](const auto&) {
    line_.leaving = true;
    line_.stop->Stop();
    return absl::CancelledError("broken off");
  };
  EXPECT_EQ(*Fetch(), Moved::kDone);
  EXPECT_THAT(line_.failed, IsEmpty());
  EXPECT_THAT(log_lines_, IsEmpty());
}

}  // namespace
}  // namespace signvote::testing
