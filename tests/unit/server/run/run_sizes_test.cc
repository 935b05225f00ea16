// Goal: the sizes that the memory rule allows work, not only those that are quick. Method: the real
// run with its vote, tally, pipeline and applier, and peers in the same process that send ballots and
// keep nothing; one comes late, fetches, follows and votes. Every ballot of a round is one pattern of
// bits or its opposite, the pattern in the majority, so that the verdict is known without counting;
// the parameters are then calculated here once more, coordinate by coordinate, and the replicas'
// digests must be theirs.

#include <gtest/gtest.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/apply.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/log.h"
#include "common/memory_budget.h"
#include "common/process.h"
#include "server/replica/applier.h"
#include "server/run/run.h"
#include "server/vote/tally_sink.h"

namespace signvote::run {
namespace {

constexpr uint64_t kPiece = MasterReplica::kPieceCoordinates;
constexpr float kStepsize = 0.0078125f;
constexpr uint32_t kRounds = 5;

// The first parameters: any number, the same whoever asks.
float Initial(uint64_t i) {
  return static_cast<float>((i * 2'654'435'761u) & 0xffffff) * 0x1p-24f - 0.5f;
}

// 64 coordinates of a round's pattern (the finaliser of SplitMix64).
uint64_t Word(uint64_t round, uint64_t index) {
  uint64_t z = (index + 1) * 0x9e3779b97f4a7c15u + round * 0xd1b54a32d192ed03u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Of the parameters after `rounds` rounds, calculated without the product's apply().
uint64_t ExpectedDigest(uint64_t d, uint64_t rounds) {
  std::vector<float> x(kPiece);
  uint64_t digest = 0;
  for (uint64_t first = 0; first < d; first += kPiece) {
    const uint64_t count = std::min(kPiece, d - first);
    for (uint64_t i = 0; i < count; ++i) x[i] = Initial(first + i);
    for (uint64_t r = 0; r < rounds; ++r) {
      for (uint64_t i = 0; i < count; i += 64) {
        const uint64_t word = Word(r, (first + i) / 64);
        for (uint64_t b = 0; b < std::min<uint64_t>(64, count - i); ++b) {
          x[i + b] -= ((word >> b) & 1) != 0 ? kStepsize : -kStepsize;
        }
      }
    }
    digest += ReplicaDigest(x.data(), first, count);
  }
  return digest;
}

class Call final : public StateCall {
 public:
  void Start(std::shared_ptr<MasterReplica> given) override { replica = std::move(given); }
  void End(absl::Status status) override { EXPECT_TRUE(status.ok()) << status; }
  std::shared_ptr<MasterReplica> replica;
};

// A replica that follows: pieces from a transfer, then what commits make of them.
struct Follower {
  std::vector<float> x;
  std::vector<Round> pieces;  // where each stands
  std::vector<uint8_t> verdict;
};

// Remembers what it must answer to.
class SizesPeer final : public Peer {
 public:
  SizesPeer(PeerId id, std::deque<Input>* answers) : id_(id), answers_(answers) {}
  PeerId id() const override { return id_; }
  const PeerIdentity& identity() const override { return identity_; }
  const std::string& ticket() const override { return identity_.address; }
  void Send(const v1::ServerMessage& message) override {
    if (message.has_welcome()) state = message.welcome().state();
    if (message.has_ping()) {
      answers_->push_back(StreamInput{.peer = id_, .what = PongIn{message.ping().nonce()}});
    }
    if (message.has_round_open()) {
      open = message.round_open();
    }
    if (message.has_commit()) {
      commits.push_back(message.commit());
      if (follower != nullptr) Follow(message.commit());
    }
  }
  void SendVerdict(const VerdictHeader& header, std::span<const uint8_t> payload,
                   std::shared_ptr<const void>) override {
    verdict_bytes += payload.size();
    if (follower == nullptr) return;
    ASSERT_EQ(Xxh3(payload.data(), payload.size()), header.checksum);
    std::copy(payload.begin(), payload.end(),
              follower->verdict.begin() +
                  static_cast<std::ptrdiff_t>(slots->plan().ByteOffset(header.chunk)));
  }
  void Admit(std::shared_ptr<BallotSlots> admitted) override { slots = std::move(admitted); }
  size_t queued_bytes() const override { return 0; }
  void NotifyWhenBelow(size_t) override {}
  void Close(absl::Status status) override { ADD_FAILURE() << "closed: " << status; }
  void Cancel() override {}
  PeerBytes bytes() const override { return {}; }

  v1::Welcome::State state = v1::Welcome::STATE_UNSPECIFIED;
  std::optional<v1::RoundOpen> open;
  std::vector<v1::Commit> commits;
  uint64_t verdict_bytes = 0;
  std::shared_ptr<BallotSlots> slots;
  std::unique_ptr<Follower> follower;  // null: it keeps no replica

 private:
  void Follow(const v1::Commit& commit) {
    const Layout layout = *Layout::Make({{.name = "w", .shape = {follower->x.size()}}});
    for (uint64_t p = 0; p < follower->pieces.size(); ++p) {
      if (follower->pieces[p] != Round(commit.round())) continue;
      const uint64_t first = p * kPiece;
      const uint64_t count = std::min(kPiece, follower->x.size() - first);
      ApplyStep(layout, commit.stepsize(), first, count, follower->verdict.data(), 0,
                follower->x.data() + first);
      follower->pieces[p] = follower->pieces[p].next();
    }
  }

  const PeerId id_;
  const PeerIdentity identity_{.address = "ipv4:10.0.0.1:1"};
  std::deque<Input>* const answers_;
};

class SizesRun final : private RunHost {
 public:
  SizesRun(uint64_t d, uint32_t workers) : d_(d) {
    RunOptions options{.main_rounds_max = 1000, .workers_min = workers};
    options.deadline.enabled = false;
    options.digest_every = 0;
    options.rule.rule = "fixed";
    options.rule.stepsize = kStepsize;
    options.model.sizes.workers_max = workers + 1;
    sizes_ = options.model.sizes;
    auto run = Run::Create(std::move(options),
                           {.clock = &clock_,
                            .host = this,
                            .tally = &tally_,
                            .memory = [] { return AvailableMemory(FileSystem::Posix()); }},
                           {.run_id = RunId::FromRandom(1, 2)}, clock_.Now());
    SIGNVOTE_CHECK(run.ok());
    run_ = *std::move(run);
    for (uint32_t w = 0; w < workers; ++w) {
      SizesPeer& peer = Join();
      if (peer.state == v1::Welcome::STATE_UPLOAD) Upload(peer);
      Give(peer, ReadyIn{Round(0)});
    }
  }

  Round committed() const { return run_->committed(); }
  size_t members() const { return members_; }
  const SizesPeer& peer(size_t i) const { return *peers_[i]; }
  const ModelSizes& sizes() const { return sizes_; }

  SizesPeer& Join() {
    peers_.push_back(std::make_shared<SizesPeer>(PeerId(peers_.size() + 1), &inputs_));
    SizesPeer& peer = *peers_.back();
    Give(peer, StreamOpened{peers_.back()});
    auto join = std::make_shared<v1::Join>();
    join->set_protocol_min(2);
    join->set_protocol_max(2);
    join->set_name("w" + std::to_string(peers_.size()));
    v1::TensorShape& tensor = *join->add_tensors();
    tensor.set_name("w");
    tensor.add_shape(d_);
    Give(peer, JoinIn{std::move(join)});
    return peer;
  }

  // Every peer that was asked votes, chunk by chunk, as over as many streams: the pattern of the
  // round, or, of the first four ninths or so, its opposite. Ends when the round is committed.
  void OneRound() {
    const uint64_t round = run_->committed().value();
    std::vector<uint64_t> pattern(WordsForBits(d_));
    for (uint64_t w = 0; w < pattern.size(); ++w) pattern[w] = Word(round, w);
    if (d_ % 64 != 0) pattern.back() &= (uint64_t{1} << (d_ % 64)) - 1;
    const auto* bits = reinterpret_cast<const uint8_t*>(pattern.data());
    std::vector<SizesPeer*> voters;
    for (const auto& peer : peers_) {
      if (peer->open.has_value() && peer->open->round() == round) voters.push_back(peer.get());
    }
    members_ = voters.size();
    const size_t against = (voters.size() - 1) / 2;
    const ChunkPlan& plan = voters.front()->slots->plan();
    for (uint32_t k = 0; k < plan.chunks(); ++k) {
      for (size_t v = 0; v < voters.size(); ++v) {
        SizesPeer& peer = *voters[v];
        const Attempt attempt(peer.open->attempt());
        std::span<uint8_t> place;
        ASSERT_EQ(peer.slots->Begin(Round(round), attempt, ChunkIndex(k), &place),
                  BallotSlots::Place::kWrite);
        const uint8_t* const from = bits + plan.ByteOffset(ChunkIndex(k));
        if (v < against) {
          std::transform(from, from + place.size(), place.begin(),
                         [](uint8_t byte) { return static_cast<uint8_t>(~byte); });
          if (k + 1 == plan.chunks() && d_ % 8 != 0) {
            place.back() &= static_cast<uint8_t>((1u << (d_ % 8)) - 1);
          }
        } else {
          std::memcpy(place.data(), from, place.size());
        }
        ASSERT_TRUE(peer.slots->End(Round(round), attempt, ChunkIndex(k), true));
        Give(peer, BallotIn{Round(round), attempt, ChunkIndex(k)});
      }
    }
    for (SizesPeer* peer : voters) {
      ScalarsIn in{.round = Round(round), .attempt = Attempt(peer->open->attempt())};
      in.scalars = {.loss = 2, .g_l1 = 3, .g_l2_squared = 1, .samples = 8};
      in.scalars.wanted.assign(static_cast<size_t>(peer->open->wanted_size()), 0.0);
      Give(*peer, std::move(in));
    }
    ASSERT_EQ(run_->committed(), Round(round + 1));
  }

  // The whole state, while a round is committed.
  void FetchDuringARound(SizesPeer& peer) {
    const auto call = std::make_shared<Call>();
    Give(peer, CallAsked{CallKind::kFetch, call});
    ASSERT_NE(call->replica, nullptr);
    const uint64_t pieces = call->replica->pieces();
    peer.follower = std::make_unique<Follower>();
    Follower& follower = *peer.follower;
    follower.x.resize(d_);
    follower.verdict.resize(BytesForBits(d_));
    follower.pieces.assign(pieces, Round(~uint64_t{0}));
    for (uint64_t p = 0; p < pieces; ++p) {
      if (p == pieces / 2) OneRound();
      const auto round =
          call->replica->CopyPiece(Plane::kX, p, follower.x.data() + call->replica->First(p));
      ASSERT_TRUE(round.ok()) << round.status();
      follower.pieces[p] = *round;
    }
    Give(peer, CallEnded{call});
    Give(peer, ReadyIn{*std::min_element(follower.pieces.begin(), follower.pieces.end())});
  }

  uint64_t MasterDigest() const {
    std::vector<float> x(kPiece);
    uint64_t digest = 0;
    for (uint64_t p = 0; p < replica_->pieces(); ++p) {
      const auto round = replica_->CopyPiece(Plane::kX, p, x.data());
      EXPECT_TRUE(round.ok() && *round == run_->committed()) << "piece " << p;
      digest += ReplicaDigest(x.data(), replica_->First(p), replica_->Count(p));
    }
    return digest;
  }

 private:
  CommitConsumer* StartApplier(const std::shared_ptr<MasterReplica>& replica,
                               size_t backlog_max) override {
    replica_ = replica;
    applier_ = std::make_unique<Applier>(replica.get(), &clock_, backlog_max);
    return applier_.get();
  }
  void DropX0From(Round round) override { applier_->DropX0From(round); }
  void Upload(SizesPeer& peer) {
    const auto call = std::make_shared<Call>();
    Give(peer, CallAsked{CallKind::kUpload, call});
    SIGNVOTE_CHECK(call->replica != nullptr);
    const std::span<float> x = call->replica->x();
    for (uint64_t i = 0; i < d_; ++i) x[i] = Initial(i);
    Give(peer, CallProgress{call, d_ * sizeof(float)});
    Give(peer, CallEnded{call});
  }
  // An input, and what follows from it: answers, tallies and the applier come to rest.
  template <typename What>
  void Give(SizesPeer& peer, What what) {
    inputs_.push_back(StreamInput{.peer = peer.id(), .what = std::move(what)});
    while (true) {
      if (!inputs_.empty()) {
        Input next = std::move(inputs_.front());
        inputs_.pop_front();
        run_->Handle(clock_.Now(), std::move(next));
      } else if (std::optional<Applied> applied =
                     applier_ == nullptr ? std::nullopt : applier_->ApplyNext()) {
        run_->Handle(clock_.Now(), *std::move(applied));
      } else {
        return;
      }
    }
  }

  const uint64_t d_;
  FakeClock clock_;
  std::deque<Input> inputs_;
  InlineTallySink tally_{&clock_, [this](ChunkTallied t) { inputs_.push_back(std::move(t)); }};
  ModelSizes sizes_;
  std::shared_ptr<MasterReplica> replica_;
  std::unique_ptr<Applier> applier_;
  std::vector<std::shared_ptr<SizesPeer>> peers_;
  std::unique_ptr<Run> run_;
  size_t members_ = 0;
};

struct Size {
  uint64_t coordinates;
  uint32_t workers;
};

class RunSizesTest : public ::testing::TestWithParam<Size> {};

TEST_P(RunSizesTest, RoundsAndALateJoinerStayWithinTheMemoryRule) {
  const auto [d, workers] = GetParam();
  InitLogging({.level = LogLevel::kWarning});
  const uint64_t before = ResidentBytes();
  ModelSizes sizes;
  sizes.workers_max = workers + 1;
  const uint64_t rule = TotalBytes(ServerMemory(d, sizes));
  // The late joiner's replica, its verdict and one round's pattern are the test's own.
  const uint64_t own = 4 * d + 2 * BytesForBits(d);
  const std::optional<MemoryLimit> limit = AvailableMemory(FileSystem::Posix());
  if (limit.has_value() && limit->bytes < rule + own) {
    GTEST_SKIP() << "needs " << ((rule + own) >> 20) << " MiB, and " << limit->source << " has "
                 << (limit->bytes >> 20) << " left";
  }
  SizesRun run(d, workers);
  ASSERT_EQ(TotalBytes(ServerMemory(d, run.sizes())), rule);
  for (uint32_t r = 0; r + 3 < kRounds; ++r) {
    ASSERT_NO_FATAL_FAILURE(run.OneRound());
    EXPECT_EQ(run.members(), workers);
  }
  SizesPeer& late = run.Join();
  ASSERT_EQ(late.state, v1::Welcome::STATE_FETCH);
  ASSERT_NO_FATAL_FAILURE(run.FetchDuringARound(late));
  ASSERT_NO_FATAL_FAILURE(run.OneRound());  // open when it was ready: without it
  EXPECT_EQ(run.members(), workers);
  ASSERT_TRUE(late.open.has_value()) << "it is a member";
  ASSERT_NO_FATAL_FAILURE(run.OneRound());
  EXPECT_EQ(run.members(), workers + 1);
  const uint64_t resident = ResidentBytes();

  ASSERT_EQ(run.committed(), Round(kRounds));
  for (const v1::Commit& commit : run.peer(0).commits) {
    EXPECT_EQ(commit.kind(), v1::Commit::KIND_STEP);
    EXPECT_EQ(commit.stepsize(), kStepsize);
  }
  EXPECT_EQ(run.peer(0).verdict_bytes, kRounds * BytesForBits(d));
  const uint64_t expected = ExpectedDigest(d, kRounds);
  EXPECT_EQ(run.MasterDigest(), expected);
  EXPECT_EQ(ReplicaDigest(late.follower->x.data(), 0, d), expected);

  const uint64_t server = resident - std::min(resident, before + 4 * d + BytesForBits(d));
  std::printf(
      "d = %" PRIu64
      ", %u workers: resident %.0f MB without the joiner's own; the memory rule says %.0f MB\n",
      d, workers, static_cast<double>(server) / 1e6, static_cast<double>(rule) / 1e6);
  EXPECT_LE(server, rule);
}

INSTANTIATE_TEST_SUITE_P(, RunSizesTest,
                         ::testing::Values(Size{4'000'003, 1000}, Size{1'000'000'003, 4}),
                         [](const auto& size) {
                           return std::to_string(size.param.coordinates) + "CoordinatesOf" +
                                  std::to_string(size.param.workers);
                         });

}  // namespace
}  // namespace signvote::run
