#pragma once
// The terminal of `signvote top`, behind ncurses: a full screen that is given back whatever ends
// it.

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "ctl/render.h"
#include "ctl/top_view.h"

namespace signvote::ctl {

// A key, or several that mean the same.
enum class Key {
  kQuit,
  kHelp,
  kSort,
  kSortBack,
  kReverse,
  kFreeze,
  kUp,
  kDown,
  kPageUp,
  kPageDown,
  kHome,
  kEnd,
  kOther,
};

// What the locale (LC_CTYPE) and the terminal's type let us draw. Sets the process's LC_CTYPE.
Charset TerminalCharset();

// Threads: one. Only one at a time may exist.
// Failure: the destructor restores screen, cursor and modes; so does Suspend() for as long as it
// lasts.
class Terminal {
 public:
  // FAILED_PRECONDITION: standard input or output is no terminal, or one without a screen (TERM).
  static absl::StatusOr<std::unique_ptr<Terminal>> Open(Colour colour);
  virtual ~Terminal() = default;

  virtual int rows() const = 0;
  virtual int columns() const = 0;
  virtual void Draw(const std::vector<Line>& lines) = 0;
  // The next key that was pressed; nullopt: none.
  virtual std::optional<Key> ReadKey() = 0;
  // Takes the size anew and draws everything at the next Draw().
  virtual void Refit() = 0;
  // Gives the terminal back and stops the process as SIGTSTP does; returns when it goes on.
  virtual void Suspend() = 0;
};

}  // namespace signvote::ctl
