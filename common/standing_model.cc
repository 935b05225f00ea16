#include "common/standing_model.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "common/safetensors.h"
#include "common/shard_index.h"
#include "common/status.h"

namespace signvote {
namespace {

// Names that are tried. Beyond kEarlierRunsMax they are for models of no run, which people put there.
constexpr int kEarlierNames = 16;

using Metadata = std::map<std::string, std::string>;

// As it says of itself.
struct Standing {
  std::string run;      // "": of none
  uint64_t rounds = 0;  // commits that it holds
};

std::string ValueOf(const Metadata& metadata, const char* key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? "" : found->second;
}

Standing Of(const Metadata& metadata) {
  Standing model{.run = ValueOf(metadata, "signvote.run_id")};
  if (!absl::SimpleAtoi(ValueOf(metadata, "signvote.round"), &model.rounds)) model.rounds = 0;
  return model;
}

// nullopt: there is nothing that could be lost.
std::optional<Standing> WholeAt(FileSystem* fs, const std::string& path) {
  const absl::StatusOr<uint64_t> bytes = fs->FileSize(path);
  if (absl::IsNotFound(bytes.status()) || (bytes.ok() && *bytes == 0)) return std::nullopt;
  const absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(fs, path);
  return file.ok() ? Of((*file)->metadata()) : Standing{};
}

bool IsFree(FileSystem* fs, const std::string& path) {
  return absl::IsNotFound(fs->FileSize(path).status()) &&
         absl::IsNotFound(fs->FileSize(ShardIndexPath(path)).status());
}

Standing KeptAt(FileSystem* fs, const std::string& path) {
  if (const std::optional<Standing> whole = WholeAt(fs, path)) return *whole;
  return Of(ReadStandingIndex(fs, path).metadata);
}

// A model that is kept, file and index as far as it has them.
absl::Status Rename(FileSystem* fs, const std::string& from, const std::string& to) {
  for (const std::string& suffix : {std::string(), std::string(kShardIndexSuffix)}) {
    const absl::Status called = fs->AlsoCall(from + suffix, to + suffix);
    if (absl::IsNotFound(called)) continue;
    SIGNVOTE_RETURN_IF_ERROR(called);
    // Not there any more on a file system without second names.
    if (const absl::Status removed = fs->Remove(from + suffix);
        !removed.ok() && !absl::IsNotFound(removed)) {
      return removed;
    }
  }
  return absl::OkStatus();
}

struct Kept {
  std::string name;
  uint64_t rounds = 0;
};

// One of `runs`, the oldest first, or the newest, which is not among them yet, goes: the one of the fewest
// rounds, of equals the oldest. The name that is free then, behind all others; nullopt: the newest goes.
absl::StatusOr<std::optional<std::string>> MakeRoom(FileSystem* fs, const std::vector<Kept>& runs,
                                                    const std::string& path, uint64_t rounds) {
  const auto least = std::min_element(
      runs.begin(), runs.end(), [](const Kept& a, const Kept& b) { return a.rounds < b.rounds; });
  const bool newest_goes = rounds < least->rounds;
  LogWarning("of the models of earlier runs the one of the fewest rounds goes",
             {{"path", newest_goes ? path : least->name},
              {"rounds", newest_goes ? rounds : least->rounds}});
  if (newest_goes) return std::optional<std::string>();
  SIGNVOTE_RETURN_IF_ERROR(RemoveModel(fs, least->name));
  for (auto next = least + 1; next != runs.end(); ++next)
    SIGNVOTE_RETURN_IF_ERROR(Rename(fs, next->name, (next - 1)->name));
  return std::optional(runs.back().name);
}

// Keeps `model`, which stands at path + suffix. False: of all that are kept it has the fewest rounds, and
// goes.
absl::StatusOr<bool> Keep(FileSystem* fs, const std::string& path, const std::string& suffix,
                          const Standing& model) {
  std::optional<std::string> any, behind;  // that are free: the first, the first behind all of runs
  std::vector<Kept> runs;                  // the oldest first
  for (int n = 1; n <= kEarlierNames; ++n) {
    const std::string at = AddToName(path, absl::StrCat(".earlier-", n));
    if (IsFree(fs, at)) {
      if (!any.has_value()) any = at;
      if (!behind.has_value()) behind = at;
      continue;
    }
    // By an attempt that failed behind this.
    if (fs->IsSameFile(path + suffix, at + suffix)) return true;
    const Standing kept = KeptAt(fs, at);
    if (kept.run.empty()) continue;
    runs.push_back({.name = at, .rounds = kept.rounds});
    behind.reset();
  }
  std::optional<std::string> name = behind.has_value() ? behind : any;
  if (!model.run.empty() && runs.size() >= kEarlierRunsMax) {
    SIGNVOTE_ASSIGN_OR_RETURN(name, MakeRoom(fs, runs, path, model.rounds));
    if (!name.has_value()) return false;
  }
  if (!name.has_value()) {
    return WithExitCode(
        absl::FailedPreconditionError(absl::StrCat(
            path, " is of another run or of none and would be replaced, and every name from ",
            AddToName(path, ".earlier-1"), " on is taken; move it away")),
        ExitCode::kBadInput);
  }
  SIGNVOTE_RETURN_IF_ERROR(fs->AlsoCall(path + suffix, *name + suffix));
  LogWarning("what stood under the model's name is not of this run and is kept beside it",
             {{"path", path + suffix},
              {"kept_as", *name + suffix},
              {"run", model.run.empty() ? "none" : model.run},
              {"rounds", model.rounds}});
  return true;
}

}  // namespace

std::string ShardIndexPath(const std::string& path) {
  return path + std::string(kShardIndexSuffix);
}

StandingIndex ReadStandingIndex(FileSystem* fs, const std::string& path) {
  const std::string index_path = ShardIndexPath(path);
  const absl::StatusOr<std::string> text = fs->ReadFile(index_path, kShardIndexBytesMax);
  if (absl::IsNotFound(text.status())) return {};
  StandingIndex standing{.there = true, .ours = false, .files = {}, .metadata = {}};
  if (!text.ok()) return standing;
  absl::StatusOr<ShardIndex> index = ParseShardIndex(index_path, *text);
  if (!index.ok() || !index->metadata.contains(kIndexMark)) return standing;
  standing.ours = true;
  for (const auto& [tensor, file] : index->files) standing.files.insert(file);
  standing.metadata = std::move(index->metadata);
  return standing;
}

absl::Status ForeignIndex(const std::string& path) {
  return WithExitCode(
      absl::FailedPreconditionError(absl::StrCat(
          ShardIndexPath(path),
          " is there, and signvote did not write it; it is left as it is: give another folder, or "
          "move it and its shards away")),
      ExitCode::kBadInput);
}

absl::Status RequireOwnIndex(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string target, fs->FollowLinks(path));
  const StandingIndex standing = ReadStandingIndex(fs, target);
  return standing.there && !standing.ours ? ForeignIndex(target) : absl::OkStatus();
}

absl::Status RemoveModel(FileSystem* fs, const std::string& path) {
  const StandingIndex standing = ReadStandingIndex(fs, path);
  absl::Status removed = fs->Remove(path);
  if (!standing.ours) return removed;
  if (absl::IsNotFound(removed)) removed = absl::OkStatus();
  removed.Update(fs->Remove(ShardIndexPath(path)));
  for (const std::string& file : standing.files)
    removed.Update(fs->Remove(FolderPrefix(path) + file));
  return removed;
}

absl::StatusOr<KeptEarlier> KeepEarlierModels(FileSystem* fs, const std::string& path,
                                              const Metadata& metadata) {
  const std::string run = Of(metadata).run;
  if (const std::optional<Standing> whole = WholeAt(fs, path);
      whole.has_value() && whole->run != run)
    SIGNVOTE_RETURN_IF_ERROR(Keep(fs, path, "", *whole).status());
  KeptEarlier kept;
  if (const StandingIndex index = ReadStandingIndex(fs, path); index.ours) {
    if (const Standing model = Of(index.metadata); model.run != run) {
      SIGNVOTE_ASSIGN_OR_RETURN(kept.index_kept,
                                Keep(fs, path, std::string(kShardIndexSuffix), model));
    }
  }
  return kept;
}

}  // namespace signvote
