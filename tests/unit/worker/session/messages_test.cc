#include "worker/session/messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "proto/wire/wire.h"

namespace signvote {
namespace {

using testing::HasSubstr;

constexpr uint64_t kD = 10'000;
constexpr uint64_t kMessageBytes = 1 << 20;

v1::Welcome GoodWelcome() {
  v1::Welcome welcome;
  welcome.set_protocol(wire::kProtocolVersion);
  welcome.set_run_id(std::string(16, '\7'));
  welcome.set_chunk_coordinates(1024);
  welcome.set_seed(5);
  welcome.set_rounds_max(300);
  welcome.set_digest_every(50);
  welcome.set_message_bytes_max(kMessageBytes);
  welcome.mutable_direction()->set_kind(v1::Direction::KIND_LION);
  welcome.mutable_direction()->set_beta(0.5f);
  welcome.mutable_direction()->set_beta2(0.75f);
  return welcome;
}

TEST(MessagesTest, AWelcomeSaysWhatTheRunIs) {
  const absl::StatusOr<RunInfo> run = RunFrom(GoodWelcome(), kD, kMessageBytes);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->run_id, *RunId::FromBytes(std::string(16, '\7')));
  EXPECT_EQ(run->seed, 5u);
  EXPECT_EQ(run->rounds_max, 300u);
  EXPECT_EQ(run->digest_every, 50u);
  EXPECT_EQ(run->plan.chunks(), 10u);
  EXPECT_EQ(run->direction.kind, DirectionKind::kLion);
  EXPECT_EQ(run->direction.beta, 0.5f);
  EXPECT_EQ(run->direction.beta2, 0.75f);
}

TEST(MessagesTest, AWelcomeThatCannotBeFollowedIsRefusedByWhatIsWrong) {
  const auto refused = [](absl::StatusCode code, const char* words,
                          const std::function<void(v1::Welcome*)>& change,
                          uint64_t message_bytes = kMessageBytes) {
    v1::Welcome welcome = GoodWelcome();
    change(&welcome);
    const absl::Status status = RunFrom(welcome, kD, message_bytes).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kUpgrade = absl::StatusCode::kFailedPrecondition;
  refused(kUpgrade, "protocol 2", [](v1::Welcome* w) { w->set_protocol(2); });
  refused(kInvalid, "", [](v1::Welcome* w) { w->set_run_id("short"); });
  refused(kInvalid, "0 coordinates", [](v1::Welcome* w) { w->set_chunk_coordinates(0); });
  refused(kInvalid, "1000 coordinates", [](v1::Welcome* w) { w->set_chunk_coordinates(1000); });
  refused(kUpgrade, "direction 99", [](v1::Welcome* w) {
    w->mutable_direction()->set_kind(static_cast<v1::Direction::Kind>(99));
  });
  refused(kUpgrade, "server 100", [](v1::Welcome* w) { w->set_message_bytes_max(100); });
  refused(
      kUpgrade, "worker 100", [](v1::Welcome*) {}, 100);
}

TEST(MessagesTest, ACommitThatThisVersionCannotApplyIsRefused) {
  v1::Commit good;
  good.set_kind(v1::Commit::KIND_STEP);
  good.set_rho(1);
  good.set_stepsize(0.25f);
  EXPECT_TRUE(CheckCommit(good).ok());
  good.set_stepsize(0);
  EXPECT_TRUE(CheckCommit(good).ok()) << "a stepsize of zero is one";

  v1::Commit commit = good;
  commit.set_kind(v1::Commit::KIND_UNSPECIFIED);
  EXPECT_EQ(CheckCommit(commit).code(), absl::StatusCode::kFailedPrecondition);
  commit = good;
  commit.set_rho(0.5f);
  EXPECT_EQ(CheckCommit(commit).code(), absl::StatusCode::kFailedPrecondition);
  for (const float stepsize :
       {-1e-3f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    commit = good;
    commit.set_stepsize(stepsize);
    EXPECT_EQ(CheckCommit(commit).code(), absl::StatusCode::kInvalidArgument) << stepsize;
  }
}

TEST(MessagesTest, ATicketHoldsWhatARoundOpenSays) {
  v1::RoundOpen open;
  open.set_round(7);
  open.set_data_step(8);
  open.set_share(9);
  open.set_members(3);
  open.set_probe(true);
  open.set_role(v1::RoundOpen::ROLE_OBSERVER);
  const RoundTicket observer = TicketFrom(open);
  EXPECT_EQ(observer.round, Round(7));
  EXPECT_EQ(observer.data_step, DataStep(8));
  EXPECT_EQ(observer.share, Share(9));
  EXPECT_EQ(observer.members, 3u);
  EXPECT_TRUE(observer.probe);
  EXPECT_TRUE(observer.observer);
  open.set_role(v1::RoundOpen::ROLE_MEMBER);
  open.set_probe(false);
  EXPECT_FALSE(TicketFrom(open).observer);
  EXPECT_FALSE(TicketFrom(open).probe);
}

TEST(MessagesTest, ALayoutIsSentWholeWithItsDigest) {
  const Layout layout =
      *Layout::Make({{.name = "w", .shape = {2, 3}, .step_scale = 0.5f, .weight_decay = 0.1f},
                     {.name = "b", .shape = {}}});
  v1::Layout sent;
  FillLayout(layout, &sent);
  EXPECT_EQ(sent.digest(), layout.digest());
  ASSERT_EQ(sent.tensors_size(), 2);
  EXPECT_EQ(sent.tensors(0).name(), "w");
  EXPECT_THAT(sent.tensors(0).shape(), testing::ElementsAre(2, 3));
  EXPECT_EQ(sent.tensors(0).step_scale(), 0.5f);
  EXPECT_EQ(sent.tensors(0).weight_decay(), 0.1f);
  EXPECT_EQ(sent.tensors(1).name(), "b");
  EXPECT_EQ(sent.tensors(1).shape_size(), 0);
}

}  // namespace
}  // namespace signvote
