#include "server/run/run_model.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::run {
namespace {

// Verdicts beside those of the recent commits: of the latter's predecessors that the network still
// holds, and unused ones, which wait for a round.
constexpr size_t kVerdictsKept = 8;
// Before and after the open round, and of an attempt that was given up.
constexpr size_t kStatesKept = 3;
constexpr uint64_t kBaseBytes = uint64_t{200} * 1000 * 1000;
// The default cut of a model with dense tensors, as long as it makes no more than kChunksMax chunks: 1 MiB
// of fp32.
constexpr uint64_t kDenseChunkCoordinates = uint64_t{1} << 18;
// Around a payload in its message, generously.
constexpr uint64_t kHeaderBytes = 1024;
// Of a commit for one chunk (`counted`), of a layout for one tensor beside its name and dimensions.
constexpr uint64_t kCommitBytesPerChunk = 5;
constexpr uint64_t kCommitBytesPerTensor = 4;
constexpr uint64_t kLayoutBytesPerTensor = 32;
constexpr uint64_t kLayoutBytesPerDimension = 10;

struct Message {
  std::string_view what;
  uint64_t bytes;
};

PayloadKind KindOf(Aggregate aggregate) {
  return aggregate == Aggregate::kVote ? PayloadKind::kSigns : PayloadKind::kCounts;
}

// The largest payload of a chunk, up or down.
uint64_t ChunkBytes(const Layout& layout, const ChunkPlan& plan, const ModelSizes& sizes) {
  const uint64_t count = plan.Count(ChunkIndex(0));
  const uint64_t voted = CommitBytes(count, sizes);
  if (!HasDense(layout)) return voted;
  return std::max<uint64_t>(voted, PayloadBytes(sizes.dense.wire, count, 0));
}

// The messages whose size the model decides, each at its largest.
std::vector<Message> MessagesOf(const Layout& layout, const ChunkPlan& plan,
                                const ModelSizes& sizes) {
  uint64_t welcome = kHeaderBytes;
  for (const TensorSpec& t : layout.tensors()) {
    welcome += t.name.size() + kLayoutBytesPerTensor + kLayoutBytesPerDimension * t.shape.size();
  }
  return {{"a chunk of a verdict", ChunkBytes(layout, plan, sizes) + kHeaderBytes},
          {"a Welcome with this layout", welcome},
          {"a Commit", kHeaderBytes + kCommitBytesPerChunk * plan.chunks() +
                           kCommitBytesPerTensor * layout.tensors().size()}};
}

}  // namespace

uint64_t CommitBytes(uint64_t coordinates, const ModelSizes& sizes) {
  return PayloadBytes(KindOf(sizes.aggregate), coordinates, sizes.workers_max);
}

uint64_t DefaultCatchUpBytes(uint64_t coordinates, const ModelSizes& sizes) {
  return CommitRing::DefaultBudget(CommitBytes(coordinates, sizes));
}

absl::StatusOr<ChunkPlan> PlanChunks(const Layout& layout, const ModelSizes& sizes) {
  const uint64_t d = layout.coordinates();
  if (sizes.chunk_coordinates % kChunkCoordinatesMultiple != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--chunk-coordinates ", sizes.chunk_coordinates,
                                                   " is not a multiple of ",
                                                   kChunkCoordinatesMultiple));
  }
  const uint64_t least = ((d - 1) / kChunksMax + 1 + kChunkCoordinatesMultiple - 1) /
                         kChunkCoordinatesMultiple * kChunkCoordinatesMultiple;
  uint64_t usual = ChunkPlan::DefaultChunkCoordinates(d);
  // Dense chunks have 16 or 32 times the bytes.
  if (HasDense(layout)) usual = std::min(usual, std::max(kDenseChunkCoordinates, least));
  const uint64_t size = sizes.chunk_coordinates != 0 ? sizes.chunk_coordinates : usual;
  const uint64_t chunks = (d - 1) / size + 1;
  if (chunks > kChunksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--chunk-coordinates ", size, " cuts a model of ", d, " coordinates into ",
                     chunks, " chunks, and a round of more than ", kChunksMax,
                     " cannot keep up; give at least --chunk-coordinates ", least));
  }
  const ChunkPlan plan(d, size);
  for (const Message& message : MessagesOf(layout, plan, sizes)) {
    const bool of_chunk = message.what == "a chunk of a verdict";
    const std::string remedy =
        of_chunk ? absl::StrCat(", or a smaller --chunk-coordinates than ", size) : "";
    if (message.bytes > sizes.session_buffer_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("--session-buffer-bytes ", sizes.session_buffer_bytes, " is less than ",
                       std::string(message.what), " of a model of ", d, " coordinates (up to ",
                       message.bytes, " bytes); give more", remedy));
    }
    if (message.bytes > sizes.message_bytes_max) {
      return absl::InvalidArgumentError(
          absl::StrCat("--message-bytes-max ", sizes.message_bytes_max, " is less than ",
                       std::string(message.what), " of a model of ", d, " coordinates (up to ",
                       message.bytes, " bytes); give more", remedy));
    }
  }
  return plan;
}

std::vector<MemoryPart> ServerMemory(uint64_t coordinates, const ModelSizes& sizes) {
  return ServerMemory(
      coordinates, sizes,
      {.ballot = BytesForBits(coordinates), .commit = CommitBytes(coordinates, sizes)});
}

std::vector<MemoryPart> ServerMemory(uint64_t coordinates, const ModelSizes& sizes,
                                     const RoundBytes& round) {
  const uint64_t commit = round.commit;
  const uint64_t workers = sizes.workers_max;
  std::vector<MemoryPart> parts;
  parts.push_back({.what = "the master replica", .bytes = 4 * coordinates, .remedy = ""});
  if (sizes.needs_x0) {
    parts.push_back({.what = "the starting parameters",
                     .bytes = 4 * coordinates,
                     .remedy = "a --rule that does not need them"});
  }
  parts.push_back({.what = absl::StrCat("ballots of ", workers, " workers"),
                   .bytes = 3 * workers * round.ballot,
                   .remedy = absl::StrCat("--workers-max below ", workers)});
  const uint64_t budget = sizes.catch_up_bytes.value_or(CommitRing::DefaultBudget(commit));
  const bool fewest = CommitRing::CapacityFor(budget, commit) == CommitRing::kRoundsMin;
  parts.push_back({.what = "commits kept for catching up",
                   .bytes = CommitRing::BytesFor(budget, commit),
                   .remedy = fewest ? "" : "a smaller --catch-up-bytes"});
  parts.push_back({.what = "verdicts being counted or sent",
                   .bytes = (kVerdictsKept + 1) * commit,  // and the open round's
                   .remedy = ""});
  if (round.optimizer > 0) {
    parts.push_back({.what = "the optimizer of dense tensors",
                     .bytes = kStatesKept * round.optimizer,
                     .remedy = "a --dense pattern of fewer tensors"});
  }
  parts.push_back({.what = "the copy of an export", .bytes = 4 * coordinates, .remedy = ""});
  parts.push_back({.what = "everything else", .bytes = kBaseBytes, .remedy = ""});
  return parts;
}

RunModel::RunModel(Options options, MemoryReader memory, std::unique_ptr<InitialParameters> init)
    : options_(std::move(options)),
      memory_(std::move(memory)),
      init_path_(init == nullptr ? "" : init->path()),
      init_(std::move(init)),
      lease_(options_.upload) {}

absl::StatusOr<std::unique_ptr<RunModel>> RunModel::Create(
    Options options, MemoryReader memory, std::unique_ptr<InitialParameters> init) {
  if (!std::isfinite(options.weight_decay) || options.weight_decay < 0) {
    return absl::InvalidArgumentError(absl::StrCat("--weight-decay ", options.weight_decay,
                                                   " is out of range; use a number from 0 on"));
  }
  std::unique_ptr<RunModel> model(
      new RunModel(std::move(options), std::move(memory), std::move(init)));
  if (model->init_ != nullptr && !model->init_->config_json().empty()) {
    absl::StatusOr<ModelIdentity> identity = ModelIdentity::FromConfig(model->init_->config_json());
    if (!identity.ok()) {
      return WithExitCode(WithContext(identity.status(),
                                      absl::StrCat("beside ", model->init_->path(), " (--init)")),
                          ExitCode::kBadInput);
    }
    model->init_identity_ = *std::move(identity);
    model->config_json_ = model->init_->config_json();
  }
  return model;
}

absl::StatusOr<Layout> RunModel::WithRules(const Layout& joined) const {
  std::vector<TensorSpec> tensors(joined.tensors().begin(), joined.tensors().end());
  for (TensorSpec& t : tensors) {
    t.step_scale = 1.0f;
    t.weight_decay = t.shape.size() >= 2 ? options_.weight_decay : 0.0f;
    t.treatment = TensorTreatment::kUsual;
    t.dense = false;
  }
  SIGNVOTE_RETURN_IF_ERROR(ApplyTensorRules(options_.tensor_rules, &tensors));
  DenseLast(&tensors);
  return Layout::Make(std::move(tensors));
}

absl::Status RunModel::Adopt(Layout layout, const MasterReplica::Options& replica_options) {
  SIGNVOTE_ASSIGN_OR_RETURN(const ChunkPlan plan, PlanChunks(layout, options_.sizes));
  const ModelSizes& sizes = options_.sizes;
  SIGNVOTE_ASSIGN_OR_RETURN(
      RunPayloads payloads,
      PlanPayloads(layout, plan, sizes.aggregate, sizes.dense.wire, sizes.workers_max));
  const uint64_t state_bytes =
      payloads.DenseCoordinates() * sizes.dense.optimizer.planes() * sizeof(float);
  SIGNVOTE_RETURN_IF_ERROR(
      CheckMemory(absl::StrCat("a server of a model of ", layout.coordinates(), " coordinates"),
                  ServerMemory(layout.coordinates(), sizes,
                               {.ballot = payloads.ballots.TotalBytes(),
                                .commit = payloads.commits.TotalBytes(),
                                .optimizer = state_bytes}),
                  memory_()));
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<MasterReplica> replica,
                            MasterReplica::Create(std::move(layout), replica_options));
  replica_ = std::move(replica);
  payloads_ = std::move(payloads);
  verdict_pool_ = std::make_unique<BufferPool>(payloads_.commits.TotalBytes(), kVerdictsKept);
  ballot_pool_ = std::make_unique<BufferPool>(payloads_.ballots.TotalBytes(), sizes.workers_max);
  state_pool_ = state_bytes == 0 ? nullptr : std::make_unique<BufferPool>(state_bytes, kStatesKept);
  state_ = State::kLayoutKnown;
  return absl::OkStatus();
}

absl::Status RunModel::FixLayout(const CheckedJoin& join) {
  SIGNVOTE_CHECK(state_ == State::kUnknown);
  if (init_ != nullptr && !init_identity_.empty()) {
    // The file's config.json may be another program's: it need not say what a worker's does.
    const std::string difference = FirstContradiction(init_identity_, join.identity);
    if (!difference.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("worker '", join.name, "' trains another model than ", init_path_,
                       " (--init): in config.json ", difference,
                       " (here: beside the file, there: the worker's)"));
    }
  }
  SIGNVOTE_ASSIGN_OR_RETURN(Layout layout, WithRules(join.layout));
  if (init_ != nullptr) {
    if (const absl::Status fits = init_->CheckFits(layout); !fits.ok()) {
      return absl::FailedPreconditionError(absl::StrCat(
          init_path_,
          " (--init) does not fit the worker's model: ", std::string(ToStd(fits.message()))));
    }
  }
  const bool without_config = init_ != nullptr && init_->config_json().empty();
  if (without_config && options_.config_check)
    SIGNVOTE_RETURN_IF_ERROR(options_.config_check(join.config_json));
  SIGNVOTE_RETURN_IF_ERROR(
      Adopt(std::move(layout), {.start = Round(0), .needs_x0 = options_.sizes.needs_x0}));
  // With --init they stay: a file without a config.json binds whoever comes later to the first
  // worker's.
  identity_ = join.identity;
  identity_text_ = join.identity_text;
  if (without_config) config_json_ = join.config_json;
  return absl::OkStatus();
}

std::unique_ptr<InitialParameters> RunModel::TakeInitial() {
  SIGNVOTE_CHECK(state_ == State::kLayoutKnown);
  if (init_ != nullptr) loading_ = true;
  return std::move(init_);
}

absl::Status RunModel::GrantUpload(PeerId uploader, const CheckedJoin& join, Time now) {
  SIGNVOTE_CHECK(state_ == State::kLayoutKnown && !loading_);
  SIGNVOTE_CHECK(join.layout.digest() == layout().digest());
  if (options_.config_check) SIGNVOTE_RETURN_IF_ERROR(options_.config_check(join.config_json));
  SIGNVOTE_ASSIGN_OR_RETURN(Layout layout, WithRules(join.layout));
  // A fresh replica also when the order stays: what an uploader before this one left behind is no
  // part of this one's model, and its transfer may still be writing.
  SIGNVOTE_ASSIGN_OR_RETURN(
      std::unique_ptr<MasterReplica> replica,
      MasterReplica::Create(std::move(layout),
                            {.start = Round(0), .needs_x0 = options_.sizes.needs_x0}));
  replica_ = std::move(replica);
  identity_ = join.identity;
  identity_text_ = join.identity_text;
  config_json_ = join.config_json;
  lease_.Grant(uploader, replica_->coordinates() * sizeof(float), now);
  return absl::OkStatus();
}

absl::Status RunModel::Complete(float max_abs) {
  SIGNVOTE_CHECK(state_ == State::kLayoutKnown);
  lease_.Revoke();
  if (!std::isfinite(max_abs)) {
    return absl::InvalidArgumentError("the initial parameters are not finite");
  }
  x0_max_abs_ = static_cast<double>(max_abs);
  loading_ = false;
  state_ = State::kComplete;
  return absl::OkStatus();
}

absl::Status RunModel::CheckFlagsOf(const Known& known) const {
  const auto other = [](std::string_view flag, std::string_view then, std::string_view now) {
    return absl::FailedPreconditionError(
        absl::StrCat("the saved state is of a run with ", ToAbsl(flag), " ", ToAbsl(then),
                     ", and this server has ", ToAbsl(now), "; start it with ", ToAbsl(flag), " ",
                     ToAbsl(then)));
  };
  const ModelSizes& sizes = options_.sizes;
  if (known.aggregate != sizes.aggregate)
    return other("--aggregate", Words(known.aggregate), Words(sizes.aggregate));
  std::vector<TensorRule> dense;
  std::copy_if(options_.tensor_rules.begin(), options_.tensor_rules.end(),
               std::back_inserter(dense), [](const TensorRule& rule) { return rule.dense; });
  std::vector<TensorSpec> tensors(known.layout.tensors().begin(), known.layout.tensors().end());
  for (TensorSpec& tensor : tensors) tensor.dense = false;
  SIGNVOTE_RETURN_IF_ERROR(ApplyTensorRules(dense, &tensors));
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].dense == known.layout.tensors()[i].dense) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "tensor ", tensors[i].name, tensors[i].dense ? " is voted on" : " is dense",
        " in the saved state and ", tensors[i].dense ? "dense" : "voted on",
        " by the flags of this server; start it with the --dense that the state was saved under"));
  }
  const auto wire = [](PayloadKind kind) { return kind == PayloadKind::kBf16 ? "bf16" : "f32"; };
  if (HasDense(known.layout) && known.dense_wire != sizes.dense.wire)
    return other("--dense-wire", wire(known.dense_wire), wire(sizes.dense.wire));
  return absl::OkStatus();
}

absl::Status RunModel::Restore(const Known& known) {
  SIGNVOTE_CHECK(state_ == State::kUnknown);
  SIGNVOTE_RETURN_IF_ERROR(CheckFlagsOf(known));
  const uint64_t d = known.layout.coordinates();
  SIGNVOTE_CHECK(known.x.size() == d);
  if (!known.x0.empty() && !options_.sizes.needs_x0) {
    return absl::FailedPreconditionError(
        "the saved run keeps the parameters that it began with for its stepsize rule, and this "
        "server's rule does without; start it with the --rule that the run has");
  }
  SIGNVOTE_CHECK(known.x0.empty() || known.x0.size() == d);
  SIGNVOTE_ASSIGN_OR_RETURN(ModelIdentity identity, ModelIdentity::FromConfig(known.config_json));
  SIGNVOTE_RETURN_IF_ERROR(
      Adopt(known.layout, {.start = known.round, .needs_x0 = !known.x0.empty()}));
  std::copy(known.x.begin(), known.x.end(), replica_->x().begin());
  if (!known.x0.empty()) {
    std::copy(known.x0.begin(), known.x0.end(), replica_->RestoreX0().begin());
  }
  identity_ = std::move(identity);
  identity_text_ = known.identity_text;
  config_json_ = known.config_json;
  x0_max_abs_ = known.x0_max_abs;
  init_.reset();
  state_ = State::kComplete;
  return absl::OkStatus();
}

void RunModel::Forget() {
  SIGNVOTE_CHECK(state_ != State::kComplete && !loading_);
  lease_.Revoke();
  state_ = State::kUnknown;
  replica_.reset();
  verdict_pool_.reset();
  ballot_pool_.reset();
  state_pool_.reset();
  payloads_ = RunPayloads();
  identity_ = ModelIdentity();
  identity_text_.clear();
  config_json_ = init_ == nullptr ? "" : init_->config_json();
}

uint64_t RunModel::catch_up_bytes() const {
  return options_.sizes.catch_up_bytes.value_or(
      CommitRing::DefaultBudget(payloads_.commits.TotalBytes()));
}

}  // namespace signvote::run
