#include "common/shard_index.h"

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/file_kind.h"
#include "common/json_text.h"
#include "common/text.h"

namespace signvote {
namespace {

using nlohmann::json;

constexpr char kWeightMap[] = "weight_map";
constexpr char kMetadata[] = "metadata";
constexpr char kTotalSize[] = "total_size";
constexpr size_t kNameBytesMax = 200;

absl::Status Damaged(const std::string& path, const std::string& what) {
  return WithExitCode(absl::DataLossError(path + ": " + what), ExitCode::kBadInput);
}

bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string::npos;
}

}  // namespace

absl::StatusOr<ShardIndex> ParseShardIndex(const std::string& path, std::string_view text) {
  if (const std::string kind = ForeignKind(text, GivenAs::kModel); !kind.empty())
    return WithExitCode(absl::InvalidArgumentError(path + ": " + kind), ExitCode::kBadInput);
  const auto not_one = [&path](const std::string& why) {
    return Damaged(path, "not an index of safetensors files: " + why);
  };
  if (const std::string fault = JsonObjectFault(text, RepeatedKeys::kRefused); !fault.empty())
    return not_one(fault);
  const json index = json::parse(text.begin(), text.end());  // whole, as was found above
  const auto map = index.find(kWeightMap);
  if (map == index.end() || !map->is_object() || map->empty())
    return not_one("it has no object \"weight_map\" of tensor and file names");
  ShardIndex out;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !IsPlainName(file.get_ref<const std::string&>())) {
      return Damaged(path, absl::StrCat("tensor \"", ForPeople(tensor, kNameBytesMax),
                                        "\" is not in a file beside the index"));
    }
    out.files.emplace(tensor, file.get<std::string>());
  }
  if (const auto metadata = index.find(kMetadata);
      metadata != index.end() && metadata->is_object()) {
    for (const auto& [key, value] : metadata->items())
      if (value.is_string()) out.metadata[key] = value.get<std::string>();
  }
  return out;
}

std::string ShardIndexText(const ShardIndex& index, uint64_t total_bytes) {
  json out;
  out[kMetadata] = index.metadata;
  out[kMetadata][kTotalSize] = total_bytes;
  out[kWeightMap] = index.files;
  return out.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace signvote
