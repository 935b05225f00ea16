#include "worker/session/messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "common/message_size.h"
#include "tests/unit/worker/session/run_messages.h"

namespace signvote::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;

v1::Welcome GoodWelcome() {
  v1::Welcome welcome = WelcomeMessage(v1::Welcome::STATE_FETCH).welcome();
  welcome.set_main_rounds(300);
  welcome.set_main_round(12);
  welcome.set_rule("alias");
  welcome.set_probes(true);
  welcome.set_needs_x0(true);
  welcome.mutable_clip()->set_kind(v1::Clip::KIND_NORM);
  welcome.mutable_clip()->set_max_norm(1.5);
  v1::Direction* const direction = welcome.mutable_direction();
  direction->set_kind(v1::Direction::KIND_LION);
  direction->set_beta(0.5);
  direction->set_beta2(0.75);
  v1::StatePlane* const plane = direction->add_planes();
  plane->set_name("m");
  plane->set_element(v1::StatePlane::ELEMENT_BF16);
  v1::PayloadRange* const range = welcome.add_payloads();
  range->set_chunks(2);
  v1::PayloadRange* const rest = welcome.add_payloads();
  rest->set_first_chunk(2);
  rest->set_chunks(1);
  rest->set_up(v1::PAYLOAD_SIGNS);
  return welcome;
}

TEST(MessagesTest, AWelcomeSaysWhatTheRunIs) {
  const absl::StatusOr<RunInfo> run = RunFrom(GoodWelcome(), SmallModel());
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->run_id, kSmallRun);
  EXPECT_EQ(run->seed, 7u);
  EXPECT_EQ(run->layout.FirstDifference(SmallLayout()), "");
  EXPECT_EQ(run->plan.chunks(), 3u);
  EXPECT_EQ(run->main_rounds, 300u);
  EXPECT_EQ(run->main_round, 12u);
  EXPECT_EQ(run->digest_every, 50u);
  EXPECT_EQ(run->evaluate_every, 40u);
  EXPECT_EQ(run->rule, "alias");
  EXPECT_TRUE(run->probes);
  EXPECT_TRUE(run->needs_x0);
  EXPECT_EQ(run->clip_norm, 1.5);
  EXPECT_EQ(run->direction.kind, DirectionKind::kLion);
  EXPECT_EQ(run->direction.beta, 0.5);
  EXPECT_EQ(run->direction.beta2, 0.75);
  EXPECT_THAT(run->planes, ElementsAre(RunStatePlane{"m", 2}));
  EXPECT_THAT(run->payloads, ElementsAre(PayloadKinds{.first = ChunkIndex(0), .chunks = 2},
                                         PayloadKinds{.first = ChunkIndex(2), .chunks = 1}));
}

TEST(MessagesTest, WhatAWelcomeLeavesAwayIsNotThere) {
  v1::Welcome welcome = GoodWelcome();
  welcome.clear_clip();
  welcome.clear_main_rounds();
  welcome.clear_payloads();
  welcome.clear_needs_x0();
  welcome.clear_probes();
  const absl::StatusOr<RunInfo> run = RunFrom(welcome, SmallModel());
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->clip_norm, std::nullopt);
  EXPECT_EQ(run->main_rounds, std::nullopt);
  EXPECT_FALSE(run->needs_x0);
  EXPECT_FALSE(run->probes);
  EXPECT_THAT(run->payloads, ElementsAre(PayloadKinds{.first = ChunkIndex(0), .chunks = 3}));
}

TEST(MessagesTest, EveryDirectionAndElementHasItsName) {
  const auto kind = [](v1::Direction::Kind of) {
    v1::Welcome welcome = GoodWelcome();
    welcome.mutable_direction()->set_kind(of);
    welcome.mutable_direction()->mutable_planes(0)->set_element(v1::StatePlane::ELEMENT_FP32);
    const absl::StatusOr<RunInfo> run = RunFrom(welcome, SmallModel());
    EXPECT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(run->planes[0].element_bytes, 4u);
    return run->direction.kind;
  };
  EXPECT_EQ(kind(v1::Direction::KIND_SIGNSGD), DirectionKind::kSignSgd);
  EXPECT_EQ(kind(v1::Direction::KIND_SIGNUM), DirectionKind::kSignum);
  EXPECT_EQ(kind(v1::Direction::KIND_NESTEROV_SIGNUM), DirectionKind::kNesterovSignum);
  EXPECT_EQ(kind(v1::Direction::KIND_LION), DirectionKind::kLion);
  EXPECT_EQ(kind(v1::Direction::KIND_STOSIGN), DirectionKind::kStoSign);
  EXPECT_EQ(kind(v1::Direction::KIND_ADAM), DirectionKind::kAdam);
  EXPECT_EQ(kind(v1::Direction::KIND_MOMENTUM_SGD), DirectionKind::kMomentumSgd);
  EXPECT_EQ(kind(v1::Direction::KIND_MUON), DirectionKind::kMuon);
}

TEST(MessagesTest, ADirectionsNoiseStateAndTreatmentsAreRead) {
  v1::Welcome welcome = GoodWelcome();
  v1::Direction& direction = *welcome.mutable_direction();
  direction.set_kind(v1::Direction::KIND_ADAM);
  v1::StatePlane& steps = *direction.add_planes();
  steps.set_name("t");
  steps.set_element(v1::StatePlane::ELEMENT_UINT64);
  steps.set_single(true);
  welcome.mutable_layout()->mutable_tensors(0)->set_treatment(v1::Tensor::TREATMENT_SPARSE);
  welcome.mutable_layout()->mutable_tensors(1)->set_treatment(v1::Tensor::TREATMENT_PLAIN);
  const std::pair<v1::Direction::Envelope, Envelope> envelopes[] = {
      {v1::Direction::ENVELOPE_UNSPECIFIED, Envelope::kNone},
      {v1::Direction::ENVELOPE_COORDINATE, Envelope::kCoordinate},
      {v1::Direction::ENVELOPE_TENSOR, Envelope::kTensor},
      {v1::Direction::ENVELOPE_ONE, Envelope::kOne}};
  for (const auto& [word, envelope] : envelopes) {
    direction.set_envelope(word);
    const bool decays = envelope == Envelope::kCoordinate;  // which an envelope in bf16 does not
    direction.set_envelope_decay(decays ? 0.5 : 0);
    direction.set_state_element(decays ? v1::StatePlane::ELEMENT_FP32
                                       : v1::StatePlane::ELEMENT_BF16);
    const absl::StatusOr<RunInfo> run = RunFrom(welcome, SmallModel());
    ASSERT_TRUE(run.ok()) << run.status();
    EXPECT_EQ(run->direction,
              (DirectionConfig{.kind = DirectionKind::kAdam,
                               .beta = 0.5,
                               .beta2 = 0.75,
                               .envelope = envelope,
                               .envelope_decay = decays ? 0.5 : 1.0,
                               .state_dtype = decays ? StateDtype::kFp32 : StateDtype::kBf16}));
    EXPECT_THAT(run->planes,
                ElementsAre(RunStatePlane{"m", 2, false}, RunStatePlane{"t", 8, true}));
    EXPECT_EQ(run->layout.tensors()[0].treatment, TensorTreatment::kSparse);
    EXPECT_EQ(run->layout.tensors()[1].treatment, TensorTreatment::kPlain);
  }
  direction.Clear();
  direction.set_kind(v1::Direction::KIND_SIGNSGD);
  direction.set_error_feedback(true);
  direction.set_feedback_keep(0.7);
  const absl::StatusOr<RunInfo> run = RunFrom(welcome, SmallModel());
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_TRUE(run->direction.error_feedback);
  EXPECT_EQ(run->direction.feedback_keep, 0.7);
}

TEST(MessagesTest, AWelcomeThatCannotBeFollowedIsRefusedByWhatIsWrong) {
  const auto refused = [](absl::StatusCode code, const char* words,
                          const std::function<void(v1::Welcome*)>& change) {
    v1::Welcome welcome = GoodWelcome();
    change(&welcome);
    const absl::Status status = RunFrom(welcome, SmallModel()).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  };
  refused(kPrecondition, "protocol 1", [](v1::Welcome* w) { w->set_protocol(1); });
  refused(kInvalid, "", [](v1::Welcome* w) { w->set_run_id("short"); });
  refused(kInvalid, "0 coordinates", [](v1::Welcome* w) { w->set_chunk_coordinates(0); });
  refused(kInvalid, "1000 coordinates", [](v1::Welcome* w) { w->set_chunk_coordinates(1000); });
  refused(kPrecondition, "direction 99", [](v1::Welcome* w) {
    w->mutable_direction()->set_kind(static_cast<v1::Direction::Kind>(99));
  });
  for (const double beta : {-0.5, 1.0, std::numeric_limits<double>::quiet_NaN()}) {
    refused(kInvalid, "less than 1 in fp32",
            [beta](v1::Welcome* w) { w->mutable_direction()->set_beta(beta); });
    refused(kInvalid, "less than 1 in fp32",
            [beta](v1::Welcome* w) { w->mutable_direction()->set_beta2(beta); });
  }
  refused(kPrecondition, "noise with envelope 9", [](v1::Welcome* w) {
    w->mutable_direction()->set_envelope(static_cast<v1::Direction::Envelope>(9));
  });
  refused(kInvalid, "noise's decay is 0", [](v1::Welcome* w) {
    w->mutable_direction()->set_envelope(v1::Direction::ENVELOPE_COORDINATE);
  });
  refused(kInvalid, "what is kept of the error is 2", [](v1::Welcome* w) {
    w->mutable_direction()->set_error_feedback(true);
    w->mutable_direction()->set_feedback_keep(2);
  });
  refused(kPrecondition, "state in elements of kind 3", [](v1::Welcome* w) {
    w->mutable_direction()->set_state_element(v1::StatePlane::ELEMENT_UINT64);
  });
  refused(kPrecondition, "treatment 9 of a tensor", [](v1::Welcome* w) {
    w->mutable_layout()->mutable_tensors(0)->set_treatment(static_cast<v1::Tensor::Treatment>(9));
  });
  refused(kPrecondition, "elements of kind 0",
          [](v1::Welcome* w) { w->mutable_direction()->mutable_planes(0)->clear_element(); });
  refused(kPrecondition, "--message-bytes-max of the server 319",
          [](v1::Welcome* w) { w->set_message_bytes_max(319); });
  refused(kPrecondition, "clipping 9",
          [](v1::Welcome* w) { w->mutable_clip()->set_kind(static_cast<v1::Clip::Kind>(9)); });
  for (const double norm : {0.0, -1.0, std::numeric_limits<double>::infinity()}) {
    refused(kInvalid, "clips gradients",
            [norm](v1::Welcome* w) { w->mutable_clip()->set_max_norm(norm); });
  }
  refused(kPrecondition, "data endpoints", [](v1::Welcome* w) { w->add_endpoints(); });
  refused(kInvalid, "counts up to 0 ballots",
          [](v1::Welcome* w) { w->mutable_payloads(1)->set_down(v1::PAYLOAD_COUNTS); });
  refused(kInvalid, "counts up to 1025 ballots", [](v1::Welcome* w) {
    w->mutable_payloads(1)->set_down(v1::PAYLOAD_COUNTS);
    w->set_ballots_max(1025);
  });
  refused(kPrecondition, "ballots of counts and commits of signs",
          [](v1::Welcome* w) { w->mutable_payloads(0)->set_up(v1::PAYLOAD_COUNTS); });
  refused(kPrecondition, "ballots of fp32 and commits of signs",
          [](v1::Welcome* w) { w->mutable_payloads(0)->set_up(v1::PAYLOAD_FP32); });
  refused(kPrecondition, "payloads of kind 9",
          [](v1::Welcome* w) { w->mutable_payloads(0)->set_up(static_cast<v1::PayloadKind>(9)); });
  refused(kInvalid, "do not cover",
          [](v1::Welcome* w) { w->mutable_payloads(1)->set_first_chunk(1); });
  refused(kInvalid, "do not cover", [](v1::Welcome* w) { w->mutable_payloads(1)->set_chunks(2); });
  refused(kInvalid, "do not cover", [](v1::Welcome* w) { w->mutable_payloads(1)->set_chunks(0); });
  refused(kInvalid, "cover 2 of 3", [](v1::Welcome* w) { w->mutable_payloads()->RemoveLast(); });
  refused(kInvalid, "does not match its digest",
          [](v1::Welcome* w) { w->mutable_layout()->set_digest(1); });
  refused(kInvalid, "the server's layout",
          [](v1::Welcome* w) { w->mutable_layout()->clear_tensors(); });
  v1::Welcome tight = GoodWelcome();
  tight.set_message_bytes_max(320);
  EXPECT_TRUE(RunFrom(tight, SmallModel()).ok()) << "64 bytes and their header";
}

TEST(MessagesTest, ChunksThatNoWorkerTakesAreRefusedWhateverTheServerAllows) {
  constexpr uint64_t kChunk = 8 * kMessageBytesMost;
  ModelDescription model;
  model.tensors = {{.name = "a", .shape = {kChunk}}};
  v1::Welcome welcome = GoodWelcome();
  welcome.clear_payloads();
  welcome.set_message_bytes_max(UINT64_MAX);
  welcome.set_chunk_coordinates(kChunk);
  FillRunLayout(*Layout::Make(model.tensors), welcome.mutable_layout());
  const absl::Status status = RunFrom(welcome, model).status();
  EXPECT_EQ(status.code(), kPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("of which a worker takes 67108864"));
  welcome.set_chunk_coordinates(kChunk / 2);
  EXPECT_TRUE(RunFrom(welcome, model).ok());
}

TEST(MessagesTest, AModelThatIsNotTheRunsIsRefusedByTheFirstTensorThatDiffers) {
  const auto refused = [](const char* words, std::vector<TensorSpec> tensors) {
    ModelDescription model;
    model.tensors = std::move(tensors);
    const absl::Status status = RunFrom(GoodWelcome(), model).status();
    EXPECT_EQ(status.code(), kPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  };
  refused("tensor b [50, 10], which this worker's model has not", {{.name = "a", .shape = {1000}}});
  refused("tensor b is [50, 10] in the run and [500]",
          {{.name = "a", .shape = {1000}}, {.name = "b", .shape = {500}}});
  refused("trains tensor c, which the run does not", {{.name = "a", .shape = {1000}},
                                                      {.name = "c", .shape = {1}},
                                                      {.name = "b", .shape = {50, 10}}});
}

TEST(MessagesTest, AJoinSaysTheModelInItsOwnOrder) {
  ModelDescription model = SmallModel();
  v1::Join join;
  FillJoin(model, &join);
  EXPECT_EQ(join.protocol_min(), 2u);
  EXPECT_EQ(join.protocol_max(), 2u);
  EXPECT_FALSE(join.software_version().empty());
  ASSERT_EQ(join.tensors_size(), 2);
  EXPECT_EQ(join.tensors(0).name(), "b");
  EXPECT_THAT(join.tensors(0).shape(), ElementsAre(50, 10));
  EXPECT_FALSE(join.can_probe());
  EXPECT_FALSE(join.has_held_out_hash());
  model.config_json = "{}";
  model.identity_text = "loss";
  model.can_probe = true;
  model.held_out_hash = 0;
  join.Clear();
  FillJoin(model, &join);
  EXPECT_EQ(join.model_config_json(), "{}");
  EXPECT_EQ(join.identity_text(), "loss");
  EXPECT_TRUE(join.can_probe());
  EXPECT_TRUE(join.has_held_out_hash());
}

TEST(MessagesTest, ACommitThatCannotBeAppliedIsRefusedByWhatIsWrong) {
  RunInfo run = *RunFrom(GoodWelcome(), SmallModel());
  const auto check = [&run](const std::function<void(v1::Commit*)>& change) {
    v1::Commit commit = CommitMessage(4).commit();
    change(&commit);
    return CheckCommit(commit, run);
  };
  EXPECT_TRUE(check([](v1::Commit*) {}).ok());
  EXPECT_TRUE(check([](v1::Commit* c) { c->set_stepsize(0); }).ok()) << "zero is a stepsize";
  EXPECT_TRUE(check([](v1::Commit* c) { c->set_rho(0.5f); }).ok());
  EXPECT_TRUE(check([](v1::Commit* c) { c->set_decay_step(0.5f); }).ok());
  EXPECT_TRUE(check([](v1::Commit* c) { c->set_payload(v1::PAYLOAD_SIGNS); }).ok());
  EXPECT_TRUE(check([](v1::Commit* c) {
                c->add_scales(1);
                c->add_scales(2);
              }).ok());
  for (const v1::Commit::Kind kind : {v1::Commit::KIND_NONE, v1::Commit::KIND_REWIND}) {
    EXPECT_TRUE(check([kind](v1::Commit* c) {
                  c->Clear();
                  c->set_kind(kind);
                }).ok());
  }
  EXPECT_EQ(check([](v1::Commit* c) { c->set_kind(v1::Commit::KIND_UNSPECIFIED); }).code(),
            kPrecondition);
  EXPECT_EQ(check([](v1::Commit* c) { c->set_payload(v1::PAYLOAD_COUNTS); }).code(), kPrecondition);
  for (const float bad : {-1e-3f, kInfinity, kNan}) {
    EXPECT_EQ(check([bad](v1::Commit* c) { c->set_stepsize(bad); }).code(), kInvalid) << bad;
    EXPECT_EQ(check([bad](v1::Commit* c) { c->set_decay_step(bad); }).code(), kInvalid) << bad;
  }
  EXPECT_EQ(check([](v1::Commit* c) { c->set_rho(kInfinity); }).code(), kInvalid);
  EXPECT_EQ(check([](v1::Commit* c) { c->add_scales(1); }).code(), kInvalid);
  EXPECT_EQ(check([](v1::Commit* c) {
              c->add_scales(1);
              c->add_scales(kNan);
            }).code(),
            kInvalid);
  EXPECT_EQ(check([](v1::Commit* c) { c->add_counted(3); }).code(), kInvalid);
  run.needs_x0 = false;
  EXPECT_TRUE(check([](v1::Commit*) {}).ok());
  EXPECT_EQ(check([](v1::Commit* c) { c->set_rho(0.5f); }).code(), kInvalid);
  EXPECT_EQ(check([](v1::Commit* c) { c->set_kind(v1::Commit::KIND_REWIND); }).code(), kInvalid);
  EXPECT_TRUE(check([](v1::Commit* c) { c->set_kind(v1::Commit::KIND_NONE); }).ok());
}

TEST(MessagesTest, ARunOfCountsSaysOfHowManyBallotsTheyAre) {
  v1::Welcome welcome = GoodWelcome();
  welcome.mutable_payloads(1)->set_down(v1::PAYLOAD_COUNTS);
  welcome.set_ballots_max(4);
  const absl::StatusOr<RunInfo> run = RunFrom(welcome, SmallModel());
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->commit_plan.ballots_max(), 4u);
  EXPECT_EQ(run->commit_plan.kind(ChunkIndex(1)), PayloadKind::kSigns);
  EXPECT_EQ(run->commit_plan.kind(ChunkIndex(2)), PayloadKind::kCounts);
  EXPECT_EQ(run->commit_plan.TotalBytes(), 64u + 64 + 3 * 60);
  v1::Commit commit = CommitMessage(7).commit();
  EXPECT_TRUE(CheckCommit(commit, *run).ok());
  commit.set_payload(v1::PAYLOAD_COUNTS);
  EXPECT_TRUE(CheckCommit(commit, *run).ok());
  for (const uint32_t counted : {0u, 5u}) {
    commit.set_counted(2, counted);
    EXPECT_EQ(CheckCommit(commit, *run).code(), kInvalid) << counted;
  }
  commit.set_counted(2, 4);
  commit.set_counted(1, 5);
  EXPECT_TRUE(CheckCommit(commit, *run).ok()) << "of a verdict any number";
}

TEST(MessagesTest, ATicketHoldsWhatARoundOpenSays) {
  const Time now = Time{} + std::chrono::seconds(5);
  v1::RoundOpen open;
  open.set_round(7);
  open.set_data_step(8);
  open.set_share(9);
  open.set_members(3);
  for (int kind = v1::SCALAR_PROBE_L1; kind <= v1::SCALAR_GRADIENT_MIN; ++kind)
    open.add_wanted(static_cast<v1::ScalarKind>(kind));
  open.set_role(v1::RoundOpen::ROLE_OBSERVER);
  open.set_local_steps(4);
  open.set_eta_first(0.5f);
  open.set_eta_last(0.25f);
  open.set_steps_until_ms(1500);
  open.set_start(v1::RoundOpen::START_X0);
  open.set_uncounted(true);
  open.set_evaluate(true);
  open.set_x0_over(true);
  const absl::StatusOr<RoundTicket> full = TicketFrom(open, now);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->round, Round(7));
  EXPECT_EQ(full->data_step, DataStep(8));
  EXPECT_EQ(full->share, Share(9));
  EXPECT_EQ(full->members, 3u);
  EXPECT_THAT(full->wanted,
              ElementsAre(ScalarKind::kProbeL1, ScalarKind::kPrevInner, ScalarKind::kX0Inner,
                          ScalarKind::kX0Distance, ScalarKind::kLocalInner,
                          ScalarKind::kLocalProduct, ScalarKind::kProbeInner, ScalarKind::kChangeL1,
                          ScalarKind::kGradientMax, ScalarKind::kGradientMin));
  EXPECT_TRUE(full->observer);
  EXPECT_EQ(full->local_steps, 4u);
  EXPECT_EQ(full->eta_first, 0.5f);
  EXPECT_EQ(full->eta_last, 0.25f);
  EXPECT_EQ(full->steps_until, now + std::chrono::milliseconds(1500));
  EXPECT_EQ(full->start, BallotStart::kX0);
  EXPECT_TRUE(full->uncounted);
  EXPECT_TRUE(full->evaluate);
  EXPECT_TRUE(full->x0_over);

  v1::RoundOpen plain;
  plain.set_role(v1::RoundOpen::ROLE_MEMBER);
  const RoundTicket ticket = *TicketFrom(plain, now);
  EXPECT_FALSE(ticket.observer);
  EXPECT_FALSE(ticket.uncounted);
  EXPECT_FALSE(ticket.evaluate);
  EXPECT_EQ(ticket.local_steps, 1u);
  EXPECT_EQ(ticket.steps_until, std::nullopt);
  EXPECT_EQ(ticket.start, BallotStart::kReplica);
  EXPECT_FALSE(ticket.Wants(ScalarKind::kPrevInner));
  EXPECT_TRUE(full->Wants(ScalarKind::kPrevInner));
  plain.set_start(v1::RoundOpen::START_CONTINUE);
  EXPECT_EQ(TicketFrom(plain, now)->start, BallotStart::kContinue);
  plain.set_steps_until_ms(UINT64_MAX);
  EXPECT_GT(*TicketFrom(plain, now)->steps_until, now) << "no overflow";

  const auto code = [&](const std::function<void(v1::RoundOpen*)>& change) {
    v1::RoundOpen changed = plain;
    change(&changed);
    return TicketFrom(changed, now).status().code();
  };
  EXPECT_EQ(code([](v1::RoundOpen* o) { o->add_wanted(static_cast<v1::ScalarKind>(77)); }),
            kPrecondition);
  EXPECT_EQ(code([](v1::RoundOpen* o) { o->set_start(static_cast<v1::RoundOpen::Start>(9)); }),
            kPrecondition);
  EXPECT_EQ(code([](v1::RoundOpen* o) { o->set_eta_first(-1); }), kInvalid);
  EXPECT_EQ(code([](v1::RoundOpen* o) { o->set_eta_last(kNan); }), kInvalid);
}

TEST(MessagesTest, ScalarsAreSentAsTheRoundWantsThem) {
  RoundTicket ticket;
  ticket.wanted = {ScalarKind::kPrevInner, ScalarKind::kProbeL1};
  BallotScalars scalars{.loss = 1,
                        .g_l1 = 2,
                        .g_l2_squared = 3,
                        .wanted = {4, 5},
                        .displacement_mean = {6, 7},
                        .nonfinite_coordinates = 8,
                        .samples = 9,
                        .local_steps = 14};
  scalars.held_out = {.loss = 10, .error = 11, .round = Round(12), .windows = 13};
  const absl::StatusOr<v1::Scalars> sent = ScalarsFrom(scalars, ticket, 2);
  ASSERT_TRUE(sent.ok()) << sent.status();
  EXPECT_EQ(sent->loss(), 1);
  EXPECT_EQ(sent->g_l1(), 2);
  EXPECT_EQ(sent->g_l2_squared(), 3);
  EXPECT_THAT(sent->wanted(), ElementsAre(4, 5));
  EXPECT_THAT(sent->displacement_mean(), ElementsAre(6, 7));
  EXPECT_EQ(sent->nonfinite_coordinates(), 8u);
  EXPECT_EQ(sent->samples(), 9u);
  EXPECT_EQ(sent->local_steps(), 14u);
  EXPECT_EQ(sent->held_out_loss(), 10);
  EXPECT_EQ(sent->held_out_error(), 11);
  EXPECT_EQ(sent->held_out_round(), 12u);
  EXPECT_EQ(sent->held_out_hash(), 13u);
  EXPECT_EQ(ScalarsFrom(scalars, ticket, 3).status().code(), kInvalid);
  scalars.displacement_mean.clear();
  scalars.held_out.reset();
  EXPECT_TRUE(ScalarsFrom(scalars, ticket, 3).ok());
  EXPECT_FALSE(ScalarsFrom(scalars, ticket, 3)->has_held_out_loss());
  scalars.wanted = {1, 2, 3};
  EXPECT_EQ(ScalarsFrom(scalars, ticket, 3).status().code(), kInvalid);
}

TEST(MessagesTest, EveryReasonToAbstainHasItsNumber) {
  EXPECT_EQ(ToProto(AbstainReason::kNonFiniteLoss), v1::Abstain::REASON_NONFINITE_LOSS);
  EXPECT_EQ(ToProto(AbstainReason::kNonFiniteGradient), v1::Abstain::REASON_NONFINITE_GRADIENT);
  EXPECT_EQ(ToProto(AbstainReason::kOther), v1::Abstain::REASON_OTHER);
}

}  // namespace
}  // namespace signvote::testing
