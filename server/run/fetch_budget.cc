#include "server/run/fetch_budget.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "absl/strings/str_cat.h"

namespace signvote::run {
namespace {

// What `names` names have together.
RateLimit::Budget Together(const FetchBudget::Options& options, uint64_t names) {
  constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();
  return {.burst = static_cast<uint32_t>(std::min(kMost, options.burst * names)),
          .refill = std::max(Duration(1), options.refill / static_cast<int64_t>(names))};
}

absl::Status Spent(const std::string& whose, Duration wait) {
  return absl::ResourceExhaustedError(
      absl::StrCat(whose, " has fetched the state too often; try again in ",
                   std::chrono::ceil<std::chrono::seconds>(wait).count(), " s"));
}

}  // namespace

FetchBudget::FetchBudget(const Options& options, uint32_t workers_max)
    : names_({.each = Together(options, 1), .all = std::nullopt}),
      hosts_({.each = Together(options, std::max<uint32_t>(1, workers_max)), .all = std::nullopt}) {
}

absl::Status FetchBudget::Take(const std::string& name, const std::string& host, Time now) {
  // Looked at before anything is taken: who is refused for one spends nothing of the other.
  if (const Duration wait = names_.Wait(name, now); wait > Duration::zero()) {
    return Spent(absl::StrCat("worker '", name, "'"), wait);
  }
  if (const Duration wait = hosts_.Wait(host, now); wait > Duration::zero()) {
    return Spent(absl::StrCat("this worker's host (", host, ")"), wait);
  }
  (void)names_.Take(name, now);  // there is one left, as Wait() said, here and below
  (void)hosts_.Take(host, now);
  return absl::OkStatus();
}

}  // namespace signvote::run
