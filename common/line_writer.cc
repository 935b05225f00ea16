#include "common/line_writer.h"

#include <deque>
#include <utility>

#include "common/mutex.h"

namespace signvote {
namespace {

// Nothing waits without a bound; who has nothing to do looks again after this time.
constexpr Duration kLookAgain = std::chrono::seconds(10);
// Lines that are queued leave in one call up to this size.
constexpr size_t kBatchBytes = size_t{64} << 10;

}  // namespace

struct LineWriter::Shared {
  Shared(Sink sink_in, DroppedLine dropped_line_in, Options options_in)
      : sink(std::move(sink_in)), dropped_line(std::move(dropped_line_in)), options(options_in) {}

  // Constant after construction.
  const Sink sink;
  const DroppedLine dropped_line;
  const Options options;

  mutable Mutex mu;
  CondVar work, progress;
  struct Line {
    uint64_t lost_before = 0;  // since the line before it
    std::string text;
  };
  std::deque<Line> queue ABSL_GUARDED_BY(mu);
  size_t queued_bytes ABSL_GUARDED_BY(mu) = 0;
  uint64_t accepted ABSL_GUARDED_BY(mu) = 0;  // lines
  uint64_t written ABSL_GUARDED_BY(mu) = 0;   // Invariant: written <= accepted
  uint64_t dropped ABSL_GUARDED_BY(mu) = 0;
  uint64_t dropped_placed ABSL_GUARDED_BY(mu) = 0;  // of them, those before a line or told
  bool stopping ABSL_GUARDED_BY(mu) = false;
  bool stopped ABSL_GUARDED_BY(mu) = false;
};

LineWriter::LineWriter(Sink sink, DroppedLine dropped_line, Options options)
    : shared_(std::make_shared<Shared>(std::move(sink), std::move(dropped_line), options)),
      thread_([shared = shared_] { Run(shared); }) {}

LineWriter::~LineWriter() {
  Clock* const clock = Clock::System();
  Shared& s = *shared_;
  const Time until = clock->Now() + s.options.patience;
  bool stopped = false;
  {
    MutexLock lock(&s.mu);
    s.stopping = true;
    s.work.NotifyAll();
    // For the writer's thread, which a sink may hold.
    stopped = s.progress.WaitUntil(
        &s.mu, clock, until, [&s]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(s.mu) { return s.stopped; });
  }
  if (stopped) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

bool LineWriter::Write(std::string line) {
  Shared& s = *shared_;
  MutexLock lock(&s.mu);
  if (s.queue.size() >= s.options.lines_max || s.queued_bytes + line.size() > s.options.bytes_max) {
    ++s.dropped;
    return false;
  }
  s.queued_bytes += line.size();
  s.queue.push_back({.lost_before = s.dropped - s.dropped_placed, .text = std::move(line)});
  s.dropped_placed = s.dropped;
  ++s.accepted;
  s.work.NotifyOne();
  return true;
}

bool LineWriter::Flush(Duration timeout) {
  Clock* const clock = Clock::System();
  const Time until = clock->Now() + timeout;
  Shared& s = *shared_;
  MutexLock lock(&s.mu);
  const uint64_t wanted = s.accepted;
  // For the sink.
  return s.progress.WaitUntil(
      &s.mu, clock, until,
      [&s, wanted]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(s.mu) { return s.written >= wanted; });
}

uint64_t LineWriter::dropped() const {
  MutexLock lock(&shared_->mu);
  return shared_->dropped;
}

void LineWriter::Run(const std::shared_ptr<Shared>& shared) {
  Shared& s = *shared;
  while (true) {
    std::string batch;
    uint64_t lines = 0;
    {
      MutexLock lock(&s.mu);
      // For whoever has a line, or stops the writer.
      Clock* const clock = Clock::System();
      if (!s.work.WaitUntil(&s.mu, clock, clock->Now() + kLookAgain,
                            [&s]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(s.mu) {
                              return !s.queue.empty() || s.stopping;
                            })) {
        continue;
      }
      if (s.queue.empty()) {
        s.stopped = true;
        s.progress.NotifyAll();
        return;
      }
      do {
        const Shared::Line& line = s.queue.front();
        if (line.lost_before > 0) batch += s.dropped_line(line.lost_before);
        batch += line.text;
        s.queued_bytes -= line.text.size();
        s.queue.pop_front();
        ++lines;
      } while (!s.queue.empty() && batch.size() + s.queue.front().text.size() <= kBatchBytes);
      if (s.queue.empty() && s.dropped > s.dropped_placed) {
        batch += s.dropped_line(s.dropped - s.dropped_placed);
        s.dropped_placed = s.dropped;
      }
    }
    s.sink(batch);
    MutexLock lock(&s.mu);
    s.written += lines;
    s.progress.NotifyAll();
  }
}

}  // namespace signvote
