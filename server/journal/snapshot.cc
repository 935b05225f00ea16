#include "server/journal/snapshot.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/crash_point.h"
#include "common/exit_codes.h"
#include "common/memory_reserve.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "server/journal/head.h"
#include "server/journal/journal_format.h"

namespace signvote::journal {
namespace {

constexpr char kStateMagic[8] = {'S', 'V', 'S', 'N', 'A', 'P', '\0', '\0'};
constexpr uint32_t kStateVersion = 1;
constexpr uint64_t kBodyBytesMax = uint64_t{1} << 30;
constexpr size_t kPieceBytes = size_t{8} << 20;
constexpr std::string_view kUnfinished = ".new";

struct StateHeader {
  char magic[8];
  uint32_t version;
  uint32_t reserved;  // 0
  uint64_t body_bytes;
  uint64_t optimizer_numbers;
  uint64_t checksum;  // XXH3-64 of what stands before
};
static_assert(sizeof(StateHeader) == 40 && offsetof(StateHeader, checksum) == 32);
static_assert(std::is_trivially_copyable_v<StateHeader>);

absl::Status Damaged(const std::string& name, std::string_view what) {
  return WithExitCode(absl::DataLossError(absl::StrCat(name, " is damaged: ", ToAbsl(what))),
                      ExitCode::kBadInput);
}

// Writes a file under another name, and gives it its own once it is durable.
class FileWriter {
 public:
  FileWriter(Disk* disk, std::string name, GiveUp give_up)
      : disk_(disk), name_(std::move(name)), give_up_(std::move(give_up)) {}
  ~FileWriter() {
    if (file_ != nullptr) (void)disk_->Remove(Unfinished());  // what is left is cleared up later
  }
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  absl::Status Begin(uint64_t bytes) {
    const absl::Status removed = disk_->Remove(Unfinished());
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
    SIGNVOTE_ASSIGN_OR_RETURN(file_, disk_->Create(Unfinished(), bytes));
    return absl::OkStatus();
  }
  absl::Status Append(std::span<const std::byte> data) {
    while (!data.empty()) {
      if (give_up_ && give_up_()) return absl::CancelledError("no snapshot is wanted any more");
      const std::span<const std::byte> piece = data.first(std::min(kPieceBytes, data.size()));
      SIGNVOTE_RETURN_IF_ERROR(file_->WriteAt(bytes_, piece));
      file_->StartWriteback(bytes_, piece.size());
      checksum_.Update(piece.data(), piece.size());
      bytes_ += piece.size();
      data = data.subspan(piece.size());
      CrashPoint("snapshot.piece-written");
    }
    return absl::OkStatus();
  }
  absl::Status Commit() {
    SIGNVOTE_RETURN_IF_ERROR(file_->Sync());
    CrashPoint("snapshot.file-synced");
    SIGNVOTE_RETURN_IF_ERROR(disk_->Rename(Unfinished(), name_));
    CrashPoint("snapshot.file-named");
    file_.reset();
    return disk_->SyncFolder();
  }
  uint64_t bytes() const { return bytes_; }
  uint64_t checksum() const { return checksum_.Digest(); }

 private:
  std::string Unfinished() const { return name_ + std::string(kUnfinished); }

  Disk* const disk_;
  const std::string name_;
  const GiveUp give_up_;
  std::unique_ptr<DiskFile> file_;
  Xxh3Stream checksum_;
  uint64_t bytes_ = 0;
};

struct Written {
  uint64_t bytes = 0, checksum = 0;
};

absl::StatusOr<Written> WritePlane(Disk* disk, const std::string& name, const SnapshotView& view,
                                   std::span<const float> plane, std::string_view what,
                                   const GiveUp& give_up) {
  const auto& run = view.head->run();
  SIGNVOTE_ASSIGN_OR_RETURN(const RunId run_id, RunId::FromBytes(run.run_id()));
  const std::string header =
      SafetensorsHeader(view.layout->tensors(), TensorDtype::kF32,
                        {{"format", "pt"},
                         {"signvote.plane", std::string(what)},
                         {"signvote.run_id", run_id.ToText()},
                         {"signvote.round", std::to_string(run.engine().round())}});
  FileWriter file(disk, name, give_up);
  SIGNVOTE_RETURN_IF_ERROR(file.Begin(header.size() + plane.size_bytes()));
  SIGNVOTE_RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(header.data(), header.size()))));
  SIGNVOTE_RETURN_IF_ERROR(file.Append(std::as_bytes(plane)));
  SIGNVOTE_RETURN_IF_ERROR(file.Commit());
  return Written{.bytes = file.bytes(), .checksum = file.checksum()};
}

// The values of a plane's file, checked. `out` null: they are only checked.
absl::Status ReadPlane(Disk* disk, const std::string& name, uint64_t coordinates, uint64_t bytes,
                       uint64_t checksum, std::vector<float>* out) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, disk->Map(name));
  const std::span<const std::byte> data = map->data();
  if (data.size() != bytes)
    return Damaged(name, absl::StrCat("it has ", data.size(), " bytes, not ", bytes));
  if (Xxh3(data) != checksum || map->cut()) return Damaged(name, "its checksum is wrong");
  uint64_t header = 0;
  if (data.size() < kSafetensorsPrefixBytes) return Damaged(name, "it is too short");
  std::memcpy(&header, data.data(), sizeof(header));
  const uint64_t rest = data.size() - kSafetensorsPrefixBytes;
  if (header > rest || rest - header != coordinates * sizeof(float))
    return Damaged(name, "it is of another layout");
  if (out == nullptr) return absl::OkStatus();
  SIGNVOTE_RETURN_IF_ERROR(TryResize(out, coordinates));
  std::memcpy(out->data(), data.data() + kSafetensorsPrefixBytes + header,
              coordinates * sizeof(float));
  // The disk may have failed since.
  return map->cut() ? Damaged(name, "it was cut while it was read") : absl::OkStatus();
}

absl::StatusOr<Snapshot> Read(Disk* disk, Round round, bool keep) {
  const std::string name = SnapshotStateName(round);
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, disk->Map(name));
  absl::StatusOr<StateFile> state = DecodeStateFile(map->data());
  if (!state.ok())
    return absl::Status(state.status().code(), absl::StrCat(name, ": ", state.status().message()));
  Snapshot out;
  out.head = std::move(*state->message.mutable_head());
  out.optimizer = std::move(state->optimizer);
  if (out.head.run().engine().round() != round.value())
    return Damaged(name, "it is of another round than its name says");
  absl::StatusOr<Layout> layout = LayoutFrom(out.head.run());
  if (!layout.ok()) return Damaged(name, ToStd(layout.status().message()));
  out.layout = *std::move(layout);
  const uint64_t d = out.layout.coordinates();
  if (d == 0) return Damaged(name, "it has no layout");
  const v1::JournalSnapshot& message = state->message;
  out.bytes = map->data().size() + message.x_bytes() + message.x0_bytes();
  out.x = std::make_shared<std::vector<float>>();
  SIGNVOTE_RETURN_IF_ERROR(ReadPlane(disk, SnapshotXName(round), d, message.x_bytes(),
                                     message.x_checksum(), keep ? out.x.get() : nullptr));
  if (message.x0_bytes() == 0) return out;
  out.x0 = std::make_shared<std::vector<float>>();
  SIGNVOTE_RETURN_IF_ERROR(ReadPlane(disk, SnapshotX0Name(round), d, message.x0_bytes(),
                                     message.x0_checksum(), keep ? out.x0.get() : nullptr));
  return out;
}

}  // namespace

std::string EncodeStateFile(const v1::JournalSnapshot& message, std::span<const float> optimizer) {
  const std::string body = message.SerializeAsString();
  StateHeader header{};
  std::memcpy(header.magic, kStateMagic, sizeof(kStateMagic));
  header.version = kStateVersion;
  header.body_bytes = body.size();
  header.optimizer_numbers = optimizer.size();
  header.checksum = Xxh3(&header, offsetof(StateHeader, checksum));
  std::string out(reinterpret_cast<const char*>(&header), sizeof(header));
  const auto append = [&out](const void* data, size_t bytes) {
    out.append(static_cast<const char*>(data), bytes);
    const uint64_t checksum = Xxh3(data, bytes);
    out.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  };
  append(body.data(), body.size());
  append(optimizer.data(), optimizer.size_bytes());
  return out;
}

absl::StatusOr<StateFile> DecodeStateFile(std::span<const std::byte> bytes) {
  const auto damaged = [](std::string_view what) {
    return WithExitCode(absl::DataLossError(absl::StrCat("is damaged: ", ToAbsl(what))),
                        ExitCode::kBadInput);
  };
  StateHeader header;
  if (bytes.size() < sizeof(header) ||
      std::memcmp(bytes.data(), kStateMagic, sizeof(kStateMagic)) != 0) {
    return damaged("it does not begin as the state of a snapshot does");
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.checksum != Xxh3(bytes.first(offsetof(StateHeader, checksum))))
    return damaged("the checksum of its header is wrong");
  if (header.version != kStateVersion || header.reserved != 0) {
    return WithExitCode(
        absl::UnimplementedError(absl::StrCat("has version ", header.version,
                                              "; this program reads version ", kStateVersion)),
        ExitCode::kBadInput);
  }
  std::span<const std::byte> rest = bytes.subspan(sizeof(header));
  const auto take = [&rest](uint64_t size) -> std::optional<std::span<const std::byte>> {
    if (rest.size() < sizeof(uint64_t) || size > rest.size() - sizeof(uint64_t))
      return std::nullopt;
    const std::span<const std::byte> part = rest.first(size);
    uint64_t checksum = 0;
    std::memcpy(&checksum, rest.data() + size, sizeof(checksum));
    if (checksum != Xxh3(part)) return std::nullopt;
    rest = rest.subspan(size + sizeof(checksum));
    return part;
  };
  if (header.body_bytes > kBodyBytesMax || header.optimizer_numbers > rest.size() / sizeof(float))
    return damaged("sizes in its header");
  StateFile out;
  const auto body = take(header.body_bytes);
  if (!body.has_value()) return damaged("its body is cut short, or has a wrong checksum");
  if (!out.message.ParseFromArray(body->data(), static_cast<int>(body->size())))
    return damaged("its body is not a JournalSnapshot message");
  const auto numbers = take(header.optimizer_numbers * sizeof(float));
  if (!numbers.has_value() || !rest.empty())
    return damaged(
        "the optimizer's state is cut short, has a wrong checksum, or something follows");
  out.optimizer.resize(header.optimizer_numbers);
  if (!numbers->empty()) std::memcpy(out.optimizer.data(), numbers->data(), numbers->size());
  return out;
}

absl::Status WriteSnapshot(Disk* disk, const SnapshotView& view, const GiveUp& give_up) {
  const Round round(view.head->run().engine().round());
  // One of the same round that is not whole, such as of a server that ended while it wrote it.
  SIGNVOTE_RETURN_IF_ERROR(RemoveSnapshot(disk, round));
  v1::JournalSnapshot message;
  *message.mutable_head() = *view.head;
  SIGNVOTE_ASSIGN_OR_RETURN(const Written x,
                            WritePlane(disk, SnapshotXName(round), view, view.x, "x", give_up));
  message.set_x_bytes(x.bytes);
  message.set_x_checksum(x.checksum);
  if (!view.x0.empty()) {
    SIGNVOTE_ASSIGN_OR_RETURN(
        const Written x0, WritePlane(disk, SnapshotX0Name(round), view, view.x0, "x0", give_up));
    message.set_x0_bytes(x0.bytes);
    message.set_x0_checksum(x0.checksum);
  }
  const std::string state = EncodeStateFile(message, view.optimizer);
  FileWriter file(disk, SnapshotStateName(round), give_up);
  SIGNVOTE_RETURN_IF_ERROR(file.Begin(state.size()));
  SIGNVOTE_RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(state.data(), state.size()))));
  SIGNVOTE_RETURN_IF_ERROR(file.Commit());
  return CheckSnapshot(disk, round);
}

absl::StatusOr<Snapshot> ReadSnapshot(Disk* disk, Round round) { return Read(disk, round, true); }

absl::Status CheckSnapshot(Disk* disk, Round round) { return Read(disk, round, false).status(); }

absl::StatusOr<std::vector<Round>> ListSnapshots(Disk* disk) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<DiskEntry> entries, disk->List());
  std::vector<Round> rounds;
  for (const DiskEntry& entry : entries) {
    if (const auto round = SnapshotStateOf(entry.name)) rounds.push_back(*round);
  }
  std::sort(rounds.rbegin(), rounds.rend());
  return rounds;
}

absl::Status RemoveSnapshot(Disk* disk, Round round) {
  for (const std::string& name :
       {SnapshotStateName(round), SnapshotX0Name(round), SnapshotXName(round)}) {
    const absl::Status removed = disk->Remove(name);
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  }
  return absl::OkStatus();
}

}  // namespace signvote::journal
