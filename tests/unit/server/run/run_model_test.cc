#include "server/run/run_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/bits.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::run {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kMiB = uint64_t{1} << 20;

Layout Flat(uint64_t d) { return *Layout::Make({{.name = "w", .shape = {d}}}); }

CheckedJoin JoinOf(std::vector<TensorSpec> tensors, const std::string& config = "") {
  CheckedJoin join;
  join.name = "w0";
  join.layout = *Layout::Make(std::move(tensors));
  join.config_json = config;
  join.identity = *ModelIdentity::FromConfig(config);
  join.identity_text = "loss: x";
  return join;
}
std::vector<TensorSpec> Small() {
  return {{.name = "w", .shape = {2, 3}}, {.name = "b", .shape = {4}}, {.name = "s"}};
}

std::string Message(const absl::Status& status) { return std::string(ToStd(status.message())); }

class FakeInit final : public InitialParameters {
 public:
  FakeInit(float value, std::string config) : value_(value), config_(std::move(config)) {}
  absl::Status CheckFits(const Layout& layout) const override {
    if (layout.coordinates() != 11) return absl::FailedPreconditionError("tensor w is missing");
    return absl::OkStatus();
  }
  absl::Status CopyInto(const Layout&, std::span<float> x,
                        const std::function<bool()>& give_up) const override {
    if (give_up()) return absl::CancelledError("given up");
    std::fill(x.begin(), x.end(), value_);
    return absl::OkStatus();
  }
  const std::string& config_json() const override { return config_; }
  const std::string& path() const override { return path_; }

 private:
  const float value_;
  const std::string config_, path_ = "init.safetensors";
};

RunModel::MemoryReader Left(std::optional<uint64_t> bytes) {
  return [bytes]() -> std::optional<MemoryLimit> {
    if (!bytes.has_value()) return std::nullopt;
    return MemoryLimit{.bytes = *bytes, .source = "the machine"};
  };
}

std::unique_ptr<RunModel> Make(RunModel::Options options = {},
                               std::unique_ptr<InitialParameters> init = nullptr) {
  auto model = RunModel::Create(std::move(options), Left(std::nullopt), std::move(init));
  EXPECT_TRUE(model.ok()) << Describe(model.status());
  return *std::move(model);
}

TEST(ServerMemory, FollowsTheRule) {
  const uint64_t d = 1'000'000'001;
  const uint64_t packed = BytesForBits(d);
  const ModelSizes sizes{.workers_max = 4};
  EXPECT_EQ(TotalBytes(ServerMemory(d, sizes)),
            4 * d + 3 * 4 * packed + 8 * packed + 9 * packed + 4 * d + 200'000'000);
  EXPECT_EQ(TotalBytes(ServerMemory(d, {.catch_up_bytes = 5, .workers_max = 4, .needs_x0 = true})),
            8 * d + 3 * 4 * packed + 4 * packed + 9 * packed + 4 * d + 200'000'000);
  // Of a small model not all of the budget can be used.
  EXPECT_EQ(TotalBytes(ServerMemory(800, {.workers_max = 4})),
            4 * 800 + 3 * 4 * 100 + 1024 * 100 + 9 * 100 + 4 * 800 + 200'000'000u);
  EXPECT_EQ(DefaultCatchUpBytes(1'000'000), 64 * kMiB);
  EXPECT_EQ(DefaultCatchUpBytes(d), 8 * packed);
}

TEST(ServerMemory, OfAveragesEveryCommitHasRoomForThePlanesOfAllWorkers) {
  const uint64_t d = 1'000'000'001;
  const uint64_t packed = BytesForBits(d);
  ModelSizes sizes{.workers_max = 4, .aggregate = Aggregate::kAverage};
  EXPECT_EQ(CommitBytes(d, sizes), 3 * packed);
  EXPECT_EQ(DefaultCatchUpBytes(d, sizes), 8 * 3 * packed);
  EXPECT_EQ(TotalBytes(ServerMemory(d, sizes)),
            4 * d + 3 * 4 * packed + (8 + 9) * 3 * packed + 4 * d + 200'000'000);
  sizes.workers_max = 64;
  EXPECT_EQ(CommitBytes(d, sizes), 7 * packed);
}

TEST(ServerMemory, TheOptimizerOfDenseTensorsTakesItsStateThreeTimes) {
  const uint64_t d = 1'000'000;
  const RoundBytes round{.ballot = 4 * d, .commit = 4 * d, .optimizer = 8 * d};
  const ModelSizes sizes{.catch_up_bytes = 0, .workers_max = 4};
  EXPECT_EQ(TotalBytes(ServerMemory(d, sizes, round)),
            4 * d + 3 * 4 * round.ballot + (4 + 9) * round.commit + 3 * round.optimizer + 4 * d +
                200'000'000);
}

TEST(RunModel, TheMemoryRuleCountsBallotsCommitsAndOptimizerOfDenseTensors) {
  constexpr uint64_t kDense = 1'000'000;
  const auto needed = [&](DenseOptimizer::Kind kind) {
    RunModel::Options options{.sizes = {.catch_up_bytes = 0, .workers_max = 4},
                              .tensor_rules = *ParseDense("*")};
    options.sizes.dense.optimizer.kind = kind;
    const auto model = *RunModel::Create(options, Left(1000), nullptr);
    const absl::Status status =
        model->FixLayout(JoinOf({{.name = "w", .shape = {kDense}}}, R"({"a": 1})"));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    return Message(status);
  };
  EXPECT_THAT(needed(DenseOptimizer::Kind::kAdamW),
              AllOf(HasSubstr("ballots of 4 workers 46 MiB (48000000 bytes)"),
                    HasSubstr("the optimizer of dense tensors 23 MiB (24000000 bytes)")));
  EXPECT_THAT(needed(DenseOptimizer::Kind::kSgd), Not(HasSubstr("the optimizer of dense tensors")));
}

TEST(PlanChunks, SizesThatCannotWorkAreRefusedWithFlagAndValue) {
  const auto refused = [](uint64_t d, ModelSizes sizes) {
    const absl::Status status = PlanChunks(Flat(d), sizes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return Message(status);
  };
  EXPECT_THAT(refused(4096, {.chunk_coordinates = 100}), HasSubstr("--chunk-coordinates 100"));
  EXPECT_THAT(refused(25'000'000, {.chunk_coordinates = 512}),
              HasSubstr("--chunk-coordinates 512 cuts a model of 25000000 coordinates into 48829"));
  EXPECT_THAT(refused(25'000'000, {.chunk_coordinates = 512}),
              HasSubstr("at least --chunk-coordinates 3072"));
  EXPECT_TRUE(PlanChunks(Flat(25'000'000), {.chunk_coordinates = 3072}).ok());
  EXPECT_TRUE(PlanChunks(Flat(2048), {.chunk_coordinates = 512}).ok());
  EXPECT_TRUE(PlanChunks(Flat(uint64_t{512} << 13), {.chunk_coordinates = 512}).ok());
  EXPECT_FALSE(PlanChunks(Flat((uint64_t{512} << 13) + 1), {.chunk_coordinates = 512}).ok());
  const uint64_t large = uint64_t{1} << 30;
  EXPECT_THAT(refused(large, {.chunk_coordinates = large}),
              HasSubstr("--session-buffer-bytes 67108864 is less than a chunk of a verdict"));
  EXPECT_THAT(refused(large, {.chunk_coordinates = large, .session_buffer_bytes = large}),
              HasSubstr("--message-bytes-max 8388608 is less than a chunk of a verdict"));
  EXPECT_TRUE(PlanChunks(Flat(large), {.chunk_coordinates = large,
                                       .session_buffer_bytes = large,
                                       .message_bytes_max = large})
                  .ok());
}

Layout WithDenseHead(uint64_t body, uint64_t head) {
  return *Layout::Make(
      {{.name = "body", .shape = {body}}, {.name = "head", .shape = {head}, .dense = true}});
}

TEST(PlanChunks, OfDenseTensorsAChunkIsAMebibyteOfFp32AndLargerOnlyWhereThereWouldBeTooMany) {
  const auto size = [](const Layout& layout) {
    const auto plan = PlanChunks(layout, {});
    EXPECT_TRUE(plan.ok()) << Describe(plan.status());
    return plan->chunk_coordinates();
  };
  EXPECT_EQ(size(WithDenseHead(300'000'000, 50'000'000)), uint64_t{1} << 18);
  EXPECT_LT(size(WithDenseHead(90'000, 10'000)), uint64_t{1} << 18) << "as without";
  const uint64_t most = uint64_t{1} << 31;
  EXPECT_EQ(size(WithDenseHead(most - 1000, 1000)), uint64_t{1} << 18);
  EXPECT_EQ(size(WithDenseHead(most - 1000, 1001)), (uint64_t{1} << 18) + 512);
}

// 2^21 coordinates are 256 KiB of bits, and 8 MiB of fp32, which with what is around them no message
// takes.
TEST(PlanChunks, ADenseChunkIsAsLongAsItsNumbers) {
  ModelSizes sizes{.chunk_coordinates = uint64_t{1} << 21};
  EXPECT_TRUE(PlanChunks(Flat(10'000'000), sizes).ok());
  const Layout layout = WithDenseHead(9'000'000, 1'000'000);
  const absl::Status status = PlanChunks(layout, sizes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("--message-bytes-max 8388608 is less than a chunk of a "
                                         "verdict of a model of 10000000 coordinates (up to "
                                         "8389632 bytes)"));
  sizes.dense.wire = PayloadKind::kBf16;
  EXPECT_TRUE(PlanChunks(layout, sizes).ok());
}

TEST(PlanChunks, AVerdictLargerThanTheBufferIsFineInPieces) {
  const auto plan = PlanChunks(Flat(600'000'000), {.session_buffer_bytes = kMiB});
  ASSERT_TRUE(plan.ok());
  EXPECT_GT(plan->TotalBytes(), kMiB);
}

TEST(PlanChunks, AWelcomeThatDoesNotFitIsRefused) {
  std::vector<TensorSpec> tensors(2'000);
  for (size_t i = 0; i < tensors.size(); ++i)
    tensors[i].name = std::string(900, 'n') + std::to_string(i);
  const Layout layout = *Layout::Make(std::move(tensors));
  const absl::Status status = PlanChunks(layout, {.session_buffer_bytes = kMiB}).status();
  EXPECT_THAT(Message(status), HasSubstr("--session-buffer-bytes 1048576 is less than a Welcome"));
  EXPECT_TRUE(PlanChunks(layout, {.session_buffer_bytes = 4 * kMiB}).ok());
}

TEST(RunModel, WeightDecayIsThatOfMatricesAndScalesAreOne) {
  const auto model = Make({.weight_decay = 0.1f});
  EXPECT_EQ(model->wanted_layout(), nullptr);
  EXPECT_EQ(model->wanted_identity(), nullptr);
  ASSERT_TRUE(model->FixLayout(JoinOf(Small(), R"({"a": 1})")).ok());
  EXPECT_EQ(model->state(), RunModel::State::kLayoutKnown);
  const auto tensors = model->layout().tensors();
  EXPECT_EQ(tensors[0].weight_decay, 0.1f);
  EXPECT_EQ(tensors[1].weight_decay, 0.0f);
  EXPECT_EQ(tensors[2].weight_decay, 0.0f);
  EXPECT_EQ(tensors[0].step_scale, 1.0f);
  EXPECT_EQ(model->plan().coordinates(), 11u);
  EXPECT_EQ(model->wanted_identity()->json(), R"({"a":1})");
  EXPECT_EQ(model->identity_text(), "loss: x");
  EXPECT_EQ(model->ballots().bytes(), 2u);
  for (const float bad :
       {-1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const auto refused = RunModel::Create({.weight_decay = bad}, Left(std::nullopt), nullptr);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(RunModel, RulesForSingleTensorsComeAfterTheDecayByRankAndMustFitTheModel) {
  const std::string name = Small()[0].name;
  const auto model =
      Make({.weight_decay = 0.1f, .tensor_rules = *ParseTensorDecays(name + "=0.5")});
  ASSERT_TRUE(model->FixLayout(JoinOf(Small(), R"({"a": 1})")).ok());
  EXPECT_EQ(model->layout().tensors()[0].weight_decay, 0.5f);
  const auto strange = Make({.tensor_rules = *ParseTensorScales("nothing=2")});
  const absl::Status refused = strange->FixLayout(JoinOf(Small(), R"({"a": 1})"));
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(refused),
              HasSubstr("--tensor-scale nothing=…: no tensor of this model has such a name"));
  EXPECT_EQ(strange->state(), RunModel::State::kUnknown);
}

TEST(RunModel, DenseTensorsComeLastWhateverTheJoinersOrderAndTakeAnOptimizer) {
  ModelSizes sizes;
  sizes.dense.wire = PayloadKind::kBf16;
  const std::string first = Small()[0].name;
  const auto model = Make({.sizes = sizes, .tensor_rules = *ParseDense(first)});
  ASSERT_TRUE(model->FixLayout(JoinOf(Small(), R"({"a": 1})")).ok());
  const auto tensors = model->layout().tensors();
  EXPECT_EQ(tensors.back().name, first);
  EXPECT_TRUE(tensors.back().dense);
  EXPECT_FALSE(tensors.front().dense);
  EXPECT_FALSE(model->payloads().commits.OnlySigns());
  ASSERT_NE(model->optimizer_states(), nullptr);
  EXPECT_EQ(model->optimizer_states()->bytes(), 8 * model->payloads().DenseCoordinates());
  ModelSizes alias = sizes;
  alias.dense.optimizer.kind = DenseOptimizer::Kind::kAliasAdam;
  const auto larger = Make({.sizes = alias, .tensor_rules = *ParseDense(first)});
  ASSERT_TRUE(larger->FixLayout(JoinOf(Small(), R"({"a": 1})")).ok());
  EXPECT_EQ(larger->optimizer_states()->bytes(), 12 * larger->payloads().DenseCoordinates());
  std::vector<TensorSpec> turned = Small();
  std::reverse(turned.begin(), turned.end());
  ASSERT_TRUE(model->GrantUpload(PeerId(5), JoinOf(turned, R"({"a": 1})"), Time{}).ok());
  EXPECT_EQ(model->layout().tensors().back().name, first);
}

TEST(RunModel, OrderConfigAndIdentityAreTheUploadersNotWhoeverCameFirst) {
  const auto model = Make();
  ASSERT_TRUE(model->FixLayout(JoinOf(Small(), R"({"a": 1, "name": "first"})")).ok());
  EXPECT_EQ(model->config_json(), "");
  std::vector<TensorSpec> turned = Small();
  std::swap(turned[0], turned[2]);
  const CheckedJoin uploader = JoinOf(turned, R"({"a": 1, "name": "uploader"})");
  const std::shared_ptr<MasterReplica> before = model->replica();
  ASSERT_TRUE(model->GrantUpload(PeerId(5), uploader, Time{}).ok());
  EXPECT_NE(model->replica(), before);
  EXPECT_EQ(model->layout().tensors()[0].name, "s");
  EXPECT_EQ(model->config_json(), R"({"a": 1, "name": "uploader"})");
  EXPECT_EQ(model->lease().holder(), PeerId(5));
  ASSERT_TRUE(model->Complete(2.5f).ok());
  EXPECT_EQ(model->state(), RunModel::State::kComplete);
  EXPECT_EQ(model->x0_max_abs(), 2.5);
  EXPECT_FALSE(model->lease().holder().has_value());
}

TEST(RunModel, ParametersThatAreNotFiniteEndTheLeaseAndTheNextOneMayUpload) {
  const auto model = Make();
  ASSERT_TRUE(model->FixLayout(JoinOf(Small())).ok());
  ASSERT_TRUE(model->GrantUpload(PeerId(5), JoinOf(Small(), R"({"b": 1})"), Time{}).ok());
  model->replica()->x()[10] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(model->Complete(std::numeric_limits<float>::quiet_NaN()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(model->state(), RunModel::State::kLayoutKnown);
  EXPECT_FALSE(model->lease().holder().has_value());
  ASSERT_TRUE(model->GrantUpload(PeerId(6), JoinOf(Small()), Time{}).ok());
  // Nothing of the one before is left.
  EXPECT_EQ(model->replica()->x()[10], 0.0f);
  EXPECT_EQ(model->config_json(), "");
  EXPECT_TRUE(model->Complete(0).ok());
}

TEST(RunModel, TheOperatorsCheckIsOfTheConfigThatIsExportedTheUploaders) {
  RunModel::Options options;
  options.config_check = [](const std::string& config) {
    return config == "{\"a\":1}" ? absl::OkStatus()
                                 : absl::FailedPreconditionError("another model");
  };
  auto model = RunModel::Create(options, Left(std::nullopt), nullptr);
  ASSERT_TRUE(model.ok());
  // Whoever came first is not asked for its parameters.
  EXPECT_TRUE((*model)->FixLayout(JoinOf(Small(), "{\"a\":2}")).ok());
  const std::shared_ptr<MasterReplica> before = (*model)->replica();
  EXPECT_EQ((*model)->GrantUpload(PeerId(5), JoinOf(Small(), "{\"a\":2}"), Time{}),
            absl::FailedPreconditionError("another model"));
  EXPECT_EQ((*model)->replica(), before);
  EXPECT_FALSE((*model)->lease().holder().has_value());
  EXPECT_EQ((*model)->config_json(), "");
  EXPECT_TRUE((*model)->GrantUpload(PeerId(6), JoinOf(Small(), "{\"a\":1}"), Time{}).ok());
  EXPECT_EQ((*model)->config_json(), "{\"a\":1}");
  // With --init that config is exported, and was checked when the server began.
  auto init =
      RunModel::Create(options, Left(std::nullopt), std::make_unique<FakeInit>(1.0f, "{\"a\":2}"));
  ASSERT_TRUE(init.ok());
  EXPECT_TRUE((*init)->FixLayout(JoinOf(Small(), "{\"a\":2}")).ok());
}

TEST(RunModel, TheMemoryRuleNamesEachPartAndTheFlagsThatHelp) {
  auto model = RunModel::Create({.sizes = {.workers_max = 64}}, Left(300 * kMiB), nullptr);
  ASSERT_TRUE(model.ok());
  CheckedJoin join = JoinOf({{.name = "w", .shape = {25'000'000}}});
  const absl::Status status = (*model)->FixLayout(join);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  for (const char* words :
       {"a model of 25000000 coordinates", "300 MiB are left (the machine)", "the master replica",
        "(100000000 bytes)", "ballots of 64 workers", "(600000000 bytes)", "--workers-max below 64",
        "commits kept for catching up", "--catch-up-bytes", "verdicts being counted or sent",
        "the copy of an export"}) {
    EXPECT_THAT(Message(status), HasSubstr(words));
  }
  EXPECT_EQ((*model)->state(), RunModel::State::kUnknown);
  EXPECT_TRUE((*model)->FixLayout(JoinOf(Small())).ok());
}

// Whatever budget is given: the flag alone does not say what is kept.
TEST(RunModel, RecentCommitsAndVerdictsStayWithinTheirPartsOfTheMemoryRule) {
  const uint64_t d = 4'000'000;
  const uint64_t packed = BytesForBits(d);
  const auto part = [&](const ModelSizes& sizes, const std::string& what) {
    for (const MemoryPart& p : ServerMemory(d, sizes)) {
      if (p.what == what) return p;
    }
    ADD_FAILURE() << what;
    return MemoryPart{};
  };
  for (const uint64_t budget : {uint64_t{0}, uint64_t{5}, 3 * packed, 5 * packed + 7, 64 * kMiB}) {
    SCOPED_TRACE(budget);
    const auto model = Make({.sizes = {.catch_up_bytes = budget}});
    ASSERT_TRUE(model->FixLayout(JoinOf({{.name = "w", .shape = {d}}})).ok());
    // As a run goes: each round takes a buffer, and the ring lets go of the oldest.
    const size_t kept = CommitRing::CapacityFor(model->catch_up_bytes(), packed);
    std::deque<std::shared_ptr<uint8_t>> ring, sending;
    for (int round = 0; round < 50; ++round) {
      ring.push_back(model->verdicts().Acquire());
      if (ring.size() <= kept) continue;
      sending.push_back(std::move(ring.front()));
      ring.pop_front();
      if (sending.size() == 8) sending.clear();
    }
    const MemoryPart commits = part({.catch_up_bytes = budget}, "commits kept for catching up");
    const MemoryPart verdicts = part({.catch_up_bytes = budget}, "verdicts being counted or sent");
    EXPECT_LE(kept * packed, commits.bytes);
    EXPECT_LE(model->verdicts().allocated() * packed, commits.bytes + verdicts.bytes);
    ring.clear();
    sending.clear();
    EXPECT_LE(model->verdicts().allocated() * packed, verdicts.bytes) << "unused ones";
    EXPECT_EQ(commits.remedy.empty(), kept == CommitRing::kRoundsMin) << "which does not help";
  }
}

TEST(RunModel, ForgottenLayoutsBindNobody) {
  const auto model = Make();
  ASSERT_TRUE(model->FixLayout(JoinOf(Small())).ok());
  ASSERT_TRUE(model->GrantUpload(PeerId(5), JoinOf(Small(), R"({"b": 1})"), Time{}).ok());
  model->Forget();
  EXPECT_EQ(model->state(), RunModel::State::kUnknown);
  EXPECT_EQ(model->wanted_layout(), nullptr);
  EXPECT_EQ(model->config_json(), "");
  EXPECT_FALSE(model->lease().holder().has_value());
  EXPECT_TRUE(model->FixLayout(JoinOf({{.name = "other"}})).ok());
}

TEST(RunModel, ParametersFromAFileAreReadByWhoeverTakesThem) {
  const auto model = Make({}, std::make_unique<FakeInit>(3.0f, R"({"a": 1, "name": "file"})"));
  EXPECT_EQ(model->FixLayout(JoinOf(Small(), R"({"a": 2})")).code(),
            absl::StatusCode::kFailedPrecondition);
  const absl::Status other = model->FixLayout(JoinOf({{.name = "w"}}, R"({"a": 1})"));
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(other), HasSubstr("init.safetensors (--init) does not fit"));
  EXPECT_EQ(model->state(), RunModel::State::kUnknown);
  ASSERT_TRUE(model->FixLayout(JoinOf(Small(), R"({"a": 1, "name": "worker"})")).ok());
  EXPECT_EQ(model->state(), RunModel::State::kLayoutKnown);
  EXPECT_EQ(model->replica()->x()[7], 0.0f) << "this thread reads nothing";
  EXPECT_FALSE(model->loading());
  const std::unique_ptr<InitialParameters> init = model->TakeInitial();
  ASSERT_NE(init, nullptr);
  EXPECT_TRUE(model->loading());
  EXPECT_EQ(model->TakeInitial(), nullptr) << "once";
  EXPECT_EQ(LoadInitial(*init, *model->replica(), [] { return true; }).status.code(),
            absl::StatusCode::kCancelled);
  const InitLoaded loaded = LoadInitial(*init, *model->replica(), [] { return false; });
  ASSERT_TRUE(loaded.status.ok());
  ASSERT_TRUE(model->Complete(loaded.max_abs).ok());
  EXPECT_EQ(model->state(), RunModel::State::kComplete);
  EXPECT_FALSE(model->loading());
  EXPECT_EQ(model->replica()->x()[7], 3.0f);
  EXPECT_EQ(model->x0_max_abs(), 3.0);
  EXPECT_EQ(model->config_json(), R"({"a": 1, "name": "file"})");
}

TEST(RunModel, AConfigOfAnotherProgramsBesideTheFileNeedNotSayWhatAWorkersSays) {
  const std::string theirs =
      R"({"a": 1, "bos_token_id": 1, "rope_parameters": {"rope_theta": 1e4, "type": "default"}})";
  const auto model = Make({}, std::make_unique<FakeInit>(3.0f, theirs));
  const absl::Status other = model->FixLayout(JoinOf(Small(), R"({"rope_theta": 5e5})"));
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(other), HasSubstr("\"rope_theta\" is 10000 here, 500000 there"));
  EXPECT_EQ(model->FixLayout(JoinOf(Small(), "")).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(model->FixLayout(JoinOf(Small(), R"({"rope_theta": 10000, "b": 2})")).ok());
  EXPECT_EQ(model->config_json(), theirs);
  EXPECT_EQ(model->wanted_identity()->json(), R"({"b":2,"rope_theta":10000})");
}

TEST(RunModel, AFileWithoutAConfigIsBoundToTheFirstWorkersAndExportedWithIt) {
  const auto model = Make({}, std::make_unique<FakeInit>(3.0f, ""));
  ASSERT_TRUE(model->FixLayout(JoinOf(Small(), R"({"a": 1})")).ok());
  EXPECT_EQ(model->config_json(), R"({"a": 1})");
  EXPECT_EQ(model->wanted_identity()->json(), R"({"a":1})");
  model->Forget();
  EXPECT_EQ(model->config_json(), "");
}

TEST(RunModel, TheOperatorsCheckIsOfTheFirstWorkersConfigWhereNoneLiesBesideTheFile) {
  RunModel::Options options;
  options.config_check = [](const std::string& config) {
    return config == "{\"a\":1}" ? absl::OkStatus()
                                 : absl::FailedPreconditionError("another model");
  };
  const auto model = Make(options, std::make_unique<FakeInit>(3.0f, ""));
  EXPECT_EQ(model->FixLayout(JoinOf(Small(), "{\"a\":2}")),
            absl::FailedPreconditionError("another model"));
  EXPECT_EQ(model->state(), RunModel::State::kUnknown);
  EXPECT_EQ(model->config_json(), "");
  EXPECT_TRUE(model->FixLayout(JoinOf(Small(), "{\"a\":1}")).ok());
}

TEST(RunModel, ABadConfigBesideTheFileIsToldAtTheStart) {
  const auto model =
      RunModel::Create({}, Left(std::nullopt), std::make_unique<FakeInit>(1.0f, "[]"));
  EXPECT_EQ(ExitCodeFor(model.status()), ExitCode::kBadInput);
  EXPECT_THAT(Message(model.status()), HasSubstr("beside init.safetensors"));
}

TEST(RunModel, AStateOfOtherFlagsIsRefusedWithTheFlag) {
  const std::vector<float> x(11);
  RunModel::Known known;
  known.config_json = R"({"a": 1})";
  known.x = x;
  const auto refusal = [&](const RunModel::Options& options) {
    const absl::Status status = Make(options)->Restore(known);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return Message(status);
  };
  const auto with = [](const char* dense, PayloadKind wire = PayloadKind::kFp32,
                       Aggregate aggregate = Aggregate::kVote) {
    RunModel::Options options{.sizes = {.aggregate = aggregate},
                              .tensor_rules = *ParseDense(dense)};
    options.sizes.dense.wire = wire;
    options.sizes.dense.optimizer.kind = DenseOptimizer::Kind::kSgd;  // no numbers tell the layout
    return options;
  };
  known.layout = *Layout::Make(Small());
  ASSERT_TRUE(Make(with(""))->Restore(known).ok());
  EXPECT_EQ(refusal(with("", PayloadKind::kFp32, Aggregate::kAverage)),
            "the saved state is of a run with --aggregate vote, and this server has average; start "
            "it with --aggregate vote");
  EXPECT_EQ(refusal(with("*")),
            "tensor w is voted on in the saved state and dense by the flags of this server; start "
            "it with the --dense that the state was saved under");
  std::vector<TensorSpec> tensors = Small();
  tensors[1].dense = true;
  DenseLast(&tensors);
  known.layout = *Layout::Make(std::move(tensors));
  known.dense_wire = PayloadKind::kBf16;
  ASSERT_TRUE(Make(with("b", PayloadKind::kBf16))->Restore(known).ok());
  EXPECT_THAT(refusal(with("", PayloadKind::kBf16)), HasSubstr("tensor b is dense"));
  EXPECT_THAT(refusal(with("w", PayloadKind::kBf16)), HasSubstr("tensor w is voted on"));
  EXPECT_THAT(refusal(with("b")), HasSubstr("with --dense-wire bf16, and this server has f32"));
}

TEST(RunModel, AKnownModelIsRestoredAsItWas) {
  const auto model = Make({.sizes = {.needs_x0 = true}, .weight_decay = 0.5f});
  RunModel::Known known;
  known.layout =
      *Layout::Make({{.name = "w", .shape = {2, 2}, .step_scale = 2.0f, .weight_decay = 0.25f}});
  known.config_json = R"({"a": 1})";
  known.identity_text = "t";
  const std::vector<float> x = {1, 2, 3, 4}, x0 = {5, 6, 7, 8};
  known.x = x;
  known.x0 = x0;
  known.x0_max_abs = 8;
  known.round = Round(12);
  ASSERT_TRUE(model->Restore(known).ok());
  EXPECT_EQ(model->state(), RunModel::State::kComplete);
  EXPECT_TRUE(model->layout() == known.layout);
  EXPECT_EQ(model->x0_max_abs(), 8);
  EXPECT_EQ(model->config_json(), known.config_json);
  EXPECT_EQ(model->identity_text(), "t");
  EXPECT_EQ(model->wanted_identity()->json(), R"({"a":1})");
  std::vector<float> out(4);
  EXPECT_EQ(model->replica()->CopyPiece(Plane::kX, 0, out.data()).value(), Round(12));
  EXPECT_EQ(out, x);
  ASSERT_TRUE(model->replica()->CopyPiece(Plane::kX0, 0, out.data()).ok());
  EXPECT_EQ(out, x0);
}

}  // namespace
}  // namespace signvote::run
