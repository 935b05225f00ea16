#include "common/log.h"

#include <poll.h>
#include <pthread.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/clock.h"
#include "common/line_writer.h"
#include "common/may_wait.h"
#include "common/text.h"

namespace signvote {
namespace {

// What a program that ends waits for its last lines.
constexpr Duration kLastWords = std::chrono::seconds(1);
constexpr int kWriteAgainMs = 1000;  // a descriptor that does not block is asked again

constexpr char kTextPattern[] = "%Y-%m-%dT%H:%M:%S.%eZ %l %v";

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      break;
  }
  return spdlog::level::err;
}

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      break;
  }
  return "error";
}

// Waits for as long as the reader takes. Nothing is left to tell an error to.
void WriteToStderr(std::string_view text) {
  CheckMayWait("a write to standard error");
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      pollfd event{STDERR_FILENO, POLLOUT, 0};
      (void)::poll(&event, 1, kWriteAgainMs);  // the next write tells
    } else if (errno != EINTR) {
      return;
    }
  }
}

// A forked child has no thread that writes: it writes by itself.
std::atomic<bool> g_forked{false};  // set in the child before it has a second thread

// Hands formatted lines to the writer's queue. base_sink's lock keeps their order.
class QueueSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit QueueSink(LineWriter* writer) : writer_(writer) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    if (g_forked.load(std::memory_order_relaxed)) {
      WriteToStderr({line.data(), line.size()});
    } else {
      (void)writer_->Write({line.data(), line.size()});  // false: counted, and told of
    }
  }
  void flush_() override {}

  LineWriter* const writer_;
};

std::string DroppedLine(uint64_t count);

struct Logger {
  Logger()
      : writer(WriteToStderr, DroppedLine, {}),
        spd("signvote", std::make_shared<QueueSink>(&writer)) {
    Configure({});
    (void)::pthread_atfork(nullptr, nullptr, [] { g_forked.store(true); });
    (void)std::atexit([] { (void)FlushLog(kLastWords); });
  }
  void Configure(const LogOptions& options) {
    spd.set_level(ToSpdlog(options.level));
    // In JSON the line is ours from end to end; in text spdlog puts time and level before it.
    spd.set_formatter(std::make_unique<spdlog::pattern_formatter>(
        options.format == LogFormat::kJson ? "%v" : kTextPattern, spdlog::pattern_time_type::utc));
    format.store(options.format, std::memory_order_relaxed);
  }
  LineWriter writer;
  spdlog::logger spd;
  std::atomic<LogFormat> format{
      LogFormat::kText};  // set before threads start; atomic for those who log earlier
};

Logger& GetLogger() {
  // Never destroyed: threads that outlive main() may still log.
  static Logger* const logger = new Logger;
  return *logger;
}

// A line stays one line, whatever a peer put into a value.
void AppendEscaped(std::string_view in, std::string* out) {
  while (!in.empty()) {
    const CodePoint next = FirstCodePoint(in);
    if (in[0] == '"' || in[0] == '\\') {
      *out += '\\';
      *out += in[0];
    } else if (in[0] == '\n') {
      *out += "\\n";
    } else if (next.fits) {
      *out += in.substr(0, next.bytes);
    } else {
      for (const char c : in.substr(0, next.bytes)) {
        char hex[8];
        std::snprintf(hex, sizeof(hex), "\\x%02x",
                      static_cast<unsigned>(static_cast<unsigned char>(c)));
        *out += hex;
      }
    }
    in.remove_prefix(next.bytes);
  }
}

std::string NumberText(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

void AppendValue(const LogField& field, std::string* out) {
  if (const auto* text = std::get_if<std::string>(&field.value)) {
    const bool plain = !text->empty() && text->find_first_of(" \t\r\n\"\\=") == std::string::npos;
    if (!plain) *out += '"';
    AppendEscaped(*text, out);
    if (!plain) *out += '"';
  } else if (const auto* i = std::get_if<int64_t>(&field.value)) {
    *out += std::to_string(*i);
  } else if (const auto* u = std::get_if<uint64_t>(&field.value)) {
    *out += std::to_string(*u);
  } else {
    *out += NumberText(std::get<double>(field.value));
  }
}

std::string TextLine(std::string_view message, std::initializer_list<LogField> fields) {
  std::string line = ForPeople(message, message.size());
  for (const LogField& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    AppendValue(field, &line);
  }
  return line;
}

std::string JsonLine(LogLevel level, std::string_view message,
                     std::initializer_list<LogField> fields) {
  const int64_t micros = Clock::System()->UnixMicros();
  const std::time_t seconds = static_cast<std::time_t>(micros / 1'000'000);
  std::tm utc{};
  (void)gmtime_r(&seconds, &utc);  // cannot fail for a time of our clock
  char time[40];
  const size_t length = std::strftime(time, sizeof(time), "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(time + length, sizeof(time) - length, ".%06dZ",
                static_cast<int>(micros % 1'000'000));
  nlohmann::ordered_json line;
  line["time"] = time;
  line["level"] = LevelName(level);
  line["message"] = message;
  for (const LogField& field : fields) {
    std::visit([&](const auto& value) { line[std::string(field.key)] = value; }, field.value);
  }
  // A peer's bytes need not be UTF-8: replace, never throw.
  // ASCII only, so that no terminal obeys what a peer sent.
  return line.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

std::string LineFor(LogFormat format, LogLevel level, std::string_view message,
                    std::initializer_list<LogField> fields) {
  return format == LogFormat::kJson ? JsonLine(level, message, fields) : TextLine(message, fields);
}

// Made on the writer's thread, past the queue.
std::string DroppedLine(uint64_t count) {
  const Logger& logger = GetLogger();
  const LogFormat format = logger.format.load(std::memory_order_relaxed);
  const std::string line =
      LineFor(format, LogLevel::kWarning, "log lines are lost: standard error was not read in time",
              {{"lines", count}});
  spdlog::memory_buf_t out;
  spdlog::pattern_formatter(format == LogFormat::kJson ? "%v" : kTextPattern,
                            spdlog::pattern_time_type::utc)
      .format({"signvote", ToSpdlog(LogLevel::kWarning), spdlog::string_view_t(line)}, out);
  return {out.data(), out.size()};
}

}  // namespace

absl::Status ParseLogLevel(std::string_view text, LogLevel* level) {
  for (const LogLevel candidate :
       {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    if (text == LevelName(candidate)) {
      *level = candidate;
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError("unknown log level '" + std::string(text) +
                                    "'; use debug, info, warning or error");
}

absl::Status ParseLogFormat(std::string_view text, LogFormat* format) {
  if (text == "text") {
    *format = LogFormat::kText;
  } else if (text == "json") {
    *format = LogFormat::kJson;
  } else {
    return absl::InvalidArgumentError("unknown log format '" + std::string(text) +
                                      "'; use text or json");
  }
  return absl::OkStatus();
}

void InitLogging(const LogOptions& options) { GetLogger().Configure(options); }

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  Logger& logger = GetLogger();
  const spdlog::level::level_enum spd_level = ToSpdlog(level);
  if (!logger.spd.should_log(spd_level)) return;
  const std::string line =
      LineFor(logger.format.load(std::memory_order_relaxed), level, message, fields);
  logger.spd.log(spd_level, spdlog::string_view_t(line.data(), line.size()));
}

bool FlushLog(Duration timeout) { return GetLogger().writer.Flush(timeout); }

uint64_t DroppedLogLines() { return GetLogger().writer.dropped(); }

}  // namespace signvote
