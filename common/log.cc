#include "common/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/clock.h"
#include "common/text.h"

namespace signvote {
namespace {

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

struct Logger {
  Logger() : spd("signvote", std::make_shared<spdlog::sinks::stderr_sink_mt>()) { Configure({}); }
  void Configure(const LogOptions& options) {
    spd.set_level(ToSpdlog(options.level));
    spd.flush_on(spdlog::level::debug);
    // In JSON the line is ours from end to end; in text spdlog puts time and level before it.
    spd.set_formatter(std::make_unique<spdlog::pattern_formatter>(
        options.format == LogFormat::kJson ? "%v" : kTextPattern, spdlog::pattern_time_type::utc));
    format.store(options.format, std::memory_order_relaxed);
  }
  spdlog::logger spd;
  std::atomic<LogFormat> format{
      LogFormat::kText};  // set before threads start; atomic for those who log earlier
};

Logger& GetLogger() {
  // Never destroyed: threads that outlive main() may still log.
  static Logger* const logger = new Logger;
  return *logger;
}

// A line stays one line and shows what is in it, whatever a peer put into a value.
void AppendEscaped(std::string_view in, std::string* out) {
  char hex[16];
  for (size_t at = 0; at < in.size();) {
    const CodePoint point = CodePointAt(in, at);
    if (in[at] == '"' || in[at] == '\\') {
      *out += '\\';
      *out += in[at];
    } else if (in[at] == '\n') {
      *out += "\\n";
    } else if (!point.well_formed || point.value < 0x20 || point.value == 0x7F) {
      std::snprintf(hex, sizeof(hex), "\\x%02x", point.value);
      *out += hex;
    } else if (Misleads(point.value)) {
      std::snprintf(hex, sizeof(hex), "\\u{%x}", point.value);
      *out += hex;
    } else {
      *out += in.substr(at, point.bytes);
    }
    at += point.bytes;
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
  std::string line;
  line += ForPeople(message, message.size());
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
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
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
  const std::string line = logger.format.load(std::memory_order_relaxed) == LogFormat::kJson
                               ? JsonLine(level, message, fields)
                               : TextLine(message, fields);
  logger.spd.log(spd_level, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace signvote
