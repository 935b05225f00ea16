#include "common/line_log.h"

#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr uint32_t kFileMode = 0644;
constexpr LineWriter::Options kQueue{
    .lines_max = 16384, .bytes_max = size_t{16} << 20, .patience = std::chrono::seconds(2)};

std::string Lost(uint64_t count) {
  return absl::StrCat("{\"kind\":\"lines_lost\",\"lines\":", count, "}\n");
}

}  // namespace

// The writer's thread's, but for `reopen`.
struct LineLog::Target {
  FileSystem* fs = nullptr;
  std::string path;
  std::unique_ptr<LogFile> file;
  bool failed = false;
  std::atomic<bool> reopen{false};  // orders nothing else

  void Write(std::string_view lines) {
    if (reopen.exchange(false)) OpenAgain();
    if (failed) return;
    const absl::Status status = file->Append(lines);
    if (status.ok()) return;
    failed = true;
    LogError("a log cannot be written; the run goes on without it",
             {{"path", path}, {"error", Describe(status)}});
  }

 private:
  void OpenAgain() {
    absl::StatusOr<std::unique_ptr<LogFile>> again = fs->OpenLog(path, kFileMode);
    // What failed may have left half a line.
    if (again.ok() && std::exchange(failed, false) && !(*again)->Append("\n").ok()) failed = true;
    if (again.ok()) {
      file = *std::move(again);
      LogInfo("log opened again", {{"path", path}});
    } else {
      LogError("a log cannot be opened again; the old file stays in use",
               {{"error", Describe(again.status())}});
    }
  }
};

absl::StatusOr<std::unique_ptr<LineLog>> LineLog::Open(FileSystem* fs, const std::string& path) {
  auto target = std::make_shared<Target>();
  target->fs = fs;
  target->path = path;
  SIGNVOTE_ASSIGN_OR_RETURN(target->file, fs->OpenLog(path, kFileMode));
  return std::unique_ptr<LineLog>(new LineLog(std::move(target)));
}

LineLog::LineLog(std::shared_ptr<Target> target)
    : target_(std::move(target)),
      writer_([target = target_](std::string_view lines) { target->Write(lines); }, Lost, kQueue) {}

bool LineLog::Write(std::string line) { return writer_.Write(std::move(line) + "\n"); }

void LineLog::Reopen() { target_->reopen.store(true); }

}  // namespace signvote
