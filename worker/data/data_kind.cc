#include "worker/data/data_kind.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/file_kind.h"
#include "common/status.h"

namespace signvote {
namespace {

using std::string_view_literals::operator""sv;

constexpr size_t kTextBytesLooked = 64 << 10;

constexpr std::string_view kUtf16Marks[] = {"\xff\xfe"sv, "\xfe\xff"sv};

absl::Status Refused(const std::string& path, const std::string& what_and_remedy) {
  return WithExitCode(absl::InvalidArgumentError(path + ": " + what_and_remedy),
                      ExitCode::kBadInput);
}

const LlmcFormat* FindLlmc(std::span<const std::byte> data) {
  int32_t words[2];
  if (data.size() < sizeof(words)) return nullptr;
  std::memcpy(words, data.data(), sizeof(words));
  for (const LlmcFormat& format : kLlmcFormats)
    if (words[0] == format.magic && words[1] == format.version) return &format;
  return nullptr;
}

absl::Status CheckText(const std::string& path, std::string_view head,
                       std::span<const std::byte> data) {
  for (const std::string_view mark : kUtf16Marks) {
    if (head.starts_with(mark)) {
      return Refused(path, "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)");
    }
  }
  if (FindLlmc(data) != nullptr) return Refused(path, "an llm.c shard; give --data-format llmc");
  // Letters of UTF-16 and small 16-bit tokens have every second byte zero alike; which of the two it
  // is its owner knows.
  const auto looked = data.first(std::min(data.size(), kTextBytesLooked));
  const auto zero = std::find(looked.begin(), looked.end(), std::byte{0});
  if (zero == looked.end()) return absl::OkStatus();
  return Refused(
      path, absl::StrCat("byte ", zero - looked.begin(),
                         " is zero, which none of a text is; give token shards with --data-format "
                         "nanogpt or llmc, convert UTF-16 to UTF-8 (iconv), take anything else out "
                         "of the folder"));
}

// Headerless files do not say how wide a token is. Of 32-bit tokens every other 16-bit word is the
// upper half: below 16 in any vocabulary of less than a million, and zero in those of 16 bits; the
// upper words of 64-bit ones are zero. No text of 16-bit tokens has only its first 16 tokens at every
// other place and others between them.
bool LooksWide(std::span<const std::byte> data) {
  constexpr size_t kTokensLooked = 1024;
  constexpr size_t kTokensMin = 16;
  constexpr uint16_t kUpperMax = 15;
  const size_t tokens = std::min(kTokensLooked, data.size() / 4);
  if (tokens < kTokensMin) return false;
  uint16_t lower_max = 0, upper_max = 0;
  for (size_t i = 0; i < tokens; ++i) {
    uint16_t words[2];
    std::memcpy(words, data.data() + 4 * i, sizeof(words));
    lower_max = std::max(lower_max, words[0]);
    upper_max = std::max(upper_max, words[1]);
  }
  return upper_max == 0 ? lower_max > 0 : upper_max <= kUpperMax && lower_max > kUpperMax;
}

absl::Status CheckHeaderless(const std::string& path, std::span<const std::byte> data) {
  if (data.size() >= kLlmcHeaderBytes && FindLlmc(data) != nullptr)
    return Refused(path, "an llm.c shard with a header; give --data-format llmc");
  if (LooksWide(data)) {
    return Refused(
        path,
        "every second 16-bit token is below 16: these seem to be 32-bit tokens, or wider; write "
        "them as uint16, or as llm.c's version 7 (--data-format llmc)");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckDataKind(const std::string& path, std::span<const std::byte> data,
                           DataFormat format) {
  const std::string_view head(reinterpret_cast<const char*>(data.data()),
                              std::min(data.size(), kFileKindBytes));
  if (const std::string kind = ForeignKind(head, GivenAs::kData); !kind.empty())
    return Refused(path, kind);
  if (format == DataFormat::kText) return CheckText(path, head, data);
  if (format == DataFormat::kNanoGpt) return CheckHeaderless(path, data);
  return absl::OkStatus();
}

}  // namespace signvote
