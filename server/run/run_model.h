#pragma once
// The model of a run: what its coordinates are, where they lie at the server, and where they came from.
//
//   kUnknown ──FixLayout──▶ kLayoutKnown ──Complete──▶ kComplete
//       ▲                        │
//       └────────Forget──────────┘
//
// Between FixLayout and Complete the parameters come: from an uploader, or from --init, which another
// thread reads (TakeInitial, LoadInitial).

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/memory_budget.h"
#include "common/message_size.h"
#include "common/model_identity.h"
#include "common/payload_plan.h"
#include "common/vote_terms.h"
#include "server/commit/commit_ring.h"
#include "server/replica/master_replica.h"
#include "server/run/admission.h"
#include "server/run/initial.h"
#include "server/run/run_payloads.h"
#include "server/run/tensor_rules.h"
#include "server/run/upload_lease.h"
#include "server/vote/buffer_pool.h"

namespace signvote::run {

// More chunks than this and the headers of a round outweigh its bits: 2^13 chunks of the default's
// largest size are 1.7e10 coordinates.
inline constexpr uint32_t kChunksMax = 1u << 13;

// What has to fit, whoever comes.
struct ModelSizes {
  uint64_t chunk_coordinates = 0;  // --chunk-coordinates; 0: ChunkPlan's default
  uint64_t session_buffer_bytes = uint64_t{64} << 20;
  uint64_t message_bytes_max = kMessageBytesDefault;
  std::optional<uint64_t> catch_up_bytes;  // --catch-up-bytes; nullopt: DefaultCatchUpBytes()
  uint32_t workers_max = 64;
  bool needs_x0 = false;  // the rule keeps the starting parameters
  Aggregate aggregate = Aggregate::kVote;
  DenseOptions dense;
};

// What one round of a model takes, in bytes.
struct RoundBytes {
  uint64_t ballot = 0;     // of one worker
  uint64_t commit = 0;     // the largest payload of a commit
  uint64_t optimizer = 0;  // state of the optimizer of dense tensors
};

// The largest payload of a commit: ⌈d/8⌉ of a vote; as many times that as the counts of workers_max
// ballots have planes of an average.
uint64_t CommitBytes(uint64_t coordinates, const ModelSizes& sizes);

// max(64 MiB, 8 CommitBytes()): eight rounds, so that a worker that fetches the state of a large model
// is not outrun by the rounds of the meantime.
uint64_t DefaultCatchUpBytes(uint64_t coordinates, const ModelSizes& sizes = {});

// INVALID_ARGUMENT names flag and value of a size that cannot work with this layout, whatever the
// machine: --chunk-coordinates (not a multiple of 512, more than kChunksMax chunks, a chunk larger than
// a message or than the session's buffer), --session-buffer-bytes and --message-bytes-max (too small
// for a Welcome with this layout or for a Commit).
absl::StatusOr<ChunkPlan> PlanChunks(const Layout& layout, const ModelSizes& sizes);

// What a server of this model takes (docs/performance.md, "Server memory"): 4 B a coordinate for the
// master replica, 8 with x0; 3 ⌈d/8⌉ for each of workers_max workers; the commits that the catch-up
// budget keeps, four at least; 9 CommitBytes() for payloads that are counted, sent or wait for their
// next use; an export's copy of 4 B a coordinate; 200 MB. The optimizer of dense tensors takes its state
// three times: before and after the open round, and of an attempt that was given up.
std::vector<MemoryPart> ServerMemory(uint64_t coordinates, const ModelSizes& sizes,
                                     const RoundBytes& round);
// Of a model that is voted on.
std::vector<MemoryPart> ServerMemory(uint64_t coordinates, const ModelSizes& sizes);

// Ownership:  owns pools and lease; shares the replica with applier and transfers.
// Threads:    thread-compatible; the run's thread. What replica() and the pools point to is thread-safe
//             as their headers say.
// Failure:    a layout that does not fit leaves the state as it was.
// Invariants: the order of coordinates is the uploader's (with --init, the first joiner's) and fixed
//             once kComplete. config_json() is of whom the model is: the uploader's, or what lies beside
//             --init; where nothing does, that of the first joiner, to whose identity --init is bound.
class RunModel {
 public:
  enum class State { kUnknown, kLayoutKnown, kComplete };

  // The operator's own reasons to refuse a model, by the config.json that would be exported, asked before
  // it becomes the run's: the uploader's, or the first joiner's where none lies beside --init. Its status
  // goes to that worker. One that lies beside --init is known before the run, and not asked about here.
  using ConfigCheck = std::function<absl::Status(const std::string& config_json)>;

  struct Options {
    ModelSizes sizes;
    float weight_decay = 0;  // --weight-decay: of the tensors with two dimensions and more; >= 0
    std::vector<TensorRule> tensor_rules;  // --tensor-…: after it
    UploadLease::Options upload;
    ConfigCheck config_check;  // null: any model will do
  };
  // Memory that is left, asked once for each layout; nullopt: unknown.
  using MemoryReader = std::function<std::optional<MemoryLimit>()>;

  // `init` may be null: the parameters come from a worker. INVALID_ARGUMENT: weight_decay is negative or
  // not finite, or the config.json beside --init is not one.
  static absl::StatusOr<std::unique_ptr<RunModel>> Create(Options options, MemoryReader memory,
                                                          std::unique_ptr<InitialParameters> init);

  // The first worker's layout becomes the run's: scales 1, decay by rank, then the tensors' rules, dense
  // tensors last. INVALID_ARGUMENT: PlanChunks(). RESOURCE_EXHAUSTED: the memory rule, with the bytes of
  // each part and the flags that help. FAILED_PRECONDITION: --init, or the config.json beside it, is of
  // another model; ApplyTensorRules(). The status of config_check, where it is asked.
  // REQUIRES: kUnknown.
  absl::Status FixLayout(const CheckedJoin& join);
  // What is to be read into replica() now, by another thread, whose answer is for Complete(); null:
  // nothing, a worker brings the parameters. REQUIRES: kLayoutKnown. Gives it once.
  std::unique_ptr<InitialParameters> TakeInitial();
  // They are being read: nobody uploads meanwhile.
  bool loading() const { return loading_; }
  // Of --init; "" without.
  const std::string& init_path() const { return init_path_; }

  // This worker brings the parameters: order of coordinates, identity and config.json become its own.
  // RESOURCE_EXHAUSTED: no memory for a replica of its order. The status of config_check, with which
  // nothing has changed. REQUIRES: kLayoutKnown and not loading(), nobody has the lease, its layout has
  // the digest of layout().
  absl::Status GrantUpload(PeerId uploader, const CheckedJoin& join, Time now);
  UploadLease& lease() { return lease_; }
  const UploadLease& lease() const { return lease_; }

  // Every coordinate is there; max_abs: max |x_i|, found by whoever wrote them. INVALID_ARGUMENT (and
  // nothing changes but the lease, which is over): they are not all finite. REQUIRES: kLayoutKnown,
  // nobody writes to the replica any more.
  absl::Status Complete(float max_abs);

  // A model whose parameters are known from before: as FixLayout() and Complete() would have left it.
  // `x0` is empty unless sizes.needs_x0, and where the rule has let go of it. FAILED_PRECONDITION names
  // the flag: it is the state of another --aggregate, --dense or --dense-wire than this server's, so that
  // steps would be others than those before. REQUIRES: kUnknown.
  struct Known {
    Layout layout;  // scales and decays are kept as they are
    std::string config_json, identity_text;
    std::span<const float> x, x0;
    double x0_max_abs = 0;
    Round round;  // at which x stands
    Aggregate aggregate = Aggregate::kVote;
    PayloadKind dense_wire = PayloadKind::kFp32;  // where a tensor is dense
  };
  absl::Status Restore(const Known& known);

  // A layout without parameters and without anybody who could bring them binds nobody.
  // REQUIRES: not kComplete, not loading().
  void Forget();

  State state() const { return state_; }
  // ---- from kLayoutKnown on ----
  const Layout& layout() const { return replica_->layout(); }
  const ChunkPlan& plan() const { return payloads_.commits.chunk_plan(); }
  const RunPayloads& payloads() const { return payloads_; }
  const std::shared_ptr<MasterReplica>& replica() const { return replica_; }
  BufferPool& verdicts() { return *verdict_pool_; }
  BufferPool& ballots() { return *ballot_pool_; }
  BufferPool* optimizer_states() { return state_pool_.get(); }  // null: there is no state
  uint64_t catch_up_bytes() const;
  Aggregate aggregate() const { return options_.sizes.aggregate; }
  // fp32 where no tensor is dense.
  PayloadKind dense_wire() const {
    return HasDense(layout()) ? options_.sizes.dense.wire : PayloadKind::kFp32;
  }
  // What joiners are held to; null while any is welcome.
  const Layout* wanted_layout() const { return state_ == State::kUnknown ? nullptr : &layout(); }
  const ModelIdentity* wanted_identity() const {
    return state_ == State::kUnknown ? nullptr : &identity_;
  }
  const std::string& identity_text() const { return identity_text_; }
  // Exported beside the model; "" when the uploader had none.
  const std::string& config_json() const { return config_json_; }
  // max |x_0,i|. REQUIRES: kComplete.
  double x0_max_abs() const { return x0_max_abs_; }

 private:
  RunModel(Options options, MemoryReader memory, std::unique_ptr<InitialParameters> init);
  absl::Status Adopt(Layout layout, const MasterReplica::Options& replica_options);
  absl::StatusOr<Layout> WithRules(const Layout& joined) const;
  absl::Status CheckFlagsOf(const Known& known) const;

  // Constant after construction.
  const Options options_;
  const MemoryReader memory_;
  const std::string init_path_;
  ModelIdentity init_identity_;

  std::unique_ptr<InitialParameters> init_;  // null once taken
  bool loading_ = false;                     // it was, and the model is not complete
  State state_ = State::kUnknown;
  RunPayloads payloads_;
  std::shared_ptr<MasterReplica> replica_;
  std::unique_ptr<BufferPool> verdict_pool_, ballot_pool_, state_pool_;
  UploadLease lease_;
  ModelIdentity identity_;
  std::string identity_text_, config_json_;
  double x0_max_abs_ = 0;
};

}  // namespace signvote::run
