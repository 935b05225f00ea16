#include "worker/data/held_out_windows.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr std::string_view kMagic = "signvote-windows-1";
constexpr uint64_t kRowsAtOnce = 64;

}  // namespace

HeldOutWindows::HeldOutWindows(uint64_t tokens, uint64_t length, uint64_t targets)
    : length_(length) {
  SIGNVOTE_CHECK(length > 0 && tokens > length);
  whole_ = (tokens - 1) / length;
  count_ = std::clamp<uint64_t>(targets / length, 1, whole_);
}

uint64_t HeldOutWindows::First(uint64_t k) const {
  SIGNVOTE_CHECK(k < count_);
  // floor(k · whole / count) without a product that could overflow.
  const uint64_t window = k * (whole_ / count_) + k * (whole_ % count_) / count_;
  return window * length_;
}

HeldOutHash::HeldOutHash(uint64_t windows, uint64_t length) {
  const uint64_t sizes[] = {windows, length};
  hash_.Update(kMagic.data(), kMagic.size());
  hash_.Update(sizes, sizeof(sizes));
}

void HeldOutHash::Add(const Batch& rows) {
  const uint64_t inputs = rows.length, features = rows.values.size() / rows.rows;
  std::vector<uint32_t> tokens;
  for (uint64_t row = 0; row < rows.rows; ++row) {
    hash_.Update(rows.values.data() + row * features, features * sizeof(rows.values[0]));
    // A window's last target is its last token; a sample's only target is its class.
    const uint64_t targets = std::max<uint64_t>(1, inputs);
    tokens.clear();
    for (uint64_t i = 0; i < inputs; ++i)
      tokens.push_back(static_cast<uint32_t>(rows.inputs[row * inputs + i]));
    tokens.push_back(static_cast<uint32_t>(rows.targets[(row + 1) * targets - 1]));
    hash_.Update(tokens.data(), tokens.size() * sizeof(tokens[0]));
  }
}

absl::StatusOr<uint64_t> HashOfHeldOut(const Dataset& dataset) {
  const uint64_t windows = dataset.held_out_windows();
  SIGNVOTE_CHECK(windows > 0);
  Batch rows;
  SIGNVOTE_RETURN_IF_ERROR(dataset.HeldOut(0, 1, &rows));
  HeldOutHash hash(windows, rows.length);
  for (uint64_t first = 0; first < windows; first += kRowsAtOnce) {
    SIGNVOTE_RETURN_IF_ERROR(dataset.HeldOut(first, std::min(kRowsAtOnce, windows - first), &rows));
    hash.Add(rows);
  }
  return hash.Digest();
}

}  // namespace signvote
