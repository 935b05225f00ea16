#include "ctl/top_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "common/check.h"

namespace signvote::ctl {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr size_t kSamplesMax = 256;  // answers may come many times a second

}  // namespace

std::string Printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xC0) == 0x80) continue;  // one '?' per code point
    out += byte >= 0x20 && byte < 0x7f ? c : '?';
  }
  return out;
}

void TopModel::OnReply(v1::WatchReply reply, Time now) {
  new_run_ = has_status_ && reply.status().run_id() != status_.run_id();
  if (new_run_) {
    events_.clear();
    events_seen_ = 0;
    samples_.clear();
  }
  has_status_ = true;
  lost_.reset();
  answered_at_ = now;
  status_ = std::move(*reply.mutable_status());
  series_ = std::move(*reply.mutable_series());
  held_out_.assign(reply.held_out().begin(), reply.held_out().end());
  for (v1::HeldOut& held_out : held_out_) held_out.set_worker(Printable(held_out.worker()));
  status_.set_evaluator(Printable(status_.evaluator()));
  for (v1::Worker& worker : *status_.mutable_workers()) {
    worker.set_name(Printable(worker.name()));
    worker.set_address(Printable(worker.address()));
  }
  new_events_ = 0;
  for (v1::Event& event : *reply.mutable_events()) {
    if (event.sequence() <= events_seen_) continue;
    events_seen_ = event.sequence();
    event.set_worker(Printable(event.worker()));
    event.set_reason(Printable(event.reason()));
    events_.push_back(std::move(event));
    ++new_events_;
  }
  while (events_.size() > kEventsKept) events_.pop_front();

  Sample sample{.at = now,
                .round = status_.round(),
                .all = {status_.wire().up_rounds_bytes(), status_.wire().down_rounds_bytes()}};
  for (const v1::Worker& worker : status_.workers()) {
    sample.workers[worker.name()] = {worker.wire().up_rounds_bytes(),
                                     worker.wire().down_rounds_bytes()};
  }
  samples_.push_back(std::move(sample));
  while (samples_.size() > kSamplesMax ||
         (samples_.size() > 2 && now - samples_[1].at >= kRateWindow)) {
    samples_.pop_front();
  }
}

void TopModel::OnLost(std::string_view why, Time now) {
  if (!lost_.has_value()) lost_ = Lost{.since = has_status_ ? answered_at_ : now};
  lost_->why = Printable(why);
  // Rates over the gap would be neither the old ones nor the new ones.
  samples_.clear();
}

const v1::HeldOut& TopModel::first_comparable() const {
  SIGNVOTE_CHECK(!held_out_.empty());
  return *std::find_if(held_out_.begin(), held_out_.end(), [this](const v1::HeldOut& held_out) {
    return held_out.windows() == held_out_.back().windows();
  });
}

bool TopModel::ended() const {
  if (!has_status_) return false;
  if (status_.phase() == v1::Status::PHASE_ENDED) return true;
  // The last round is committed: what remains is the server's good-bye to its workers.
  return lost_.has_value() && status_.phase() == v1::Status::PHASE_FINISHING;
}

double TopModel::rounds_per_second() const {
  if (samples_.size() < 2) return kNan;
  const Sample &first = samples_.front(), &last = samples_.back();
  const double seconds = ToSeconds(last.at - first.at);
  return seconds > 0 && last.round >= first.round
             ? static_cast<double>(last.round - first.round) / seconds
             : kNan;
}

WireRate TopModel::Between(const Sample::Bytes* old_bytes, const Sample::Bytes* new_bytes,
                           Duration time) {
  const double seconds = ToSeconds(time);
  // Counters that fall are another server's.
  if (old_bytes == nullptr || new_bytes == nullptr || seconds <= 0 ||
      new_bytes->up < old_bytes->up || new_bytes->down < old_bytes->down) {
    return {kNan, kNan};
  }
  return {static_cast<double>(new_bytes->up - old_bytes->up) / seconds,
          static_cast<double>(new_bytes->down - old_bytes->down) / seconds};
}

WireRate TopModel::Rate() const {
  if (samples_.size() < 2) return {kNan, kNan};
  return Between(&samples_.front().all, &samples_.back().all,
                 samples_.back().at - samples_.front().at);
}

WireRate TopModel::RateOf(const std::string& worker) const {
  if (samples_.size() < 2) return {kNan, kNan};
  // The oldest answer that shows it: a newcomer has a rate after its second one.
  for (const Sample& sample : samples_) {
    const auto old_bytes = sample.workers.find(worker);
    if (old_bytes == sample.workers.end()) continue;
    const auto new_bytes = samples_.back().workers.find(worker);
    return Between(&old_bytes->second,
                   new_bytes == samples_.back().workers.end() ? nullptr : &new_bytes->second,
                   samples_.back().at - sample.at);
  }
  return {kNan, kNan};
}

}  // namespace signvote::ctl
