#include "ctl/top_text.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "absl/strings/str_format.h"
#include "ctl/format.h"

namespace signvote::ctl {
namespace {

constexpr int64_t kDaySeconds = 86'400;

double Ratio(double above, double below) { return below > 0 ? above / below : kUnknown; }

}  // namespace

std::string ClockText(double unix_seconds, int64_t utc_offset_seconds) {
  if (!std::isfinite(unix_seconds)) return "--:--:--";
  int64_t seconds = (static_cast<int64_t>(unix_seconds) + utc_offset_seconds) % kDaySeconds;
  if (seconds < 0) seconds += kDaySeconds;
  return absl::StrFormat("%02d:%02d:%02d", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

std::string DateText(double unix_seconds, int64_t utc_offset_seconds) {
  const int64_t seconds = static_cast<int64_t>(unix_seconds) + utc_offset_seconds;
  const int64_t days =
      (seconds - ((seconds % kDaySeconds) + kDaySeconds) % kDaySeconds) / kDaySeconds;
  const std::chrono::year_month_day date{std::chrono::sys_days{std::chrono::days{days}}};
  return absl::StrFormat("%04d-%02d-%02d ", int{date.year()}, unsigned{date.month()},
                         unsigned{date.day()}) +
         ClockText(unix_seconds, utc_offset_seconds);
}

std::string PhaseText(v1::Status::Phase phase) {
  std::string text = EnumWord(v1::Status::Phase_descriptor()->FindValueByNumber(
      v1::Status::Phase_IsValid(phase) ? phase : v1::Status::PHASE_UNSPECIFIED));
  std::replace(text.begin(), text.end(), '_', ' ');
  return text;
}

EventWords WordsOf(v1::Event::Kind kind) {
  switch (kind) {
    case v1::Event::KIND_JOINED:
      return {"joined", Style::kGood};
    case v1::Event::KIND_MEMBER:
      return {"is a member", Style::kGood};
    case v1::Event::KIND_OBSERVER:
      return {"became an observer", Style::kWarning};
    case v1::Event::KIND_ABSTAINED:
      return {"abstained", Style::kWarning};
    case v1::Event::KIND_LEFT:
      return {"left", Style::kPlain};
    case v1::Event::KIND_LOST:
      return {"lost", Style::kBad};
    case v1::Event::KIND_EVICTED:
      return {"evicted", Style::kBad};
    case v1::Event::KIND_REFUSED:
      return {"refused", Style::kBad};
    case v1::Event::KIND_RESYNC:
      return {"must fetch the state again", Style::kBad};
    case v1::Event::KIND_REOPENED:
      return {"the round opens again", Style::kWarning};
    case v1::Event::KIND_PAUSED:
      return {"paused", Style::kWarning};
    case v1::Event::KIND_RESUMED:
      return {"resumed", Style::kGood};
    case v1::Event::KIND_FINISHED:
      return {"the last round is committed", Style::kGood};
    case v1::Event::KIND_ENDED:
      return {"the run has ended", Style::kBold};
    default:
      return {"something this version has no word for", Style::kPlain};
  }
}

std::string EventText(const v1::Event& event) {
  std::string text = event.worker();
  if (!text.empty()) text += ' ';
  text += WordsOf(event.kind()).words;
  if (!event.reason().empty()) text += ": " + event.reason();
  return text;
}

std::string Times(double ratio) { return NumberOrDash("%.1f x", ratio); }

Savings SavingsOf(const v1::WireTotals& wire) {
  const auto fp32 = static_cast<double>(wire.fp32_equivalent_bytes());
  const auto up = static_cast<double>(wire.up_rounds_bytes()),
             down = static_cast<double>(wire.down_rounds_bytes());
  const auto ballots = static_cast<double>(wire.ballots());
  return {.up_per_ballot = Ratio(up, ballots),
          .down_per_ballot = Ratio(down, ballots),
          .up_ratio = ballots > 0 ? Ratio(fp32, up) : kUnknown,
          .down_ratio = ballots > 0 ? Ratio(fp32, down) : kUnknown,
          .saved_bytes = ballots > 0 ? std::max(0.0, 2 * fp32 - up - down) : kUnknown};
}

std::string RateText(double bytes_per_second) {
  return std::isfinite(bytes_per_second) ? BytesText(bytes_per_second) + "/s" : "-";
}

LineBuilder& LineBuilder::Add(const std::string& text, Style style) {
  const std::string cut = CutTo(text, room(), view_.charset == Charset::kUtf8 ? "…" : "~");
  if (!cut.empty()) {
    line_.push_back({cut, style});
    used_ += TextWidth(cut);
  }
  return *this;
}

LineBuilder& LineBuilder::AddIfRoom(const std::vector<Span>& part) {
  size_t width = 0;
  for (const Span& span : part) width += TextWidth(span.text);
  if (width <= room()) {
    for (const Span& span : part) Add(span.text, span.style);
  }
  return *this;
}

}  // namespace signvote::ctl
