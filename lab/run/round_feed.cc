#include "lab/run/round_feed.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

namespace signvote::lab {

RoundFeed::RoundFeed(FileSystem* fs, std::string path) : fs_(fs), path_(std::move(path)) {}

bool RoundFeed::Read() {
  const absl::StatusOr<uint64_t> size = fs_->FileSize(path_);
  if (!size.ok() || *size <= offset_) return false;
  const auto file = fs_->Map(path_);
  if (!file.ok()) return false;
  const auto bytes = (*file)->data();
  if (bytes.size() <= offset_) return false;
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()) + offset_,
                        bytes.size() - offset_);
  bool more = false;
  for (size_t end; (end = rest.find('\n')) != std::string_view::npos; rest.remove_prefix(end + 1)) {
    const auto line =
        nlohmann::json::parse(rest.substr(0, end), nullptr, /*allow_exceptions=*/false);
    offset_ += end + 1;
    if (!line.is_object()) continue;
    const auto round = line.find("round");
    if (round == line.end() || !round->is_number_unsigned()) continue;
    rounds_ = std::max(rounds_, round->get<uint64_t>() + 1);
    more = true;
    const auto voters = line.find("voters");
    if (voters == line.end() || !voters->is_array()) continue;
    const auto steps = line.find("local_steps");
    const bool local = steps != line.end() && steps->is_number_unsigned();
    minibatches_ += voters->size() * (local ? steps->get<uint64_t>() : 1);
  }
  return more;
}

}  // namespace signvote::lab
