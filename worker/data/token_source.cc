#include "worker/data/token_source.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "worker/data/corpus_files.h"
#include "worker/data/data_kind.h"

namespace signvote {
namespace {

constexpr uint64_t kMapBytesMin = 1 << 20;  // smaller text files are copied
constexpr double kHeldOutFraction = 0.05;

absl::Status BadData(absl::Status status) {
  return WithExitCode(std::move(status), ExitCode::kBadInput);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenSource>> TokenSource::Open(FileSystem* fs,
                                                               const std::string& path,
                                                               DataFormat format) {
  SIGNVOTE_CHECK(format != DataFormat::kSynthetic);
  const bool text = format == DataFormat::kText;
  SIGNVOTE_ASSIGN_OR_RETURN(const bool folder, fs->IsDirectory(path));
  CorpusFiles files{.train = {path}};
  if (folder) {
    SIGNVOTE_ASSIGN_OR_RETURN(std::vector<std::string> found, fs->ListFiles(path));
    files = ChooseCorpusFiles(path, std::move(found), format);
    if (files.train.empty()) {
      return BadData(absl::InvalidArgumentError(
          absl::StrCat("--data ", path, ": the folder holds no ", text ? "file" : ".bin file",
                       files.left_out.empty() ? "" : ", but ", ListedFiles(path, files.left_out))));
    }
  }
  auto source = std::make_unique<TokenSource>();
  const auto add = [&](const std::vector<std::string>& part) -> absl::Status {
    for (const std::string& file : part)
      SIGNVOTE_RETURN_IF_ERROR(text ? source->AddText(fs, file)
                                    : source->AddShard(fs, file, format));
    return absl::OkStatus();
  };
  SIGNVOTE_RETURN_IF_ERROR(add(files.train));
  source->train_tokens_ = source->tokens_;
  SIGNVOTE_RETURN_IF_ERROR(add(files.held_out));
  // Empty texts, too, hold nothing out.
  if (source->train_tokens_ == 0 || source->train_tokens_ == source->tokens_) {
    source->train_tokens_ =
        source->tokens_ -
        static_cast<uint64_t>(static_cast<double>(source->tokens_) * kHeldOutFraction);
  } else {
    source->held_out_files_ = ListedFiles(path, files.held_out);
  }
  source->left_out_files_ = ListedFiles(path, files.left_out);
  return source;
}

absl::Status TokenSource::AddText(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t bytes, fs->FileSize(path));
  if (bytes == 0) return absl::OkStatus();
  Segment segment;
  segment.first = tokens_;
  if (bytes >= kMapBytesMin) {
    SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> map, fs->Map(path));
    SIGNVOTE_RETURN_IF_ERROR(CheckDataKind(path, map->data(), DataFormat::kText));
    segment.data = map->data().data();
    segment.count = map->data().size();
    maps_.push_back({.path = path, .file = std::move(map)});
  } else {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, fs->ReadFile(path, kMapBytesMin));
    segment.offset = pool_.size();
    segment.count = text.size();
    const auto* data = reinterpret_cast<const std::byte*>(text.data());
    SIGNVOTE_RETURN_IF_ERROR(CheckDataKind(path, std::span(data, text.size()), DataFormat::kText));
    pool_.insert(pool_.end(), data, data + text.size());
  }
  tokens_ += segment.count;
  segments_.push_back(segment);
  return absl::OkStatus();
}

absl::Status TokenSource::AddShard(FileSystem* fs, const std::string& path, DataFormat format) {
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t file_bytes, fs->FileSize(path));
  if (file_bytes == 0)
    return BadData(absl::DataLossError(absl::StrCat(path, ": the shard is empty")));
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> map, fs->Map(path));
  const std::span<const std::byte> data = map->data();
  SIGNVOTE_RETURN_IF_ERROR(CheckDataKind(path, data, format));
  Segment segment;
  segment.first = tokens_;
  size_t header_bytes = 0;
  if (format == DataFormat::kNanoGpt) {
    segment.width = 2;
    if (data.size() % 2 != 0) {
      return BadData(absl::DataLossError(
          absl::StrFormat("%s: %d bytes are no whole number of 16-bit tokens", path, data.size())));
    }
    segment.count = data.size() / 2;
  } else {
    if (data.size() < kLlmcHeaderBytes) {
      return BadData(absl::DataLossError(
          absl::StrFormat("%s: %d bytes; the header alone of an llm.c shard has %d", path,
                          data.size(), kLlmcHeaderBytes)));
    }
    std::array<int32_t, 3> header;
    std::memcpy(header.data(), data.data(), sizeof(header));
    const LlmcFormat* known = nullptr;
    for (const LlmcFormat& candidate : kLlmcFormats) {
      if (header[0] == candidate.magic && header[1] == candidate.version) known = &candidate;
    }
    if (known == nullptr) {
      return BadData(absl::DataLossError(
          absl::StrFormat("%s: magic %d version %d is no llm.c shard (20240520 version 1 or "
                          "20240801 version 7); a headerless one is "
                          "--data-format nanogpt",
                          path, header[0], header[1])));
    }
    header_bytes = kLlmcHeaderBytes;
    segment.width = known->width;
    segment.count = (data.size() - kLlmcHeaderBytes) / known->width;
    if (header[2] < 0 ||
        static_cast<uint64_t>(header[2]) * known->width != data.size() - kLlmcHeaderBytes) {
      return BadData(absl::DataLossError(absl::StrFormat(
          "%s: the header says %d tokens, the file holds %d", path, header[2], segment.count)));
    }
  }
  if (segment.count == 0)
    return BadData(absl::DataLossError(absl::StrCat(path, ": the shard holds no token")));
  segment.data = data.data() + header_bytes;
  width_max_ = std::max(width_max_, segment.width);
  tokens_ += segment.count;
  segments_.push_back(segment);
  maps_.push_back({.path = path, .file = std::move(map)});
  return absl::OkStatus();
}

std::vector<uint64_t> TokenSource::file_starts() const {
  std::vector<uint64_t> starts;
  starts.reserve(segments_.size());
  for (const Segment& segment : segments_) starts.push_back(segment.first);
  return starts;
}

absl::Status TokenSource::CheckWhole() const {
  for (const Map& map : maps_) {
    if (!map.file->cut()) continue;
    return BadData(absl::DataLossError(
        absl::StrCat(map.path, ": was cut while it was trained on; put the whole file back")));
  }
  return absl::OkStatus();
}

void TokenSource::Read(uint64_t first, uint64_t count, int64_t* out) const {
  SIGNVOTE_CHECK(first <= tokens_ && count <= tokens_ - first);
  auto segment = std::upper_bound(segments_.begin(), segments_.end(), first,
                                  [](uint64_t token, const Segment& s) { return token < s.first; });
  --segment;
  while (count > 0) {
    const uint64_t from = first - segment->first;
    const uint64_t here = std::min(count, segment->count - from);
    const std::byte* data =
        (segment->data != nullptr ? segment->data : pool_.data() + segment->offset) +
        from * segment->width;
    for (uint64_t i = 0; i < here; ++i) {
      uint32_t token = 0;
      std::memcpy(&token, data + i * segment->width, segment->width);
      out[i] = static_cast<int64_t>(token);
    }
    out += here;
    first += here;
    count -= here;
    ++segment;
  }
}

}  // namespace signvote
