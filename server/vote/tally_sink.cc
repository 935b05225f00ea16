#include "server/vote/tally_sink.h"

#include <algorithm>
#include <utility>

#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/payload_plan.h"

namespace signvote {
namespace {

// Nothing waits without a bound; these waits are woken by notifications and merely look again.
constexpr Duration kLookAgain = std::chrono::seconds(1);

constexpr size_t kDefaultThreadsMax = 4;

// The ballots of a job, and where what is made of them goes.
struct Chunk {
  explicit Chunk(const TallyJob& job) : payload(job.share->verdict().get() + job.payload_offset) {
    const size_t offset = job.ballot_offset;
    ballots.reserve(job.places.size());
    for (const uint32_t place : job.places)
      ballots.push_back(job.share->ballot(place).get() + offset);
  }
  TallyInput Input(const TallyJob& job) const {
    return {.ballots = ballots,
            .coordinates = job.plan.Count(job.chunk),
            .first_coordinate = job.plan.First(job.chunk),
            .seed = job.seed,
            .round = job.round};
  }

  uint8_t* const payload;
  std::vector<const uint8_t*> ballots;
};

// Adds what the sample says of a chunk whose counts were made: agreement is with the verdict that
// the same ballots would have given.
void AddSampleOfCounts(const TallyInput& input, const TallyJob& job, const SampleRange& sample,
                       VoteStatistics* out) {
  const size_t skipped = sample.first / kBitsPerByte;
  std::vector<const uint8_t*> ballots;
  ballots.reserve(input.ballots.size());
  for (const uint8_t* ballot : input.ballots) ballots.push_back(ballot + skipped);
  const TallyInput of_sample{.ballots = ballots,
                             .coordinates = sample.count,
                             .first_coordinate = input.first_coordinate + sample.first,
                             .seed = input.seed,
                             .round = input.round};
  std::vector<uint8_t> verdict(BytesForBits(sample.count));
  Tally(of_sample, verdict.data());
  AddStatistics(of_sample, job.places, verdict.data(), {.first = 0, .count = sample.count}, out);
}

double MakeUpdate(const TallyJob& job, const TallyInput& input, uint8_t* update) {
  const DenseAttempt& dense = job.share->dense();
  const uint64_t at = input.first_coordinate - dense.first;
  const bool state = dense.out != nullptr;
  return TallyDense({.ballots = input.ballots,
                     .kind = job.kind,
                     .layout = dense.layout,
                     .first_coordinate = input.first_coordinate,
                     .coordinates = input.coordinates,
                     .aggregate = dense.aggregate,
                     .seed = input.seed,
                     .round = input.round,
                     .optimizer = dense.optimizer,
                     .step = dense.step,
                     .scalars = dense.scalars,
                     .planes = {.in = state ? dense.in.get() + at : nullptr,
                                .out = state ? dense.out.get() + at : nullptr,
                                .stride = job.plan.coordinates() - dense.first}},
                    update);
}

// Returns the chunk's part of the dense optimizer's q.
double MakePayload(const TallyJob& job, const TallyInput& input, uint8_t* payload) {
  switch (job.kind) {
    case PayloadKind::kSigns:
      Tally(input, payload);
      return 0;
    case PayloadKind::kCounts:
      TallyCounts(input, payload);
      return 0;
    case PayloadKind::kFp32:
    case PayloadKind::kBf16:
      return MakeUpdate(job, input, payload);
  }
  return 0;
}

// Counts the job's chunk, says so, then looks at its sample and leaves the share.
void Count(const TallyJob& job, Clock* clock, const TallySink::Done& done) {
  const Time begin = clock->Now();
  const Chunk chunk(job);
  const TallyInput input = chunk.Input(job);
  const auto counted = static_cast<uint32_t>(job.places.size());
  const double q = MakePayload(job, input, chunk.payload);
  ChunkTallied tallied{
      .round = job.round,
      .attempt = job.attempt,
      .chunk = job.chunk,
      .counted = counted,
      .checksum = Xxh3(chunk.payload, PayloadBytes(job.kind, input.coordinates, counted)),
      .q = q,
      .payload = {job.share->verdict(), chunk.payload}};
  tallied.took = clock->Now() - begin;
  done(std::move(tallied));
  const SampleRange sample = SampleOf(job.plan, job.round, job.chunk);
  const bool counts = job.kind == PayloadKind::kCounts;
  // Of dense ballots nobody is right or wrong.
  if (sample.count != 0 && (counts || job.kind == PayloadKind::kSigns)) {
    VoteStatistics statistics;
    statistics.ballots.resize(job.share->ballots());
    if (counts) {
      AddSampleOfCounts(input, job, sample, &statistics);
    } else {
      AddStatistics(input, job.places, chunk.payload, sample, &statistics);
    }
    job.share->Add(statistics);
  }
  job.share->Leave();
}

}  // namespace

TallyShare::TallyShare(std::vector<std::shared_ptr<const uint8_t>> ballots,
                       std::shared_ptr<uint8_t> verdict, DenseAttempt dense)
    : ballots_(std::move(ballots)), verdict_(std::move(verdict)), dense_(std::move(dense)) {
  sampled_.ballots.resize(ballots_.size());
}

bool TallyShare::Holds(const uint8_t* ballot) const {
  return std::any_of(ballots_.begin(), ballots_.end(),
                     [ballot](const auto& held) { return held.get() == ballot; });
}

void TallyShare::Enter() {
  MutexLock lock(&mu_);
  ++readers_;
}

void TallyShare::Leave() {
  MutexLock lock(&mu_);
  SIGNVOTE_CHECK(readers_ > 0);
  --readers_;
}

bool TallyShare::idle() const {
  MutexLock lock(&mu_);
  return readers_ == 0;
}

void TallyShare::Add(const VoteStatistics& sample) {
  MutexLock lock(&mu_);
  sampled_.coordinates += sample.coordinates;
  sampled_.ties += sample.ties;
  for (size_t place = 0; place < sample.ballots.size(); ++place) {
    sampled_.ballots[place].coordinates += sample.ballots[place].coordinates;
    sampled_.ballots[place].agreeing += sample.ballots[place].agreeing;
  }
}

VoteStatistics TallyShare::sampled() const {
  MutexLock lock(&mu_);
  return sampled_;
}

void InlineTallySink::Submit(TallyJob job) {
  job.share->Enter();
  Count(job, clock_, done_);
}

size_t TallyThreads::DefaultThreads(size_t cores) {
  return std::clamp(cores, size_t{1}, kDefaultThreadsMax);
}

TallyThreads::TallyThreads(size_t threads, Clock* clock, Done done)
    : clock_(clock), done_(std::move(done)) {
  SIGNVOTE_CHECK(threads > 0);
  threads_.reserve(threads);
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

TallyThreads::~TallyThreads() { Stop(); }

void TallyThreads::Submit(TallyJob job) {
  {
    MutexLock lock(&mu_);
    if (stopping_) return;
    job.share->Enter();
    queue_.push_back(std::move(job));
  }
  work_.NotifyOne();
}

void TallyThreads::DropWaiting() {
  std::deque<TallyJob> dropped;
  {
    MutexLock lock(&mu_);
    dropped.swap(queue_);
  }
  for (const TallyJob& job : dropped) job.share->Leave();
}

void TallyThreads::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  DropWaiting();
  work_.NotifyAll();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

size_t TallyThreads::waiting() const {
  MutexLock lock(&mu_);
  return queue_.size();
}

void TallyThreads::Work() {
  while (true) {
    TallyJob job;
    {
      MutexLock lock(&mu_);
      // For the run's thread, which closes chunks. The system's clock: the run's may stand still.
      Clock* const clock = Clock::System();
      if (!work_.WaitUntil(&mu_, clock, clock->Now() + kLookAgain,
                           [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                             return !queue_.empty() || stopping_;
                           })) {
        continue;
      }
      if (stopping_) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    Count(job, clock_, done_);
  }
}

}  // namespace signvote
