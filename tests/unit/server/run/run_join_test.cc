// Who may take part, who brings the parameters, and who is let go: no socket, no thread.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "common/exit_codes.h"
#include "tests/unit/server/run/run_fixture.h"

namespace signvote::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RunJoinTest : public RunTest {};

TEST_F(RunJoinTest, AWelcomeSaysWhatADirectionKeepsAndItsNoise) {
  RunOptions options = Options();
  options.direction = {.kind = DirectionKind::kAdam,
                       .beta2 = 0.999,
                       .envelope = Envelope::kCoordinate,
                       .envelope_decay = 0.5,
                       .state_dtype = StateDtype::kBf16};
  StartRun(std::move(options));
  const v1::Welcome& w = *Joined("a").welcome;
  const v1::Direction& direction = w.direction();
  EXPECT_FALSE(w.has_clip());
  EXPECT_EQ(direction.kind(), v1::Direction::KIND_ADAM);
  EXPECT_EQ(direction.beta(), 0.9);
  EXPECT_EQ(direction.beta2(), 0.999);
  EXPECT_EQ(direction.envelope(), v1::Direction::ENVELOPE_COORDINATE);
  EXPECT_EQ(direction.envelope_decay(), 0.5);
  EXPECT_EQ(direction.state_element(), v1::StatePlane::ELEMENT_BF16);
  const std::vector<std::tuple<std::string, v1::StatePlane::Element, bool>> planes = {
      {"m", v1::StatePlane::ELEMENT_BF16, false},
      {"v", v1::StatePlane::ELEMENT_FP32, false},
      {"r", v1::StatePlane::ELEMENT_BF16, false},
      {"t", v1::StatePlane::ELEMENT_UINT64, true}};
  ASSERT_EQ(direction.planes_size(), 4);
  for (int k = 0; k < 4; ++k) {
    const v1::StatePlane& plane = direction.planes(k);
    EXPECT_EQ(std::tuple(plane.name(), plane.element(), plane.single()),
              planes[static_cast<size_t>(k)]);
  }
}

TEST_F(RunJoinTest, AModelWithoutATensorThatTheOperatorNamesIsRefused) {
  RunOptions options = Options();
  options.model.tensor_rules = *ParseTensorScales("lm_head.*=0.5");
  StartRun(std::move(options));
  TestWorker& a = NewWorker();
  a.Join("a");
  EXPECT_EQ(a.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(a.words(), HasSubstr("--tensor-scale lm_head.*=…: no tensor of this model"));
}

TEST_F(RunJoinTest, AWelcomeSaysWhatTheRunIs) {
  RunOptions options = Options();
  options.seed = 42;
  options.main_rounds_max = 7;
  options.digest_every = 3;
  options.model.weight_decay = 0.25f;
  options.direction = {.kind = DirectionKind::kLion, .beta = 0.5, .beta2 = 0.75};
  options.clip_norm = 1.5;
  options.model.tensor_rules = *ParseTensorTreatments("w=sparse");
  StartRun(std::move(options));
  TestWorker& a = Joined("a");
  const v1::Welcome& w = *a.welcome;
  EXPECT_EQ(w.protocol(), 2u);
  EXPECT_EQ(w.run_id(), run_->run_id().bytes());
  EXPECT_EQ(w.epoch(), 1u);
  EXPECT_EQ(w.incarnation(), 1u);
  EXPECT_EQ(w.ticket(), a.peer->ticket());
  EXPECT_EQ(w.state(), v1::Welcome::STATE_UPLOAD);
  EXPECT_EQ(w.chunk_coordinates(), kChunk);
  EXPECT_EQ(w.seed(), 42u);
  EXPECT_EQ(w.main_rounds(), 7u);
  EXPECT_EQ(w.main_round(), 0u);
  EXPECT_EQ(w.digest_every(), 3u);
  EXPECT_EQ(w.rule(), "fixed");
  EXPECT_FALSE(w.probes());
  EXPECT_FALSE(w.needs_x0());
  EXPECT_EQ(w.payloads_size(), 0) << "signs both ways";
  ASSERT_EQ(w.layout().tensors_size(), 2);
  EXPECT_EQ(w.layout().digest(), TestLayout().digest());
  EXPECT_EQ(w.layout().tensors(0).name(), "w");
  EXPECT_EQ(w.layout().tensors(0).step_scale(), 1.0f);
  EXPECT_EQ(w.layout().tensors(0).weight_decay(), 0.0f) << "one dimension";
  EXPECT_EQ(w.direction().kind(), v1::Direction::KIND_LION);
  EXPECT_EQ(w.direction().beta(), 0.5);
  EXPECT_EQ(w.direction().beta2(), 0.75);
  EXPECT_EQ(w.direction().envelope(), v1::Direction::ENVELOPE_UNSPECIFIED);
  EXPECT_EQ(w.clip().kind(), v1::Clip::KIND_NORM);
  EXPECT_EQ(w.clip().max_norm(), 1.5);
  EXPECT_EQ(w.layout().tensors(0).treatment(), v1::Tensor::TREATMENT_SPARSE);
  EXPECT_EQ(w.layout().tensors(1).treatment(), v1::Tensor::TREATMENT_UNSPECIFIED);
  ASSERT_EQ(w.direction().planes_size(), 1);
  EXPECT_EQ(w.direction().planes(0).name(), "m");
}

TEST_F(RunJoinTest, TheOrderOfTheUploadersTensorsIsTheRuns) {
  StartRun();
  TestWorker& a = NewWorker();
  v1::Join join = a.MakeJoin("a");
  join.mutable_tensors()->SwapElements(0, 1);
  a.Join(join);
  ASSERT_TRUE(a.welcome.has_value());
  EXPECT_EQ(a.welcome->layout().tensors(0).name(), "b");
  a.BringState();
  TestWorker& b = Joined("b");
  EXPECT_EQ(b.welcome->layout().tensors(0).name(), "b");
}

TEST_F(RunJoinTest, OtherVersionsLayoutsAndRunsAreRefusedWithBothSides) {
  StartRun();
  Joined("good");
  TestWorker& version = NewWorker();
  v1::Join join = version.MakeJoin("v");
  join.set_protocol_min(3);
  join.set_protocol_max(4);
  version.Join(join);
  EXPECT_EQ(version.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(version.words(), AllOf(HasSubstr("speaks 2"), HasSubstr("speaks 3 to 4")));

  TestWorker& layout = NewWorker(kCoordinates + 5);
  layout.Join("l");
  EXPECT_EQ(layout.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(layout.words(), HasSubstr("w"));

  TestWorker& run = NewWorker();
  join = run.MakeJoin("r");
  join.set_run_id(std::string(16, 'x'));
  run.Join(join);
  EXPECT_EQ(run.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(run.words(), HasSubstr(run_->run_id().ToText()));
  EXPECT_EQ(run_->Snapshot(clock_.Now()).refusals, 3u);
}

TEST_F(RunJoinTest, AModelOfTheSameTensorsWithAnotherConfigIsRefusedByTheKeyThatDiffers) {
  StartRun();
  TestWorker& a = NewWorker();
  v1::Join join = a.MakeJoin("a");
  join.set_model_config_json(R"({"rope_theta": 1e4, "_name_or_path": "mine"})");
  a.Join(join);
  a.BringState();
  TestWorker& same = NewWorker();
  join = same.MakeJoin("same");
  join.set_model_config_json(R"({"_name_or_path": "yours", "rope_theta": 10000})");
  same.Join(join);
  EXPECT_TRUE(same.welcome.has_value());
  TestWorker& other = NewWorker();
  join = other.MakeJoin("other");
  join.set_model_config_json(R"({"rope_theta": 500000})");
  other.Join(join);
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.words(),
              AllOf(HasSubstr("rope_theta"), HasSubstr("10000"), HasSubstr("500000")));
}

// Whoever came first and never uploaded has no word in what is exported.
TEST_F(RunJoinTest, TheExportedConfigIsTheUploaders) {
  StartRun();
  TestWorker& first = NewWorker();
  v1::Join join = first.MakeJoin("first");
  join.set_model_config_json(R"({"a": 1, "_name_or_path": "first"})");
  first.Join(join);
  EXPECT_EQ(first.welcome->state(), v1::Welcome::STATE_UPLOAD);
  TestWorker& second = NewWorker();
  join = second.MakeJoin("second");
  join.set_model_config_json(R"({"a": 1, "_name_or_path": "second"})");
  second.Join(join);
  EXPECT_FALSE(second.closed()) << second.words();
  first.Break();
  second.BringState();
  EXPECT_EQ(run_->model().config_json(), R"({"a": 1, "_name_or_path": "second"})");
}

TEST_F(RunJoinTest, ANameInALiveSessionIsRefused) {
  StartRun();
  TestWorker& old = Joined("w");
  TestWorker& second = NewWorker();
  second.Join("w");
  EXPECT_FALSE(second.closed()) << "held until the old one has answered";
  old.ReadAll();
  EXPECT_EQ(old.pings, 1);
  EXPECT_EQ(second.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_FALSE(old.closed());
}

TEST_F(RunJoinTest, ADeadSessionIsFencedWhenItsNameJoinsAgain) {
  RunOptions options = Options();
  options.workers_min = 2;
  StartRun(std::move(options));
  TestWorker& old = Joined("w");
  old.answers_pings = false;
  TestWorker& second = NewWorker();
  second.Join("w");
  Pass(milliseconds(999));
  EXPECT_FALSE(old.closed());
  Pass(milliseconds(2));
  EXPECT_EQ(old.code(), absl::StatusCode::kAborted);
  second.ReadAll();
  ASSERT_TRUE(second.welcome.has_value());
  EXPECT_EQ(second.welcome->incarnation(), 2u);
}

TEST_F(RunJoinTest, ANewcomerThatLeavesIsNotTakenForTheOneThatStays) {
  StartRun();
  TestWorker& first = Joined("w");
  TestWorker& second = NewWorker();
  second.Join("w");
  second.Leave("changed my mind");
  EXPECT_TRUE(second.peer->closed->ok());
  EXPECT_FALSE(first.closed());
  EXPECT_THAT(Events(), ElementsAre("joined w", "member w"));
}

TEST_F(RunJoinTest, AnEvictedNameDoesNotJoinThroughTheBackDoor) {
  StartRun();
  TestWorker& first = Joined("w");
  first.answers_pings = false;
  TestWorker& second = NewWorker();
  second.Join("w");
  EXPECT_TRUE(run_->Evict(clock_.Now(), "w").ok());
  Settle();
  EXPECT_EQ(first.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(second.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(Events(), ElementsAre("joined w", "member w", "evicted w"));
  EXPECT_EQ(run_->Snapshot(clock_.Now()).stale_messages, 0u) << "the engine itself let go of it";
  TestWorker& again = NewWorker();
  again.Join("w");
  EXPECT_EQ(again.code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(RunJoinTest, TheRunIsFullAtWorkersMax) {
  RunOptions options = Options();
  options.model.sizes.workers_max = 1;
  StartRun(std::move(options));
  Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  EXPECT_EQ(b.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(b.words(), HasSubstr("--workers-max 1"));
}

TEST_F(RunJoinTest, TooManySilentStreamsCostTheOldestTheirPlace) {
  RunOptions options = Options();
  options.roster.strangers_max = 32;
  StartRun(std::move(options));
  TestWorker& oldest = NewWorker();
  for (int i = 0; i < 31; ++i) NewWorker();
  Pass(seconds(1));
  EXPECT_FALSE(oldest.closed());
  TestWorker& youngest = NewWorker();
  EXPECT_EQ(oldest.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(oldest.words(), HasSubstr("32 streams"));
  youngest.Join("w");
  EXPECT_TRUE(youngest.welcome.has_value());
}

TEST_F(RunJoinTest, AStreamThatNeverJoinsIsClosedAndBrokenOffWhenItDoesNotEnd) {
  StartRun();
  TestWorker& silent = NewWorker();
  stuck_.insert(silent.peer->id());
  Pass(seconds(11));
  EXPECT_EQ(silent.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(silent.peer->cancelled);
  Pass(seconds(3));
  EXPECT_TRUE(silent.peer->cancelled);
}

// ---- the initial parameters ---------------------------------------------------------------------

TEST_F(RunJoinTest, ALostUploaderPassesTheLeaseOn) {
  StartRun();
  TestWorker& a = NewWorker();
  a.Join("a");
  EXPECT_EQ(a.welcome->state(), v1::Welcome::STATE_UPLOAD);
  TestWorker& b = NewWorker();
  b.Join("b");
  ASSERT_EQ(b.notices.size(), 1u);
  EXPECT_THAT(b.notices[0].text(), HasSubstr("from a"));
  a.Break();
  b.ReadAll();
  ASSERT_TRUE(b.welcome.has_value());
  EXPECT_EQ(b.welcome->state(), v1::Welcome::STATE_UPLOAD);
  b.BringState();
  ReadAll();
  EXPECT_TRUE(b.open.has_value());
}

// A thousand who wait are told a thousand times, not a million.
TEST_F(RunJoinTest, WhoWaitsForTheParametersHearsOfWhomOnceAndOfAnotherOnceMore) {
  StartRun();
  TestWorker& a = NewWorker();
  a.Join("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  TestWorker& c = NewWorker();
  c.Join("c");
  TestWorker& d = NewWorker();
  d.Join("d");
  ReadAll();
  for (const TestWorker* waiting : {&b, &c, &d}) EXPECT_EQ(waiting->notices.size(), 1u);
  a.Break();
  ReadAll();
  EXPECT_EQ(b.welcome->state(), v1::Welcome::STATE_UPLOAD);
  for (const TestWorker* waiting : {&c, &d}) {
    ASSERT_EQ(waiting->notices.size(), 2u);
    EXPECT_THAT(waiting->notices[1].text(), HasSubstr("from b"));
  }
}

// A trickle is no progress: a coordinate a minute would take years.
TEST_F(RunJoinTest, AnUploaderThatTricklesLosesItsLease) {
  StartRun();
  TestWorker& a = NewWorker();
  a.Join("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  auto call = std::make_shared<FakeCall>();
  Give({.peer = a.peer->id(), .what = CallAsked{CallKind::kUpload, call}});
  ASSERT_NE(call->replica, nullptr);
  for (uint64_t sent = 4; sent <= 240 && !a.closed(); sent += 4) {
    Give({.peer = a.peer->id(), .what = CallProgress{call, sent}});
    Pass(seconds(1));
  }
  Pass(seconds(1));
  EXPECT_EQ(a.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(a.words(), HasSubstr("--upload-timeout"));
  ASSERT_TRUE(call->ended.has_value()) << "the call ends with its session";
  b.ReadAll();
  ASSERT_TRUE(b.welcome.has_value());
  EXPECT_EQ(b.welcome->state(), v1::Welcome::STATE_UPLOAD);
}

// Goal: whoever cuts its session while its upload completes neither ends the server nor starts the
// run from parameters that nobody stands for.
TEST_F(RunJoinTest, AnUploadThatOutlivesItsSessionStartsNoRun) {
  StartRun();
  TestWorker& a = NewWorker();
  a.Join("a");
  auto call = std::make_shared<FakeCall>();
  Give({.peer = a.peer->id(), .what = CallAsked{CallKind::kUpload, call}});
  const std::shared_ptr<MasterReplica> dead = call->replica;
  a.Break();
  TestWorker& b = NewWorker();
  b.Join("b");
  EXPECT_EQ(b.welcome->state(), v1::Welcome::STATE_UPLOAD);
  // The old call writes on, and is done.
  std::fill(dead->x().begin(), dead->x().end(), 9.0f);
  Give({.peer = a.peer->id(), .what = CallProgress{call, kCoordinates * sizeof(float)}});
  std::fill(b.x.begin(), b.x.end(), 0.5f);
  b.BringState();
  ReadAll();
  ASSERT_TRUE(b.open.has_value());
  EXPECT_EQ(replica_->x()[0], 0.5f);
}

TEST_F(RunJoinTest, ALayoutWithoutAnybodyBindsNobody) {
  StartRun();
  TestWorker& a = NewWorker();
  a.Join("a");
  EXPECT_EQ(run_->HealthNow().not_ready_because, "waiting for the initial parameters");
  a.Break();
  EXPECT_EQ(run_->HealthNow().not_ready_because, "waiting for the first worker");
  TestWorker& b = NewWorker(kCoordinates + 100);
  b.Join("b");
  EXPECT_TRUE(b.welcome.has_value()) << b.words();
}

TEST_F(RunJoinTest, OnlyTheUploaderMayUploadAndOnlyWhoWasToldMayFetch) {
  StartRun();
  TestWorker& a = NewWorker();
  a.Join("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  const auto ask = [&](TestWorker& worker, CallKind kind) {
    auto call = std::make_shared<FakeCall>();
    Give({.peer = worker.peer->id(), .what = CallAsked{kind, call}});
    return call;
  };
  EXPECT_EQ(ask(b, CallKind::kUpload)->ended->code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(ask(b, CallKind::kFetch)->ended->message()), HasSubstr("not there yet"));
  a.BringState();
  EXPECT_EQ(ask(a, CallKind::kFetch)->ended->code(), absl::StatusCode::kFailedPrecondition);
  const auto first = ask(b, CallKind::kFetch);
  EXPECT_NE(first->replica, nullptr);
  EXPECT_THAT(std::string(ask(b, CallKind::kFetch)->ended->message()), HasSubstr("already"));
}

// ---- time ---------------------------------------------------------------------------------------

// ---- --init --------------------------------------------------------------------------------------

// Fails when it is read while the run handles an input: on the run's thread.
class WatchedInit final : public InitialParameters {
 public:
  explicit WatchedInit(const bool* may_read) : may_read_(may_read) {}
  absl::Status CheckFits(const Layout& layout) const override {
    return layout.coordinates() == kCoordinates ? absl::OkStatus()
                                                : absl::InvalidArgumentError("another shape");
  }
  absl::Status CopyInto(const Layout&, std::span<float> x,
                        const std::function<bool()>&) const override {
    EXPECT_TRUE(*may_read_) << "the file is read on the run's thread";
    if (!damage_.ok()) return damage_;
    std::fill(x.begin(), x.end(), 0.25f);
    return absl::OkStatus();
  }
  const std::string& config_json() const override { return none_; }
  const std::string& path() const override { return path_; }
  void Damage(absl::Status status) { damage_ = std::move(status); }

 private:
  const bool* const may_read_;
  const std::string none_, path_ = "init.safetensors";
  absl::Status damage_;
};

class RunInitTest : public RunJoinTest {
 protected:
  WatchedInit* StartWithInit(RunOptions options = Options()) {
    auto init = std::make_unique<WatchedInit>(&loader_works_);
    WatchedInit* const watched = init.get();
    init_ = std::move(init);
    loader_works_ = false;
    StartRun(std::move(options));
    return watched;
  }
  void Load() {
    loader_works_ = true;
    Settle();
    ReadAll();
  }
};

// The file is read, and the pages of the replica are made, while the run answers everybody.
TEST_F(RunInitTest, TheFirstJoinReadsNoFileAndJoinsPingsAndHealthGoOnMeanwhile) {
  StartWithInit();
  TestWorker& a = NewWorker();
  a.Join("a");
  ASSERT_NE(to_load_, nullptr);
  EXPECT_FALSE(a.welcome.has_value());
  ASSERT_EQ(a.notices.size(), 1u);
  EXPECT_THAT(a.notices[0].text(), HasSubstr("--init"));
  TestWorker& b = NewWorker();
  b.Join("b");
  TestWorker& other = NewWorker(kCoordinates - 1);
  other.Join("other");
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  ReadAll();
  EXPECT_EQ(a.notices.size(), 1u) << "told once, whoever joins later";
  EXPECT_EQ(b.notices.size(), 1u);
  EXPECT_EQ(run_->HealthNow().not_ready_because, "waiting for the initial parameters");
  auto upload = std::make_shared<FakeCall>();
  Give({.peer = a.peer->id(), .what = CallAsked{CallKind::kUpload, upload}});
  ASSERT_TRUE(upload->ended.has_value()) << "nobody brings another model meanwhile";
  a.Leave("enough");
  Load();
  ASSERT_TRUE(b.welcome.has_value());
  EXPECT_EQ(b.welcome->state(), v1::Welcome::STATE_FETCH);
  b.BringState();
  EXPECT_EQ(b.x[7], 0.25f);
  ReadAll();
  EXPECT_TRUE(b.open.has_value());
}

TEST_F(RunInitTest, TheFileMakesTheModelAlsoWhenEverybodyLeavesMeanwhile) {
  StartWithInit();
  TestWorker& a = NewWorker();
  a.Join("a");
  a.Leave("enough");
  Load();
  TestWorker& b = Joined("b");
  EXPECT_EQ(b.welcome->state(), v1::Welcome::STATE_FETCH);
  EXPECT_EQ(b.x[7], 0.25f);
}

TEST_F(RunInitTest, AFileThatIsDamagedMeanwhileEndsTheRunAsABadFile) {
  WatchedInit* const init = StartWithInit();
  TestWorker& a = NewWorker();
  a.Join("a");
  init->Damage(absl::DataLossError("was cut while it was read"));
  Load();
  ASSERT_TRUE(run_->ended());
  EXPECT_EQ(ExitCodeFor(run_->end_status()), ExitCode::kBadInput);
  EXPECT_THAT(Describe(run_->end_status()),
              AllOf(HasSubstr("init.safetensors (--init)"), HasSubstr("was cut")));
}

TEST_F(RunInitTest, TheTimeOfReadingIsNoWaitForAWorker) {
  RunOptions options = Options();
  options.wait_timeout = minutes(5);
  StartWithInit(std::move(options));
  TestWorker& a = NewWorker();
  a.Join("a");
  Pass(minutes(30));
  Tick(minutes(30));
  EXPECT_FALSE(run_->ended());
  Load();
  EXPECT_TRUE(a.welcome.has_value());
}

TEST_F(RunInitTest, AStopDoesNotWaitForTheFile) {
  StartWithInit();
  NewWorker().Join("a");
  run_->RequestStop(clock_.Now());
  ASSERT_TRUE(run_->ended());
  EXPECT_TRUE(run_->end_status().ok());
  Load();
  EXPECT_EQ(run_->Snapshot(clock_.Now()).phase, PagePhase::kEnded);
}

// ---- waiting ------------------------------------------------------------------------------------

TEST_F(RunJoinTest, WaitingForWorkersEndsWithItsOwnExitCode) {
  RunOptions options = Options();
  options.wait_timeout = minutes(5);
  StartRun(std::move(options));
  Pass(minutes(5) - seconds(1));
  EXPECT_FALSE(run_->ended());
  Pass(seconds(2));
  ASSERT_TRUE(run_->ended());
  EXPECT_EQ(ExitCodeFor(run_->end_status()), ExitCode::kWaitTimeout);
}

TEST_F(RunJoinTest, WorkersThatArriveOrTransferRenewTheWait) {
  RunOptions options = Options();
  options.wait_timeout = minutes(5);
  options.workers_min = 3;
  StartRun(std::move(options));
  Pass(minutes(4));
  TestWorker& a = Joined("a");
  Pass(minutes(4));
  EXPECT_FALSE(run_->ended()) << "a came";
  TestWorker& b = NewWorker();
  b.Join("b");
  b.AskFetch();
  for (int i = 0; i < 5; ++i) {
    Pass(minutes(4));
    Give({.peer = b.peer->id(), .what = CallProgress{b.call, 1}});
  }
  EXPECT_FALSE(run_->ended()) << "b fetches";
  Pass(minutes(6));
  EXPECT_TRUE(run_->ended());
  (void)a;
}

TEST_F(RunJoinTest, APauseBeforeTheFirstWorkerIsNoWaitForIt) {
  RunOptions options = Options();
  options.wait_timeout = minutes(5);
  StartRun(std::move(options));
  EXPECT_TRUE(run_->Pause(clock_.Now()).ok());
  Pass(minutes(60));
  EXPECT_FALSE(run_->ended());
  EXPECT_TRUE(run_->Resume(clock_.Now()).ok());
  Pass(minutes(6));
  EXPECT_TRUE(run_->ended());
  EXPECT_THAT(Events(), ElementsAre("paused", "resumed", "ended"));
}

TEST_F(RunJoinTest, ReadyOutOfPlaceEndsTheStream) {
  StartRun();
  Joined("a");
  TestWorker& b = NewWorker();
  b.Join("b");
  b.Fetch();
  b.Ready(Round(5));
  EXPECT_EQ(b.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(b.words(), HasSubstr("only 0 are committed"));
  TestWorker& c = Joined("c");
  c.Ready(Round(0));
  EXPECT_EQ(c.code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace signvote::run
