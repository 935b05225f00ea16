#include "common/model_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/half_float.h"
#include "common/log.h"
#include "common/shard_index.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr uint32_t kFileMode = 0644;
constexpr size_t kPieceValues = size_t{1} << 20;
constexpr char kIndexVersion[] = "1";

// "model.safetensors", 2 of 3: "model-00002-of-00003.safetensors", which is how transformers calls it.
// From the second generation on "model-v1-00002-of-00003.safetensors".
std::string ShardPath(const std::string& path, int generation, size_t shard, size_t shards) {
  const std::string version = generation == 0 ? "" : absl::StrCat("-v", generation);
  return AddToName(path, version + absl::StrFormat("-%05d-of-%05d", shard + 1, shards));
}

// What is left over takes room and is never read: no reason to call a written model unwritten.
void RemoveLeftOver(FileSystem* fs, const std::string& path) {
  if (const absl::Status removed = fs->Remove(path); !removed.ok() && !absl::IsNotFound(removed))
    LogWarning("a file of an older model stays", {{"error", Describe(removed)}});
}

}  // namespace

absl::StatusOr<TensorDtype> ParseWrittenDtype(std::string_view flag, std::string_view text) {
  if (text == "f32") return TensorDtype::kF32;
  if (text == "bf16") return TensorDtype::kBf16;
  return WithExitCode(absl::InvalidArgumentError(absl::StrCat(ToAbsl(flag), " '", ToAbsl(text),
                                                              "' is unknown; use f32 or bf16")),
                      ExitCode::kUsage);
}

ModelWriter::ModelWriter(FileSystem* fs, std::string path, Layout layout, const ModelFormat& format,
                         std::map<std::string, std::string> metadata)
    : fs_(fs),
      path_(std::move(path)),
      layout_(std::move(layout)),
      format_(format),
      metadata_(std::move(metadata)) {}

ModelWriter::~ModelWriter() {
  file_.reset();
  if (committed_ || shards_.size() == 1) return;
  // An index whose folder could not be synced may be there nevertheless.
  const StandingIndex standing = ReadStandingIndex(fs_, path_);
  for (size_t k = 0; k < shard_; ++k) {
    const std::string& path = shards_[k].path;
    if (!standing.files.contains(path.substr(FolderPrefix(path).size()))) RemoveLeftOver(fs_, path);
  }
}

absl::StatusOr<std::unique_ptr<ModelWriter>> ModelWriter::Create(
    FileSystem* fs, const std::string& path, Layout layout, const ModelFormat& format,
    std::map<std::string, std::string> metadata) {
  SIGNVOTE_CHECK(layout.coordinates() > 0);
  metadata.emplace("format", "pt");
  SIGNVOTE_ASSIGN_OR_RETURN(std::string target, fs->FollowLinks(path));
  std::unique_ptr<ModelWriter> writer(
      new ModelWriter(fs, std::move(target), std::move(layout), format, std::move(metadata)));
  SIGNVOTE_RETURN_IF_ERROR(writer->Begin());
  return writer;
}

std::vector<std::span<const TensorSpec>> ModelWriter::Split() const {
  const std::span<const TensorSpec> tensors = layout_.tensors();
  const uint64_t width = BytesOf(format_.dtype);
  std::vector<std::span<const TensorSpec>> parts;
  if (format_.shard_bytes == 0) return {tensors};
  size_t begin = 0;
  uint64_t bytes = 0;
  for (size_t k = 0; k < tensors.size(); ++k) {
    const uint64_t more = tensors[k].count * width;
    if (k > begin && more > format_.shard_bytes - std::min(bytes, format_.shard_bytes)) {
      parts.push_back(tensors.subspan(begin, k - begin));
      begin = k;
      bytes = 0;
    }
    bytes += more;
  }
  parts.push_back(tensors.subspan(begin));
  return parts;
}

absl::Status ModelWriter::Begin() {
  StandingIndex standing = ReadStandingIndex(fs_, path_);
  replaces_index_ = standing.ours;
  former_ = std::move(standing.files);
  const std::vector<std::span<const TensorSpec>> parts = Split();
  if (parts.size() > 1 && standing.there && !standing.ours) return ForeignIndex(path_);
  // The first generation of names of which none is there: no file is written over, whoever wrote it.
  for (int generation = 0; shards_.empty(); ++generation) {
    for (size_t k = 0; k < parts.size(); ++k) {
      const TensorSpec& last = parts[k].back();
      Shard shard{
          .tensors = parts[k],
          .end = last.first + last.count,
          .path = parts.size() == 1 ? path_ : ShardPath(path_, generation, k, parts.size())};
      if (parts.size() > 1 && !absl::IsNotFound(fs_->FileSize(shard.path).status())) {
        shards_.clear();
        break;
      }
      shards_.push_back(std::move(shard));
    }
  }
  return NextFile();
}

absl::Status ModelWriter::NextFile() {
  const Shard& shard = shards_[shard_];
  SIGNVOTE_ASSIGN_OR_RETURN(file_, fs_->CreateAtomic(shard.path, kFileMode));
  const std::string header = SafetensorsHeader(shard.tensors, format_.dtype, metadata_);
  return file_->Append(std::as_bytes(std::span(header)));
}

absl::Status ModelWriter::Write(std::span<const float> values) {
  if (format_.dtype == TensorDtype::kF32) return file_->Append(std::as_bytes(values));
  while (!values.empty()) {
    const std::span<const float> piece = values.first(std::min(kPieceValues, values.size()));
    narrow_.resize(piece.size());
    std::transform(piece.begin(), piece.end(), narrow_.begin(), NarrowBf16);
    SIGNVOTE_RETURN_IF_ERROR(file_->Append(std::as_bytes(std::span(narrow_))));
    values = values.subspan(piece.size());
  }
  return absl::OkStatus();
}

absl::Status ModelWriter::Append(std::span<const float> values) {
  SIGNVOTE_CHECK(values.size() <= layout_.coordinates() - next_);
  const auto append = [&]() -> absl::Status {
    while (!values.empty()) {
      if (next_ == shards_[shard_].end) {
        SIGNVOTE_RETURN_IF_ERROR(file_->Commit());
        ++shard_;
        SIGNVOTE_RETURN_IF_ERROR(NextFile());
      }
      const std::span<const float> here =
          values.first(std::min<uint64_t>(values.size(), shards_[shard_].end - next_));
      SIGNVOTE_RETURN_IF_ERROR(Write(here));
      next_ += here.size();
      values = values.subspan(here.size());
    }
    return absl::OkStatus();
  };
  if (poison_.ok()) poison_ = append();
  return poison_;
}

absl::Status ModelWriter::CommitIndex(uint64_t bytes) {
  ShardIndex index{.files = {}, .metadata = metadata_};
  index.metadata[kIndexMark] = kIndexVersion;
  const size_t folder = FolderPrefix(path_).size();
  for (const Shard& shard : shards_)
    for (const TensorSpec& tensor : shard.tensors)
      index.files[tensor.name] = shard.path.substr(folder);
  return WriteFileAtomically(fs_, ShardIndexPath(path_), ShardIndexText(index, bytes), kFileMode);
}

absl::StatusOr<WrittenModel> ModelWriter::CommitAll() {
  const bool whole = shards_.size() == 1;
  const auto commit_file = [this]() -> absl::Status {
    SIGNVOTE_RETURN_IF_ERROR(file_->Commit());
    ++shard_;
    return absl::OkStatus();
  };
  if (!whole) SIGNVOTE_RETURN_IF_ERROR(commit_file());
  SIGNVOTE_ASSIGN_OR_RETURN(const KeptEarlier kept, KeepEarlierModels(fs_, path_, metadata_));
  if (kept.index_kept) former_.clear();
  if (whole) SIGNVOTE_RETURN_IF_ERROR(commit_file());
  const uint64_t bytes = layout_.coordinates() * BytesOf(format_.dtype);
  WrittenModel written{.path = path_, .bytes = bytes, .files = 1};
  if (whole) {
    if (replaces_index_) RemoveLeftOver(fs_, ShardIndexPath(path_));
  } else {
    SIGNVOTE_RETURN_IF_ERROR(CommitIndex(bytes));
    committed_ = true;
    written.path = ShardIndexPath(path_);
    written.files = static_cast<uint32_t>(shards_.size());
    if (const absl::Status removed = fs_->Remove(path_);
        !removed.ok() && !absl::IsNotFound(removed)) {
      return WithContext(removed, absl::StrCat(written.path, " is written, but hidden by ", path_));
    }
  }
  committed_ = true;
  for (const std::string& file : former_) RemoveLeftOver(fs_, FolderPrefix(path_) + file);
  return written;
}

absl::StatusOr<WrittenModel> ModelWriter::Commit() {
  if (!poison_.ok()) return poison_;
  SIGNVOTE_CHECK(next_ == layout_.coordinates() && !committed_);
  absl::StatusOr<WrittenModel> written = CommitAll();
  poison_ = written.status();
  return written;
}

}  // namespace signvote
