#pragma once
// Logging: spdlog behind one file. Text for people, JSON (one object a line) for machines, both on
// stderr. A state change is logged once, with its ids. ERROR means that a person must act.
//
// Lines go through a bounded queue to a thread of their own: whoever logs never waits for whoever
// reads. What cannot be written in time is dropped, counted and told of.

#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/status.h"
#include "common/clock.h"

namespace signvote {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

struct LogOptions {
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;
};

// "debug", "info", "warning", "error" / "text", "json". INVALID_ARGUMENT names the accepted words.
absl::Status ParseLogLevel(std::string_view text, LogLevel* level);
absl::Status ParseLogFormat(std::string_view text, LogFormat* format);

// Call once, at the start of main. Before that, messages go to stderr as text at level info.
void InitLogging(const LogOptions& options);

// One key of a log line. Numbers stay numbers in JSON.
struct LogField {
  std::string_view key;
  std::variant<int64_t, uint64_t, double, std::string> value;
};

// Queues `message key=value …` (text) or {"time","level","message",key:value…} (JSON). Threads:
// thread-safe.
void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

// Waits until every line so far is written; false after `timeout`. Programs need not call it: what
// is queued when exit() runs is waited for, at most a second.
bool FlushLog(Duration timeout);
// Lines that nobody will ever read.
uint64_t DroppedLogLines();

inline void LogInfo(std::string_view m, std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kInfo, m, f);
}
inline void LogWarning(std::string_view m, std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kWarning, m, f);
}
inline void LogError(std::string_view m, std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kError, m, f);
}
inline void LogDebug(std::string_view m, std::initializer_list<LogField> f = {}) {
  Log(LogLevel::kDebug, m, f);
}

}  // namespace signvote
