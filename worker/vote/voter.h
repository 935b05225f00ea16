#pragma once
// One worker's part in the rounds of a run: makes ballots out of gradients, sends each chunk as soon
// as its gradient is final, answers the scalars that a round wants, and follows what the commits do
// to the replica and to the direction's state. Torch-free and without gRPC: the C++ trainer and
// other languages' bindings stand on it.
//
//   Voter::Make → { Begin(ticket)
//                   [ SetProbe ]                       where wants_probe()
//                   [ SetLastGradient ]                where wants_change()
//                   SetGradient → GradientReady… → Finish | Abstain
//                   [ PreviousKept ]                   where keeps_previous()
//                   [ GradientKept ]                   where keeps_gradient()
//                   Wait }…
//
// and of a ballot of local steps, where takes_steps():
//
//                   { SetGradient → GradientReady… → EndGradient }…   while wants_gradient()
//                   FinishSteps | Abstain
//
// Each of its gradients is taken at the parameters that the one before has moved; they are the replica
// again once FinishSteps or Abstain returned, or EndSteps, which a caller that gives up calls.
//
// What it keeps from round to round, and when it lets go of it:
//   previous replica   x_{t−1}, which the caller keeps and says so. Usable when exactly one commit, a
//                      step, has moved the replica since: else a probe would compare gradients of
//                      one place, or of places that are rounds apart
//   last gradient      the one of the round before, likewise kept by the caller, and usable likewise
//   previous verdict   of that commit
//   direction's state  zero after a rewind; otherwise each ballot's gradient enters it, also that of
//                      a ballot which is withdrawn or not counted. A commit of kind none leaves it
//   what a source      its own to say: it is told the ballot's fate (BallotFate), and where rounds went
//   carries            on without this worker, as for one that joins again
//   γ                  of the last step, kept by the source: a commit's decay step, as a step at
//                      another length says γ there. A commit of kind none says the last step's
//
// A source that cannot make a ballot, as error feedback without γ cannot, abstains: for one round,
// because its commit tells γ.
//
// With a clip the gradient's length decides what is signed: every chunk is packed in Finish, once
// the whole gradient is there, unless the direction does not look at lengths (signSGD). What compares
// gradients, for rules, is clipped alike; g_l1 and g_l2_squared never are (docs/algorithms.md).
//
// Ownership: owns the packer and the direction's state in it, and shares the ballot's bits with the
//            session, which may send them for longer than the round lasts. The session, the
//            replica, the device, the source and the copies are the caller's and must outlive it;
//            so must gradients from SetGradient, SetProbe and SetLastGradient, until Finish or Abstain
//            returned.
// Threads:   one thread at a time; GradientReady may come from another thread than the rest, while
//            the caller does nothing else with the voter.
// Failure:   a call out of order is FAILED_PRECONDITION, an argument that does not fit is
//            INVALID_ARGUMENT, and both change nothing. What session, device or source fail with
//            ends the ballot: the rest of its calls return that status.

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/ids.h"
#include "worker/codec/replica_memory.h"
#include "worker/direction/worker_device.h"
#include "worker/session/session.h"
#include "worker/vote/ballot_buffers.h"
#include "worker/vote/ballot_source.h"
#include "worker/vote/replica_copy.h"

namespace signvote {

struct VoterOptions {
  // The caller can compute a second gradient at the previous replica.
  bool can_probe = false;
  // It can keep the gradient of one round for the next.
  bool can_keep_gradient = false;
  // Brought up to date whenever the replica has moved, before Begin or Wait returns.
  std::vector<ReplicaCopy*> copies;
  // Whether gradients are still being computed; asked once per ballot, when its first chunk has
  // left. Empty: they are while GradientReady is called.
  std::function<absl::StatusOr<bool>()> gradient_runs;
};

// A ballot as it was sent.
struct SentBallot {
  std::optional<AbstainReason> abstained;
  BallotScalars scalars;  // of an abstention only what is known, and none of it was sent
  // Where they could be told, wanted or not, as they are sent.
  std::optional<double> probe_l1, prev_inner, probe_inner, change_l1;
  Duration packing{};               // spent on direction, signs, sums and handing over
  std::optional<Time> first_chunk;  // when the first chunk was handed to the session
  // When the last of the chunks was done that a GPU still had queued when Finish was called.
  std::optional<Time> queue_done;
  bool first_chunk_overlapped = false;  // while gradients were still being computed
};

class Voter {
 public:
  // REQUIRES: session->Join() returned `run`, `replica` lies in its layout.
  // UNIMPLEMENTED: the run wants ballots of a kind, or a direction, that this worker does not make.
  static absl::StatusOr<std::unique_ptr<Voter>> Make(const RunInfo& run, Session* session,
                                                     ReplicaMemory* replica, WorkerDevice* device,
                                                     BallotSource* source, Clock* clock,
                                                     VoterOptions options);
  Voter(const Voter&) = delete;
  Voter& operator=(const Voter&) = delete;
  ~Voter();

  // Opens the ballot of a ticket from session->NextRound().
  absl::Status Begin(const RoundTicket& ticket);
  bool takes_steps() const { return steps_; }  // it is a ballot of local steps
  // Local steps: another gradient is to come. Not beyond those that the round asks for, nor after
  // RoundTicket::steps_until but for the first, nor once the ballot cannot be any more.
  bool wants_gradient() const;
  // The round wants ‖g − h‖₁ or ⟨h, b⟩, and the previous replica is there to compute h at.
  bool wants_probe() const { return wants_probe_; }
  // The round wants ‖g − g₋₁‖₁, and the last round's gradient is there.
  bool wants_change() const { return wants_change_; }
  // h by tensor of the run's layout, of the minibatch of the last gradient, in memory of the device;
  // a null entry is zero. Before that gradient's first GradientReady.
  absl::Status SetProbe(ConstTensorPointers h);
  // The last round's gradient, likewise.
  absl::Status SetLastGradient(ConstTensorPointers g);

  // Where the next gradient will lie: by tensor of the run's layout, in memory of the device. A null
  // entry, or a tensor of which no coordinate becomes ready: it has no gradient and casts coins.
  absl::Status SetGradient(ConstTensorPointers g);
  // Coordinates [first, first + count) of the run's layout are final, each said once: computed, or
  // on a GPU queued before whatever is queued next on the calling thread's current stream.
  absl::Status GradientReady(uint64_t first, uint64_t count);
  // The gradient is whole: packs and sends what is left, then the scalars. Abstains when the loss or the
  // gradient is not finite.
  absl::StatusOr<SentBallot> Finish(double loss, uint64_t samples,
                                    std::optional<HeldOutReport> held_out = std::nullopt);
  // Local steps: the gradient is whole, and the parameters move by it. `loss` is its minibatch's mean,
  // finite. A gradient that is not finite moves nothing and ends the ballot: FinishSteps abstains.
  absl::Status EndGradient(double loss, uint64_t samples);
  // No further gradient comes: signs and sends the displacement, unless the round is silent, then the
  // scalars. Loss and gradient sums are the means over the gradients taken, samples the sum.
  absl::StatusOr<SentBallot> FinishSteps(std::optional<HeldOutReport> held_out = std::nullopt);
  // The replica's memory is the replica, wherever in a ballot something failed. Else it changes nothing.
  absl::Status EndSteps() { return source_->EndSteps(); }
  // In place of the rest of a ballot that has been begun. Chunks that were sent stand.
  absl::StatusOr<SentBallot> Abstain(AbstainReason reason);

  // The run probes and the caller can: x_t is to be kept now, between Finish and Wait.
  bool keeps_previous() const { return run_.probes && options_.can_probe; }
  // It has been.
  absl::Status PreviousKept();
  // The same of this ballot's gradient.
  bool keeps_gradient() const { return run_.keeps_gradients && options_.can_keep_gradient; }
  absl::Status GradientKept();

  // Waits for the commit and follows it.
  absl::StatusOr<CommitOutcome> Wait();

  // The direction's state, for checkpoints, between two ballots: the planes of PlanesOf(), wherever
  // they are held. INVALID_ARGUMENT: CheckStateRange() of worker/direction/checks.h.
  std::span<const StatePlane> planes() const { return planes_; }
  absl::Status SaveState(size_t plane, uint64_t first, std::span<std::byte> bytes);
  absl::Status RestoreState(size_t plane, uint64_t first, std::span<const std::byte> bytes);
  // What RestoreState() brought is the state before this round. When the first ticket is of another
  // one, or this was never said, the source is told that rounds went on without it.
  void StateIsBefore(Round round) { earlier_.state_before = round; }
  // False from Begin() until Wait() has followed the round's commit: the state then has a ballot in it
  // of which nobody knows what becomes.
  bool settled() const { return settled_; }
  // What else the next ballot goes on from. Views stay valid until the next Begin().
  struct Carried {
    bool previous = false, gradient = false;  // what the caller has kept is usable
    double clip = 1.0;                        // of the gradient that was kept
    std::optional<AbstainReason> lost;  // why the steps ended in nothing that a round may continue
    std::span<const uint8_t> verdict;   // of the last commit, a step of signs; empty: none
    std::span<const float> continuation;  // BallotSource::continuation()
  };
  Carried carried() const;
  // As StateIsBefore(), where all that `carried` says is there again, of which copies are taken: the
  // ballot of that round is then the one that it would have been. A verdict is left out on a device that
  // wants its own. INVALID_ARGUMENT: sizes that are not the run's; nothing has changed then.
  absl::Status GoOnFrom(Round round, const Carried& carried);

 private:
  enum class Stage : uint8_t { kIdle, kOpen, kGradient, kSent };

  Voter(const RunInfo& run, Session* session, ReplicaMemory* replica, WorkerDevice* device,
        BallotSource* source, Clock* clock, VoterOptions options);
  absl::Status Expect(bool in_order, const char* call) const;
  void OpenGradient();
  // Tensors of which nothing became ready have no gradient; every other one must be whole.
  absl::Status CloseGradient();
  absl::Status MarkReady(uint64_t first, uint64_t count);
  // The coordinates that must be final before chunk k is packed.
  struct Range {
    uint64_t first, end;
  };
  Range NeedsOf(ChunkIndex k) const;
  // Every chunk that waited for the gradient's length.
  absl::Status PackClipped();
  absl::Status PackChunk(ChunkIndex k);
  // The packed bits of a dense chunk become its values: `values`, of all its coordinates, and ±1 where it
  // is voted on. Whether all of them may be sent.
  bool MakeDense(ChunkIndex k, std::vector<float> values);
  // The gradient of chunk k, clipped; 0 where there is none or nothing dense.
  absl::StatusOr<std::vector<float>> DenseGradient(ChunkIndex k);
  enum class Until { kAnyIsUnfinished, kAllAreSent };
  absl::Status SendChunks(Until until);
  absl::Status SetCompared(ConstTensorPointers other, std::string_view what);
  absl::Status MeasureProbeInner();
  // What a gradient of this length counts times: 1 without a clip.
  double ClipFactor(double l2_squared) const;
  absl::StatusOr<double> Wanted(ScalarKind kind);
  absl::StatusOr<double> WantedOfSteps(ScalarKind kind);
  // Local steps: another gradient can be taken, whatever the time is.
  bool TakesAnother() const;
  absl::Status TakeStep();
  // Withdrawn where a dense chunk of it may not be sent.
  absl::Status SendDisplacement();
  absl::StatusOr<SentBallot> SendScalars();
  absl::StatusOr<SentBallot> Withdraw(AbstainReason reason);
  BallotFate FateOf(const CommitOutcome& outcome, bool alone) const;
  absl::Status Forget();         // the direction's state, and what the source carries
  absl::Status RefreshCopies();  // the replica has moved

  // Constant after construction.
  const RunInfo run_;
  Session* const session_;
  ReplicaMemory* const replica_;
  WorkerDevice* const device_;
  BallotSource* const source_;
  Clock* const clock_;
  const VoterOptions options_;
  const std::vector<StatePlane> planes_;
  const bool waits_for_length_, whole_tensors_;
  BallotBuffers buffers_;
  std::shared_ptr<uint8_t> ballot_;  // [ballot_plan.TotalBytes()], in progress or the last
  // after ballot_, which it may still write to when a run fails
  std::unique_ptr<BallotPacker> packer_;

  // What earlier rounds left behind.
  struct Earlier {
    bool previous_valid = false, gradient_valid = false;
    const uint8_t* verdict = nullptr;       // null, or of the last commit
    double clip = 1.0;                      // of the gradient that was kept
    std::optional<Round> state_before;      // of a restored state that no ballot has changed
    std::vector<uint8_t> restored_verdict;  // what `verdict` then points to
    // Why local steps ended in nothing: what would go on from there ends so too.
    std::optional<AbstainReason> lost;
  };
  Earlier earlier_;

  // The ballot in progress.
  struct Ballot {
    std::vector<const float*> g;  // by tensor
    std::vector<const float*> h;  // likewise, what g is compared with; empty: with nothing
    std::vector<uint64_t> tensor_missing, chunk_missing;  // coordinates that are not final yet
    std::deque<ChunkIndex> packing;  // in flight at the packer, in order of Start()
    std::vector<ChunkScalars> chunk_scalars;
    float clip = 1.0f;          // what the last gradient counts times in the direction
    double clip_of_sums = 1.0;  // and in comparisons, also with a direction that is not clipped
    // Local steps: sums over the gradients that have ended.
    double loss = 0;
    ChunkScalars sums;
    std::optional<AbstainReason> withdrawn;  // no further chunk is sent
    bool kept = false;                       // the caller has kept x_t
    bool gradient_kept = false;
    absl::Status status;  // first failure
    SentBallot sent;
  };
  Stage stage_ = Stage::kIdle;
  bool settled_ = true;
  RoundTicket ticket_;
  bool steps_ = false;                     // of local steps
  uint32_t gradients_ = 1, gradient_ = 0;  // local steps: at most, and taken so far
  bool wants_probe_ = false, wants_change_ = false;
  std::optional<X0Sums> x0_sums_;
  std::optional<GradientRange> range_;
  Ballot now_;
};

}  // namespace signvote
