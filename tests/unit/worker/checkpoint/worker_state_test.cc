// Goal:   a worker that goes on from its state makes the ballots that it would have made, bit for bit,
//         with their scalars; and one whose state is not the replica's says so and uses what it can.
// Method: two lives of one worker between a fake session and gradients that are functions of round and
//         replica: one that lasts, and one that is cut in the middle and goes on from bytes.
#include "worker/checkpoint/worker_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/bits.h"
#include "common/rng.h"
#include "common/status.h"
#include "tests/unit/worker/vote/fake_session.h"
#include "worker/vote/local_steps.h"

namespace signvote {
namespace {

using testing::HasSubstr;

constexpr uint64_t kD = 1300;
constexpr uint64_t kRounds = 12, kCut = 6;

RunInfo RunOf(DirectionConfig direction) {
  RunInfo run;
  run.run_id = RunId::FromRandom(1, 2);
  run.seed = 7;
  run.layout = *Layout::Make({{.name = "a", .shape = {300}}, {.name = "b", .shape = {1000}}});
  run.plan = ChunkPlan(kD, 512);
  run.ballot_plan = run.commit_plan = PayloadPlan(run.plan);
  run.direction = direction;
  run.probes = run.keeps_gradients = true;
  return run;
}

// A ballot as it was sent: its bits and every scalar.
struct Sent {
  std::vector<uint8_t> bits;
  std::vector<double> scalars;
  std::vector<std::string> events;
  bool operator==(const Sent&) const = default;
};

struct Life {
  explicit Life(const RunInfo& of, uint64_t seed = 3)
      : run(of), x(kD), g(kD), h(kD), kept_x(kD), kept_g(kD) {
    Rng start(0, seed);
    for (float& value : x) value = static_cast<float>(start.Uniform() - 0.5);
    session.plan = run.plan;
    if (run.local_steps_max > 1) {
      EXPECT_TRUE(replica.KeepX0().ok());
      EXPECT_TRUE(replica.WriteX0(0, x).ok());
      y = PointersInto(run.layout, x.data());
      source = std::make_unique<LocalStepSource>(TensorPointers(y));
    } else {
      source = std::make_unique<GradientSource>();
    }
    voter = *Voter::Make(run, &session, &replica, &device, source.get(), Clock::System(),
                         {.can_probe = true, .can_keep_gradient = true});
  }
  std::vector<const float*> Pointers(const std::vector<float>& values) const {
    return PointersInto<const float>(run.layout, values.data());
  }
  // Of a minibatch at these parameters.
  static void Gradient(uint64_t step, const std::vector<float>& at, std::vector<float>* out) {
    Rng noise(step, 5);
    for (size_t i = 0; i < at.size(); ++i)
      (*out)[i] = at[i] + static_cast<float>(noise.Uniform() - 0.5);
  }
  // The commit moves every replica as a function of the round.
  void Move(uint64_t round) {
    Rng step(round, 9);
    for (size_t i = 0; i < kD; ++i) {
      const bool up = step.Next() % 2 == 0;
      x[i] += up ? 0.125f : -0.125f;
      SetBit(verdict.data(), i, !up);
    }
  }
  Sent Vote(RoundTicket ticket, CommitKind kind = CommitKind::kStep) {
    const uint64_t round = ticket.round.value();
    session.events.clear();
    session.ballots.clear();
    EXPECT_TRUE(voter->Begin(ticket).ok());
    if (voter->takes_steps()) {
      for (uint64_t step = ticket.data_step.value(); voter->wants_gradient(); ++step) {
        Gradient(step, x, &g);
        EXPECT_TRUE(voter->SetGradient(Pointers(g)).ok());
        EXPECT_TRUE(voter->GradientReady(0, kD).ok());
        EXPECT_TRUE(voter->EndGradient(1.5, 1).ok());
      }
      EXPECT_TRUE(voter->FinishSteps().ok());
    } else {
      Gradient(round, x, &g);
      if (voter->wants_probe()) {
        Gradient(round, kept_x, &h);
        EXPECT_TRUE(voter->SetProbe(Pointers(h)).ok());
      } else if (voter->wants_change()) {
        EXPECT_TRUE(voter->SetLastGradient(Pointers(kept_g)).ok());
      }
      EXPECT_TRUE(voter->SetGradient(Pointers(g)).ok());
      EXPECT_TRUE(voter->GradientReady(0, kD).ok());
      EXPECT_TRUE(voter->Finish(2.5, 8).ok());
    }
    if (voter->keeps_previous()) {
      kept_x = x;
      EXPECT_TRUE(voter->PreviousKept().ok());
    }
    if (voter->keeps_gradient()) {
      kept_g = g;
      EXPECT_TRUE(voter->GradientKept().ok());
    }
    EXPECT_FALSE(voter->settled());
    session.on_wait = [this, round, kind] {
      if (kind == CommitKind::kStep) Move(round);
    };
    session.outcome =
        CommitOutcome{.next_round = Round(round + 1),
                      .commits = 1,
                      .kind = kind,
                      .stepsize = 0.125f,
                      .decay_step = 0.125f,
                      .verdict = kind == CommitKind::kStep ? verdict.data() : nullptr};
    EXPECT_TRUE(voter->Wait().ok());
    EXPECT_TRUE(voter->settled());
    Sent sent{.bits = session.ballots, .scalars = {}, .events = session.events};
    sent.scalars = session.scalars.wanted;
    for (double& value : sent.scalars) value = std::isnan(value) ? -1234.5 : value;
    sent.scalars.push_back(session.scalars.loss);
    sent.scalars.push_back(session.scalars.g_l1);
    sent.scalars.push_back(session.scalars.g_l2_squared);
    for (const float mean : session.scalars.displacement_mean) sent.scalars.push_back(mean);
    return sent;
  }
  StateOwner owner() {
    return {.run = &run, .replica = &replica, .device = &device, .voter = voter.get()};
  }
  WorkerState Take(uint64_t round, uint64_t main_round) {
    const std::vector<const float*> previous = Pointers(kept_x), gradient = Pointers(kept_g);
    auto state = TakeWorkerState(
        owner(), {.previous = previous, .gradient = gradient},
        {.worker = "w1", .round = Round(round), .share = Share(3), .main_round = main_round});
    EXPECT_TRUE(state.ok()) << Describe(state.status());
    return *std::move(state);
  }
  absl::StatusOr<Resumed> Give(const WorkerState& state, uint64_t round) {
    const auto into = [](std::vector<float>* values) {
      return [values](std::span<const float> from) {
        values->assign(from.begin(), from.end());
        return absl::OkStatus();
      };
    };
    return GiveWorkerState(state, owner(), Round(round),
                           {.previous = into(&kept_x), .gradient = into(&kept_g)});
  }

  const RunInfo run;
  std::vector<float> x, g, h, kept_x, kept_g;
  std::vector<uint8_t> verdict = std::vector<uint8_t>(BytesForBits(kD));
  std::vector<float*> y;
  HostReplicaMemory replica{std::span<float>(x)};
  HostDevice device;
  FakeSession session;
  std::unique_ptr<BallotSource> source;
  std::unique_ptr<Voter> voter;
};

WorkerState ThroughBytes(const WorkerState& state) {
  const std::string bytes = EncodeWorkerState(state);
  auto back = DecodeWorkerState(std::as_bytes(std::span(bytes.data(), bytes.size())));
  EXPECT_TRUE(back.ok()) << Describe(back.status());
  return *std::move(back);
}

RoundTicket TicketOf(uint64_t round, std::vector<ScalarKind> wanted) {
  return {.round = Round(round),
          .data_step = DataStep(round),
          .share = Share(3),
          .wanted = std::move(wanted),
          .replica_moved = round == 0};
}

// Every rule's scalars: probes, the change since the last gradient, the last verdict's inner product.
const std::vector<ScalarKind> kWanted[] = {
    {ScalarKind::kPrevInner, ScalarKind::kProbeL1},
    {ScalarKind::kPrevInner, ScalarKind::kProbeInner},
    {ScalarKind::kChangeL1, ScalarKind::kGradientMax},
};

void ExpectTheSame(const DirectionConfig& direction, const std::vector<ScalarKind>& wanted,
                   uint64_t cut) {
  const RunInfo run = RunOf(direction);
  Life lasting(run), first(run);
  std::vector<Sent> sent;
  for (uint64_t round = 0; round < kRounds; ++round)
    sent.push_back(lasting.Vote(TicketOf(round, wanted)));
  for (uint64_t round = 0; round < cut; ++round) first.Vote(TicketOf(round, wanted));
  const WorkerState state = ThroughBytes(first.Take(cut, cut));
  Life second(run);
  second.x = first.x;  // as the state transfer brings it
  const auto resumed = second.Give(state, cut);
  ASSERT_TRUE(resumed.ok()) << Describe(resumed.status());
  EXPECT_EQ(resumed->how, Resumed::How::kExactly);
  EXPECT_EQ(resumed->age_rounds, 0u);
  for (uint64_t round = cut; round < kRounds; ++round) {
    RoundTicket ticket = TicketOf(round, wanted);
    ticket.replica_moved = round == cut;
    EXPECT_TRUE(second.Vote(ticket) == sent[round]) << "round " << round;
  }
  EXPECT_EQ(second.x, lasting.x);
}

TEST(WorkerStateTest, TheBallotsAreThoseOfAWorkerThatLasted) {
  for (const std::vector<ScalarKind>& wanted : kWanted) {
    ExpectTheSame({.kind = DirectionKind::kSignSgd}, wanted, kCut);
    ExpectTheSame({.kind = DirectionKind::kSignum}, wanted, kCut);
    ExpectTheSame({.kind = DirectionKind::kLion, .state_dtype = StateDtype::kBf16}, wanted, kCut);
    ExpectTheSame({.kind = DirectionKind::kAdam, .beta2 = 0.999, .envelope = Envelope::kCoordinate},
                  wanted, kCut);
    ExpectTheSame({.kind = DirectionKind::kStoSign, .envelope = Envelope::kCoordinate}, wanted, 1);
    ExpectTheSame({.kind = DirectionKind::kNesterovSignum}, wanted, kRounds - 1);
  }
}

// Without what the checkpoint adds beside the planes the scalars would differ: the test can fail.
TEST(WorkerStateTest, WithoutTheCarriedPartsTheScalarsAreOthers) {
  const RunInfo run = RunOf({.kind = DirectionKind::kSignum});
  Life lasting(run), first(run), second(run);
  Sent expected;
  for (uint64_t round = 0; round <= kCut; ++round)
    expected = lasting.Vote(TicketOf(round, kWanted[0]));
  for (uint64_t round = 0; round < kCut; ++round) first.Vote(TicketOf(round, kWanted[0]));
  WorkerState state = first.Take(kCut, kCut);
  std::erase_if(state.sections, [](const Section& s) {
    return s.kind == SectionKind::kVerdict || s.kind == SectionKind::kPreviousReplica;
  });
  second.x = first.x;
  ASSERT_TRUE(second.Give(state, kCut).ok());
  RoundTicket ticket = TicketOf(kCut, kWanted[0]);
  ticket.replica_moved = true;
  const Sent sent = second.Vote(ticket);
  EXPECT_EQ(sent.bits, expected.bits);
  EXPECT_NE(sent.scalars, expected.scalars);
}

RoundTicket Trial(uint64_t round, BallotStart start) {
  return {.round = Round(round),
          .data_step = DataStep(8 * round),
          .share = Share(3),
          .wanted = {ScalarKind::kLocalInner, ScalarKind::kLocalProduct},
          .local_steps = 8,
          .eta_first = 0.25f,
          .eta_last = 0.125f,
          .start = start,
          .replica_moved = round == 0};
}

TEST(WorkerStateTest, ATrialOfLocalStepsContinuesWhereItEnded) {
  RunInfo run = RunOf({.kind = DirectionKind::kLion});
  run.probes = run.keeps_gradients = false;
  run.needs_x0 = true;
  run.local_steps_max = 8;
  for (uint64_t cut = 1; cut < 5; ++cut) {
    Life lasting(run), first(run), second(run);
    const auto ticket = [](uint64_t round) {
      return Trial(round, round == 0  ? BallotStart::kX0
                          : round < 4 ? BallotStart::kContinue
                                      : BallotStart::kReplica);
    };
    const auto kind = [](uint64_t round) {
      return round < 4 ? CommitKind::kNone : CommitKind::kStep;
    };
    std::vector<Sent> sent;
    for (uint64_t round = 0; round < 6; ++round)
      sent.push_back(lasting.Vote(ticket(round), kind(round)));
    for (uint64_t round = 0; round < cut; ++round) first.Vote(ticket(round), kind(round));
    const WorkerState state = ThroughBytes(first.Take(cut, 0));
    EXPECT_EQ(state.Find(SectionKind::kContinuation) != nullptr, cut <= 4);
    second.x = first.x;
    const auto resumed = second.Give(state, cut);
    ASSERT_TRUE(resumed.ok()) << Describe(resumed.status());
    EXPECT_EQ(resumed->how, Resumed::How::kExactly);
    for (uint64_t round = cut; round < 6; ++round) {
      RoundTicket open = ticket(round);
      open.replica_moved = round == cut;
      EXPECT_TRUE(second.Vote(open, kind(round)) == sent[round])
          << "cut " << cut << " round " << round;
    }
    EXPECT_EQ(second.x, lasting.x);
  }
}

TEST(WorkerStateTest, ATrialIsNotContinuedBehindRoundsThatWentOnWithoutIt) {
  RunInfo run = RunOf({.kind = DirectionKind::kLion});
  run.probes = run.keeps_gradients = false;
  run.needs_x0 = true;
  run.local_steps_max = 8;
  Life first(run), second(run);
  first.Vote(Trial(0, BallotStart::kX0), CommitKind::kNone);
  const WorkerState state = first.Take(1, 0);
  ASSERT_TRUE(second.Give(state, 1).ok());
  RoundTicket later = Trial(2, BallotStart::kContinue);
  later.replica_moved = true;
  EXPECT_THAT(second.Vote(later, CommitKind::kNone).events[0], HasSubstr("abstain"));
}

// Which is used as it is, and what compares replicas is not.
TEST(WorkerStateTest, AnOlderStateIsUsedAndItsAgeIsSaid) {
  const RunInfo run = RunOf({.kind = DirectionKind::kSignum});
  Life first(run), second(run);
  for (uint64_t round = 0; round < 4; ++round) first.Vote(TicketOf(round, kWanted[0]));
  const WorkerState state = first.Take(4, 4);
  for (uint64_t round = 4; round < 7; ++round) first.Vote(TicketOf(round, kWanted[0]));
  second.x = first.x;
  const auto resumed = second.Give(state, 7);
  ASSERT_TRUE(resumed.ok());
  EXPECT_EQ(resumed->how, Resumed::How::kAsItWas);
  EXPECT_EQ(resumed->age_rounds, 3u);
  EXPECT_EQ(resumed->round, Round(4));
  const WorkerState after = second.Take(7, 7);
  EXPECT_TRUE(std::ranges::equal(after.plane(0).bytes(), state.plane(0).bytes()));
  EXPECT_EQ(after.Find(SectionKind::kVerdict), nullptr);
  EXPECT_EQ(after.Find(SectionKind::kPreviousReplica), nullptr);
}

// The server lost commits, and voted on those rounds again.
TEST(WorkerStateTest, AStateOfTheSameRoundOfAnotherCourseIsNotExact) {
  const RunInfo run = RunOf({.kind = DirectionKind::kSignum});
  Life first(run), second(run);
  for (uint64_t round = 0; round < 4; ++round) first.Vote(TicketOf(round, kWanted[0]));
  const auto resumed = second.Give(first.Take(4, 4), 4);  // at another x
  ASSERT_TRUE(resumed.ok());
  EXPECT_EQ(resumed->how, Resumed::How::kAsItWas);
  EXPECT_EQ(resumed->age_rounds, 0u);
  // It is ahead of the run.
  Life third(run);
  const auto ahead = third.Give(first.Take(4, 4), 2);
  ASSERT_TRUE(ahead.ok());
  EXPECT_EQ(ahead->how, Resumed::How::kAsItWas);
  EXPECT_EQ(ahead->age_rounds, 0u);
}

TEST(WorkerStateTest, AnOlderStateOfARaceIsForgotten) {
  const RunInfo run = RunOf({.kind = DirectionKind::kSignum});
  Life first(run), second(run);
  for (uint64_t round = 0; round < 4; ++round) first.Vote(TicketOf(round, kWanted[0]));
  const auto resumed = second.Give(first.Take(4, 0), 6);
  ASSERT_TRUE(resumed.ok());
  EXPECT_EQ(resumed->how, Resumed::How::kForgotten);
  EXPECT_EQ(resumed->age_rounds, 2u);
  const WorkerState begun = second.Take(6, 0);
  for (const float m : begun.sections[0].memory) ASSERT_EQ(m, 0.0f);
}

TEST(WorkerStateTest, ABallotThatIsStillOpenMakesTheStateInexact) {
  const RunInfo run = RunOf({.kind = DirectionKind::kSignum});
  Life first(run), second(run);
  for (uint64_t round = 0; round < 4; ++round) first.Vote(TicketOf(round, kWanted[0]));
  first.session.on_wait = nullptr;
  ASSERT_TRUE(first.voter->Begin(TicketOf(4, kWanted[0])).ok());
  ASSERT_TRUE(first.voter->SetGradient(first.Pointers(first.g)).ok());
  ASSERT_TRUE(first.voter->GradientReady(0, kD).ok());
  ASSERT_TRUE(first.voter->Finish(1, 1).ok());
  first.session.outcome = CommitOutcome{.next_round = Round(4), .commits = 0};  // it left
  ASSERT_TRUE(first.voter->Wait().ok());
  const WorkerState state = ThroughBytes(first.Take(4, 4));
  EXPECT_TRUE(state.unsettled);
  second.x = first.x;
  for (const auto& [round, age] : {std::pair<uint64_t, uint64_t>{4, 0}, {5, 0}, {8, 3}}) {
    const auto resumed = second.Give(state, round);
    ASSERT_TRUE(resumed.ok());
    EXPECT_EQ(resumed->how, Resumed::How::kAsItWas);
    EXPECT_EQ(resumed->age_rounds, age);
  }
}

TEST(WorkerStateTest, AStateOfSomethingElseIsRefusedByName) {
  const RunInfo run = RunOf({.kind = DirectionKind::kSignum});
  Life life(run);
  const WorkerState state = life.Take(0, 0);
  const auto refused = [&](const char* word, const auto& change) {
    WorkerState other = state;
    change(&other);
    const auto resumed = life.Give(other, 0);
    EXPECT_TRUE(absl::IsFailedPrecondition(resumed.status())) << resumed.status();
    EXPECT_THAT(std::string(resumed.status().message()), HasSubstr(word));
  };
  refused("of run ", [](WorkerState* s) { s->run_id = RunId::FromRandom(3, 4); });
  refused("layout", [](WorkerState* s) { s->layout_digest ^= 1; });
  refused("coordinates", [](WorkerState* s) { s->coordinates = 5; });
  refused("direction signum", [](WorkerState* s) { s->direction.beta = 0.5; });
}

}  // namespace
}  // namespace signvote
