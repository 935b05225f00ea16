#include "worker/data/token_source.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr uint64_t kMapBytesMin = 1 << 20;  // smaller text files are copied
constexpr double kHeldOutFraction = 0.05;
constexpr size_t kLlmcHeaderBytes = 256 * 4;  // github.com/karpathy/llm.c, dev/data/data_common.py

struct LlmcFormat {
  int32_t magic, version;
  uint32_t width;
};
constexpr LlmcFormat kLlmcFormats[] = {{20240520, 1, 2}, {20240801, 7, 4}};

absl::Status BadData(absl::Status status) {
  return WithExitCode(std::move(status), ExitCode::kBadInput);
}

std::string_view FileName(std::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

// "fineweb_val_000000.bin", "validation.bin"; not "interval_003.bin".
bool IsHeldOutShard(const std::string& path) {
  const std::string_view name = FileName(path);
  size_t begin = 0;
  while (begin < name.size()) {
    size_t end = begin;
    while (end < name.size() && absl::ascii_isalpha(static_cast<unsigned char>(name[end]))) ++end;
    const std::string_view word = name.substr(begin, end - begin);
    if (word == "val" || word == "validation") return true;
    begin = end + 1;
  }
  return false;
}

// Files that are neither text nor shards, by their first bytes: read as such they would train on
// noise without a word.
struct ForeignKind {
  std::string_view magic;
  const char* what;
  const char* remedy;
};
constexpr ForeignKind kForeignKinds[] = {
    {"\x1f\x8b", "a gzip file", "unpack it first"},
    {"PK\x03\x04", "a zip file", "unpack it first"},
    {"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first"},
    {"\xfd"
     "7zXZ",
     "an xz file", "unpack it first"},
    {"BZh", "a bzip2 file", "unpack it first"},
    {"\x93NUMPY", "a NumPy array", "write its numbers alone, as uint16 (ndarray.tofile)"},
    {"PAR1", "a Parquet file", "write its text or its tokens to a file of their own"},
    {"\x89PNG\r\n", "a picture", "give text or tokens"},
    {"\xff\xd8\xff", "a picture", "give text or tokens"},
    {"%PDF-", "a PDF file", "write its text to a file of its own"},
    {"\x7f"
     "ELF",
     "a program", "give text or tokens"},
    {"GGUF", "a GGUF file", "give text or tokens"},
};
constexpr std::string_view kUtf16Marks[] = {"\xff\xfe", "\xfe\xff"};

absl::Status RefuseForeignKinds(const std::string& path, std::span<const std::byte> data,
                                DataFormat format) {
  const std::string_view head(reinterpret_cast<const char*>(data.data()),
                              std::min<size_t>(data.size(), 16));
  for (const ForeignKind& kind : kForeignKinds) {
    if (!head.starts_with(kind.magic)) continue;
    return BadData(
        absl::InvalidArgumentError(absl::StrCat(path, ": ", kind.what, "; ", kind.remedy)));
  }
  if (format != DataFormat::kText) return absl::OkStatus();
  for (const std::string_view mark : kUtf16Marks) {
    if (head.starts_with(mark)) {
      return BadData(absl::InvalidArgumentError(
          absl::StrCat(path, ": UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")));
    }
  }
  return absl::OkStatus();
}

// Headerless files do not say how wide a token is. Of 32-bit tokens below 65,536 every other 16-bit
// word is zero, which no text is.
bool LooksLikeWideTokens(std::span<const std::byte> data) {
  constexpr size_t kTokensLooked = 1024;
  constexpr size_t kTokensMin = 16;
  const size_t tokens = std::min(kTokensLooked, data.size() / 4);
  if (tokens < kTokensMin) return false;
  bool low_word_seen = false;
  for (size_t i = 0; i < tokens; ++i) {
    uint16_t words[2];
    std::memcpy(words, data.data() + 4 * i, sizeof(words));
    if (words[1] != 0) return false;
    low_word_seen = low_word_seen || words[0] != 0;
  }
  return low_word_seen;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenSource>> TokenSource::Open(FileSystem* fs,
                                                               const std::string& path,
                                                               DataFormat format) {
  SIGNVOTE_CHECK(format != DataFormat::kSynthetic);
  const bool text = format == DataFormat::kText;
  SIGNVOTE_ASSIGN_OR_RETURN(const bool folder, fs->IsDirectory(path));
  std::vector<std::string> files = {path};
  if (folder) {
    SIGNVOTE_ASSIGN_OR_RETURN(files, fs->ListFiles(path));
    if (!text) {
      std::erase_if(files, [](const std::string& file) { return !file.ends_with(".bin"); });
      std::stable_partition(files.begin(), files.end(),
                            [](const std::string& file) { return !IsHeldOutShard(file); });
    }
    if (files.empty()) {
      return BadData(absl::InvalidArgumentError(
          absl::StrCat("--data ", path, ": the folder holds no ", text ? "file" : ".bin file")));
    }
  }
  auto source = std::make_unique<TokenSource>();
  uint64_t shards_train_tokens = 0;
  for (const std::string& file : files) {
    SIGNVOTE_RETURN_IF_ERROR(text ? source->AddText(fs, file) : source->AddShard(fs, file, format));
    if (!IsHeldOutShard(file)) shards_train_tokens = source->tokens_;
  }
  const uint64_t held_out =
      static_cast<uint64_t>(static_cast<double>(source->tokens_) * kHeldOutFraction);
  const bool has_val_shards =
      !text && shards_train_tokens > 0 && shards_train_tokens < source->tokens_;
  source->train_tokens_ = has_val_shards ? shards_train_tokens : source->tokens_ - held_out;
  return source;
}

absl::Status TokenSource::AddText(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const uint64_t bytes, fs->FileSize(path));
  if (bytes == 0) return absl::OkStatus();
  Segment segment;
  segment.first = tokens_;
  if (bytes >= kMapBytesMin) {
    SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> map, fs->Map(path));
    SIGNVOTE_RETURN_IF_ERROR(RefuseForeignKinds(path, map->data(), DataFormat::kText));
    segment.data = map->data().data();
    segment.count = map->data().size();
    maps_.push_back({.path = path, .file = std::move(map)});
  } else {
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, fs->ReadFile(path, kMapBytesMin));
    segment.offset = pool_.size();
    segment.count = text.size();
    const auto* data = reinterpret_cast<const std::byte*>(text.data());
    SIGNVOTE_RETURN_IF_ERROR(
        RefuseForeignKinds(path, std::span(data, text.size()), DataFormat::kText));
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
  SIGNVOTE_RETURN_IF_ERROR(RefuseForeignKinds(path, data, format));
  Segment segment;
  segment.first = tokens_;
  size_t header_bytes = 0;
  if (format == DataFormat::kNanoGpt) {
    segment.width = 2;
    if (data.size() >= kLlmcHeaderBytes) {
      int32_t magic;
      std::memcpy(&magic, data.data(), sizeof(magic));
      for (const LlmcFormat& llmc : kLlmcFormats) {
        if (magic == llmc.magic) {
          return BadData(absl::InvalidArgumentError(
              absl::StrCat(path, ": an llm.c shard with a header; give --data-format llmc")));
        }
      }
    }
    if (LooksLikeWideTokens(data)) {
      return BadData(absl::InvalidArgumentError(absl::StrCat(
          path,
          ": every second 16-bit token is 0: these seem to be 32-bit tokens; write them as "
          "uint16, or as llm.c's version 7 (--data-format llmc)")));
    }
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
