#pragma once
// What `signvote top` shows: a model and a size become lines of styled text. No I/O, no clock, no
// terminal.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/clock.h"
#include "ctl/top_model.h"

namespace signvote::ctl {

enum class Style {
  kPlain,
  kBold,
  kDim,
  kGood,
  kWarning,
  kBad,
  kTitle,  // heads of tables
  kGraph,
  // The parts of a round.
  kCompute,
  kWait,
  kTally,
  kCommit,
  kApply,
};

struct Span {
  std::string text;
  Style style = Style::kPlain;
};
using Line = std::vector<Span>;

// A line without its styles.
std::string PlainText(const Line& line);

// What a terminal can draw. Without colours everything still differs by its characters.
enum class Charset {
  kAscii,
  kUtf8,  // block elements and braille
};

enum class SortKey { kName, kShare, kBallots, kAbstentions, kAgreement, kLoss, kArrival, kUp };
SortKey NextSortKey(SortKey key);
SortKey PreviousSortKey(SortKey key);
const char* SortKeyWord(SortKey key);

struct TopView {
  int rows = 24, columns = 80;
  Charset charset = Charset::kUtf8;
  SortKey sort = SortKey::kName;
  bool reversed = false;
  size_t first_worker = 0;  // of the table: scrolled so far
  bool frozen = false;
  bool help = false;
  bool keys = true;    // the line of keys at the bottom
  std::string server;  // as the operator named it
  Time now;
  double unix_seconds = 0;
  int64_t utc_offset_seconds = 0;  // of the times shown
};

struct Frame {
  std::vector<Line> lines;   // at most `rows`, each at most `columns` wide
  size_t first_worker = 0;   // as asked for, or the last one that fills the table
  size_t workers_shown = 0;  // a page
};

constexpr int kRowsMin = 10, kColumnsMin = 40;

// A terminal smaller than kRowsMin x kColumnsMin gets a sentence instead.
Frame RenderTop(const TopModel& model, const TopView& view);

}  // namespace signvote::ctl
