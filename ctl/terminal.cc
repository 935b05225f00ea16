#include "ctl/terminal.h"

// Functions, not macros with everyday names.
#define NCURSES_NOMACROS 1
#include <curses.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace signvote::ctl {
namespace {

constexpr int kEscapeDelayMs = 25;  // a lone Esc is told from the start of a key's sequence

std::string_view TerminalType() {
  const char* type = std::getenv("TERM");
  return type == nullptr ? "" : type;
}

enum Pair : short { kPairGreen = 1, kPairYellow, kPairRed, kPairCyan, kPairBlue, kPairMagenta };

class CursesTerminal final : public Terminal {
 public:
  CursesTerminal(SCREEN* screen, bool colours)
      : screen_(screen), colours_(colours && has_colors()) {
    cbreak();
    noecho();
    nonl();
    keypad(stdscr, TRUE);
    nodelay(stdscr, TRUE);
    (void)curs_set(0);  // a terminal that cannot hide its cursor shows it
    if (!colours_) return;
    start_color();
    use_default_colors();
    init_pair(kPairGreen, COLOR_GREEN, -1);
    init_pair(kPairYellow, COLOR_YELLOW, -1);
    init_pair(kPairRed, COLOR_RED, -1);
    init_pair(kPairCyan, COLOR_CYAN, -1);
    init_pair(kPairBlue, COLOR_BLUE, -1);
    init_pair(kPairMagenta, COLOR_MAGENTA, -1);
  }
  ~CursesTerminal() override {
    endwin();
    delscreen(screen_);
  }

  int rows() const override { return getmaxy(stdscr); }
  int columns() const override { return getmaxx(stdscr); }

  void Draw(const std::vector<Line>& lines) override {
    werase(stdscr);
    for (size_t row = 0; row < lines.size(); ++row) {
      if (wmove(stdscr, static_cast<int>(row), 0) == ERR) break;
      for (const Span& span : lines[row]) {
        wattrset(stdscr, static_cast<int>(AttributesOf(span.style)));
        // ERR behind the last column of the last row, where the cursor cannot go: the text is
        // there.
        (void)waddnstr(stdscr, span.text.c_str(), static_cast<int>(span.text.size()));
      }
    }
    wattrset(stdscr, A_NORMAL);
    wrefresh(stdscr);
  }

  std::optional<Key> ReadKey() override {
    const int key = wgetch(stdscr);
    switch (key) {
      case ERR:
        return std::nullopt;
      case 'q':
      case 'Q':
        return Key::kQuit;
      case 'h':
      case '?':
      case KEY_F(1):
        return Key::kHelp;
      case 's':
        return Key::kSort;
      case 'S':
        return Key::kSortBack;
      case 'r':
        return Key::kReverse;
      case 'p':
      case ' ':
        return Key::kFreeze;
      case 'k':
      case KEY_UP:
        return Key::kUp;
      case 'j':
      case KEY_DOWN:
        return Key::kDown;
      case KEY_PPAGE:
        return Key::kPageUp;
      case KEY_NPAGE:
        return Key::kPageDown;
      case KEY_HOME:
        return Key::kHome;
      case KEY_END:
        return Key::kEnd;
      default:
        return Key::kOther;
    }
  }

  void Refit() override {
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0) {
      resizeterm(size.ws_row, size.ws_col);
    }
    clearok(stdscr, TRUE);
  }

  void Suspend() override {
    def_prog_mode();
    endwin();
    // The signal's own action, so that the shell sees what it expects.
    struct sigaction stop {
    }, before{};
    stop.sa_handler = SIG_DFL;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTSTP);
    sigaction(SIGTSTP, &stop, &before);
    raise(SIGTSTP);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);  // stops here
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    sigaction(SIGTSTP, &before, nullptr);
    reset_prog_mode();
    Refit();
  }

 private:
  attr_t AttributesOf(Style style) const {
    const auto colour = [this](short pair) -> attr_t {
      return colours_ ? static_cast<attr_t>(COLOR_PAIR(pair)) : attr_t{A_NORMAL};
    };
    switch (style) {
      case Style::kPlain:
        return A_NORMAL;
      case Style::kBold:
        return A_BOLD;
      case Style::kDim:
        return A_DIM;
      case Style::kTitle:
        return A_REVERSE;
      case Style::kGood:
      case Style::kCompute:
        return colour(kPairGreen);
      case Style::kWarning:
        return colour(kPairYellow);
      case Style::kBad:
        return colour(kPairRed) | A_BOLD;
      case Style::kGraph:
        return colour(kPairCyan);
      case Style::kWait:
        return colour(kPairRed);
      case Style::kTally:
        return colour(kPairBlue);
      case Style::kCommit:
        return colour(kPairMagenta);
      case Style::kApply:
        return colour(kPairYellow);
    }
    return A_NORMAL;
  }

  SCREEN* const screen_;
  const bool colours_;
};

}  // namespace

Charset TerminalCharset() {
  setlocale(LC_CTYPE, "");
  // The kernel's own console speaks UTF-8 and has no glyphs for braille.
  const bool utf8 = std::string_view(nl_langinfo(CODESET)) == "UTF-8";
  return utf8 && TerminalType() != "linux" && TerminalType() != "dumb" ? Charset::kUtf8
                                                                       : Charset::kAscii;
}

absl::StatusOr<std::unique_ptr<Terminal>> Terminal::Open(Colour colour) {
  if (isatty(STDIN_FILENO) == 0 || isatty(STDOUT_FILENO) == 0) {
    return absl::FailedPreconditionError("standard input or output is no terminal");
  }
  if (TerminalType().empty() || TerminalType() == "dumb") {
    return absl::FailedPreconditionError("the terminal has no screen (TERM is dumb or not set)");
  }
  (void)TerminalCharset();  // ncurses draws in the locale that is set now
  set_escdelay(kEscapeDelayMs);
  SCREEN* screen = newterm(nullptr, stdout, stdin);
  if (screen == nullptr) {
    return absl::FailedPreconditionError("this machine does not know terminals of type '" +
                                         std::string(TerminalType()) + "' (TERM)");
  }
  return std::make_unique<CursesTerminal>(screen, colour == Colour::kOn);
}

}  // namespace signvote::ctl
