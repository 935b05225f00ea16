#include "server/line_log.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr LineWriter::Options kQueue{
    .lines_max = 16384, .bytes_max = size_t{16} << 20, .patience = std::chrono::seconds(2)};

std::string Lost(uint64_t count) {
  return absl::StrCat("{\"kind\":\"lines_lost\",\"lines\":", count, "}\n");
}

// Shared with the writer's thread, which a disk that hangs may keep beyond the log's life.
struct Target {
  std::unique_ptr<LogFile> file;
  std::string path;
  bool failed = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LineLog>> LineLog::Open(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<LogFile> file, fs->OpenLog(path, 0644));
  return std::unique_ptr<LineLog>(new LineLog(std::move(file), path));
}

LineLog::LineLog(std::unique_ptr<LogFile> file, std::string path)
    : writer_(
          [target = std::make_shared<Target>(
               Target{.file = std::move(file), .path = std::move(path)})](std::string_view lines) {
            if (target->failed) return;
            const absl::Status status = target->file->Append(lines);
            if (status.ok()) return;
            target->failed = true;
            LogError("a log cannot be written; the run goes on without it",
                     {{"path", target->path}, {"error", Describe(status)}});
          },
          Lost, kQueue) {}

bool LineLog::Write(std::string line) { return writer_.Write(std::move(line) + "\n"); }

}  // namespace signvote
