#include "server/rpc/history.h"

#include <cctype>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "common/text.h"

namespace signvote::rpc {
namespace {

float Mean(double sum, uint64_t count) {
  if (count == 0) return std::numeric_limits<float>::quiet_NaN();
  return static_cast<float>(sum / static_cast<double>(count));
}

std::map<int, std::string> MakeEventWords() {
  constexpr std::string_view kPrefix = "KIND_";
  std::map<int, std::string> words;
  const auto* descriptor = v1::Event::Kind_descriptor();
  for (int i = 0; i < descriptor->value_count(); ++i) {
    std::string word = descriptor->value(i)->name().substr(kPrefix.size());
    for (char& c : word) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    words[descriptor->value(i)->number()] = std::move(word);
  }
  return words;
}

}  // namespace

std::string_view EventWord(v1::Event::Kind kind) {
  static const auto* const kWords = new std::map<int, std::string>(MakeEventWords());
  const auto it = kWords->find(kind);
  return it == kWords->end() ? "unspecified" : std::string_view(it->second);
}

void RunHistory::Add(v1::Event event) {
  event.set_sequence(++events_seen_);
  event.set_worker(ForPeople(event.worker(), kTextBytesMax));
  event.set_reason(ForPeople(event.reason(), kTextBytesMax));
  events_.push_back(std::move(event));
  if (events_.size() > kEventsKept) events_.pop_front();
}

void RunHistory::AddRound(uint64_t round, double loss, double stepsize) {
  if (points_.empty()) first_round_ = round;
  if (points_.empty() || points_.back().rounds == rounds_per_point_) {
    if (points_.size() == kPointsMax) Merge();
    points_.emplace_back();
  }
  Point& last = points_.back();
  ++last.rounds;
  last.stepsize_sum += stepsize;
  if (loss == loss) {
    ++last.losses;
    last.loss_sum += loss;
  }
}

void RunHistory::Merge() {
  for (size_t i = 0; i < points_.size() / 2; ++i) {
    Point merged = points_[2 * i];
    const Point& second = points_[2 * i + 1];
    merged.loss_sum += second.loss_sum;
    merged.stepsize_sum += second.stepsize_sum;
    merged.losses += second.losses;
    merged.rounds += second.rounds;
    points_[i] = merged;
  }
  points_.resize(points_.size() / 2);
  rounds_per_point_ *= 2;
}

void RunHistory::Fill(uint64_t events_after, v1::WatchReply* out) const {
  for (const v1::Event& event : events_) {
    if (event.sequence() > events_after) *out->add_events() = event;
  }
  if (points_.empty()) return;
  v1::RoundSeries& series = *out->mutable_series();
  series.set_first_round(first_round_);
  series.set_rounds_per_point(rounds_per_point_);
  for (const Point& point : points_) {
    series.add_loss(Mean(point.loss_sum, point.losses));
    series.add_stepsize(Mean(point.stepsize_sum, point.rounds));
  }
}

}  // namespace signvote::rpc
