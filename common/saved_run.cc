#include "common/saved_run.h"

#include <initializer_list>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/checksum.h"
#include "common/file_system.h"
#include "common/status.h"

namespace signvote {
namespace {

constexpr char kHead[] = "signvote.run_head";
constexpr char kAfter[] = "signvote.run_state";
constexpr char kX0[] = "signvote.x0";
constexpr char kX0Digest[] = "signvote.x0_digest";
constexpr char kChecksum[] = "signvote.run_checksum";
constexpr char kRunId[] = "signvote.run_id";
constexpr char kRound[] = "signvote.round";

std::string Hex(uint64_t value) { return absl::StrFormat("%016x", value); }

// "" where there is no such key.
std::string At(const std::map<std::string, std::string>& metadata, const char* key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : found->second;
}

// Of every key that a server goes on from, so that no two files are mixed up.
std::string ChecksumOf(const std::map<std::string, std::string>& metadata) {
  std::string all;
  for (const char* key : {kRunId, kRound, kDigestKey, kHead, kAfter, kX0, kX0Digest})
    absl::StrAppend(&all, At(metadata, key), "\n");
  return Hex(Xxh3(all.data(), all.size()));
}

}  // namespace

void AddSavedRun(const SavedRun& run, std::map<std::string, std::string>* metadata) {
  (*metadata)[kDigestKey] = Hex(run.digest);
  (*metadata)[kHead] = absl::Base64Escape(run.head);
  (*metadata)[kAfter] = absl::Base64Escape(run.after);
  if (run.x0.has_value()) {
    (*metadata)[kX0] = run.x0->file;
    (*metadata)[kX0Digest] = Hex(run.x0->digest);
  }
  (*metadata)[kChecksum] = ChecksumOf(*metadata);
}

absl::StatusOr<std::optional<SavedRun>> SavedRunOf(
    const std::map<std::string, std::string>& metadata) {
  if (!metadata.contains(kHead) && !metadata.contains(kAfter)) return std::optional<SavedRun>();
  const auto damaged = [] {
    return absl::DataLossError("what its metadata say of the run is damaged");
  };
  if (At(metadata, kChecksum) != ChecksumOf(metadata)) return damaged();
  SavedRun run;
  uint64_t round = 0;
  const absl::StatusOr<RunId> run_id = RunId::FromText(At(metadata, kRunId));
  if (!run_id.ok() || !absl::SimpleAtoi(At(metadata, kRound), &round) ||
      !absl::SimpleHexAtoi(At(metadata, kDigestKey), &run.digest) ||
      !absl::Base64Unescape(At(metadata, kHead), &run.head) ||
      !absl::Base64Unescape(At(metadata, kAfter), &run.after)) {
    return damaged();
  }
  run.run_id = *run_id;
  run.round = Round(round);
  if (metadata.contains(kX0)) {
    run.x0.emplace();
    run.x0->file = At(metadata, kX0);
    // A name in the file's own folder, and no way out of it.
    const bool plain = !run.x0->file.empty() && !absl::StrContains(run.x0->file, '/');
    if (!plain || !absl::SimpleHexAtoi(At(metadata, kX0Digest), &run.x0->digest)) return damaged();
  }
  return std::optional<SavedRun>(std::move(run));
}

std::string X0PathOf(const std::string& path) { return AddToName(path, ".x0"); }

}  // namespace signvote
