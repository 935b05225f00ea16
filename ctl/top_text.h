#pragma once
// The words of `signvote top`: times, addresses, phases, events and savings as text, and lines that
// fit the screen. What its parts, the screen and the line mode, have in common. Pure.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "ctl/top_view.h"
#include "signvote/v1/admin.pb.h"

namespace signvote::ctl {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// "14:03:21"; "--:--:--" when the time is not known.
std::string ClockText(double unix_seconds, int64_t utc_offset_seconds);
// "2026-11-25 14:03:21".
std::string DateText(double unix_seconds, int64_t utc_offset_seconds);
// "round open".
std::string PhaseText(v1::Status::Phase phase);

struct EventWords {
  const char* words;
  Style style;
};
EventWords WordsOf(v1::Event::Kind kind);
// "alice abstained: no ballot in time".
std::string EventText(const v1::Event& event);

// What one bit instead of 32 has saved so far; NaN before the first ballot.
struct Savings {
  double up_per_ballot, down_per_ballot;  // bytes
  double up_ratio, down_ratio;            // fp32's bytes over these
  double saved_bytes;
};
Savings SavingsOf(const v1::WireTotals& wire);
// "31.8 x"; "-" when it is not known.
std::string Times(double ratio);
// "431 kB/s"; "-" when it is not known.
std::string RateText(double bytes_per_second);

// Builds one line that never gets wider than the screen. `view` must outlive it.
class LineBuilder {
 public:
  explicit LineBuilder(const TopView& view) : view_(view) {}

  size_t room() const { return static_cast<size_t>(view_.columns) - used_; }
  // Cut where the screen ends.
  LineBuilder& Add(const std::string& text, Style style = Style::kPlain);
  // The whole part or nothing of it: what comes last is the first to go when a terminal is narrow.
  LineBuilder& AddIfRoom(const std::vector<Span>& part);
  Line Take() { return std::move(line_); }

 private:
  const TopView& view_;
  Line line_;
  size_t used_ = 0;
};

}  // namespace signvote::ctl
