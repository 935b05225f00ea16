#include "common/checkpoint.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/shard_index.h"
#include "common/status.h"

namespace signvote {
namespace {

using nlohmann::json;

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kJsonSuffix[] = ".json";
constexpr const char* kPickles[] = {"pytorch_model.bin", "pytorch_model.bin.index.json"};
constexpr char kHead[] = "lm_head.weight";
constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kInverseFrequencies[] = ".rotary_emb.inv_freq";
// Coordinates between two questions whether to give up: a few milliseconds, also from a slow disk.
constexpr uint64_t kAskEvery = uint64_t{1} << 20;

absl::Status Damaged(const std::string& path, const std::string& what) {
  return WithExitCode(absl::DataLossError(path + ": " + what), ExitCode::kBadInput);
}

absl::Status Unfit(const std::string& what) {
  return WithExitCode(absl::InvalidArgumentError(what), ExitCode::kBadInput);
}

std::string Quoted(std::string_view text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

bool IsFile(FileSystem* fs, const std::string& path) { return fs->FileSize(path).ok(); }

// The file or the index that is meant.
absl::StatusOr<std::string> FindModel(FileSystem* fs, const std::string& path) {
  const absl::StatusOr<bool> folder = fs->IsDirectory(path);
  if (!folder.ok() || !*folder) {
    const std::string index = path + std::string(kShardIndexSuffix);
    return absl::IsNotFound(folder.status()) && IsFile(fs, index) ? index : path;
  }
  const std::string prefix = absl::StrCat(path, absl::EndsWith(path, "/") ? "" : "/");
  for (const char* const name : {kSingle, kIndex})
    if (IsFile(fs, prefix + name)) return prefix + name;
  std::string what = absl::StrCat(path, ": the folder has neither ", kSingle, " nor ", kIndex);
  for (const char* const name : kPickles) {
    if (!IsFile(fs, prefix + name)) continue;
    absl::StrAppend(&what, "; it has ", name, ", a PyTorch pickle: convert it to safetensors");
    break;
  }
  return WithExitCode(absl::NotFoundError(what), ExitCode::kBadInput);
}

// Whether the numbers are the same, bit for bit once widened.
bool Equal(const SafetensorsFile::Tensor& a, const SafetensorsFile::Tensor& b) {
  if (a.shape != b.shape) return false;
  if (a.dtype == b.dtype) return std::memcmp(a.data.data(), b.data.data(), a.data.size()) == 0;
  for (uint64_t i = 0; i < a.count(); ++i)
    if (std::bit_cast<uint32_t>(a.At(i)) != std::bit_cast<uint32_t>(b.At(i))) return false;
  return true;
}

bool Has(const Layout& layout, std::string_view name) {
  for (const TensorSpec& spec : layout.tensors())
    if (spec.name == name) return true;
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(FileSystem* fs,
                                                             const std::string& path) {
  auto checkpoint = std::make_unique<Checkpoint>();
  SIGNVOTE_ASSIGN_OR_RETURN(checkpoint->path_, FindModel(fs, path));
  const std::string& file = checkpoint->path_;
  checkpoint->config_path_ = FolderPrefix(file) + "config.json";
  if (absl::EndsWith(file, kJsonSuffix)) {
    SIGNVOTE_RETURN_IF_ERROR(checkpoint->ReadIndex(fs));
    checkpoint->CompareHead();
    return checkpoint;
  }
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> single,
                            SafetensorsFile::Open(fs, file));
  checkpoint->metadata_ = single->metadata();
  for (const SafetensorsFile::Tensor& tensor : single->tensors())
    checkpoint->tensors_.push_back({&tensor, single.get()});
  checkpoint->files_.push_back(std::move(single));
  checkpoint->CompareHead();
  return checkpoint;
}

void Checkpoint::CompareHead() {
  const SafetensorsFile::Tensor* head = nullptr;
  const SafetensorsFile::Tensor* embedding = nullptr;
  for (const Found& found : tensors_) {
    if (found.tensor->name == kHead) head = found.tensor;
    if (found.tensor->name == kEmbedding) embedding = found.tensor;
  }
  head_is_embedding_ = head != nullptr && embedding != nullptr && Equal(*head, *embedding);
}

absl::Status Checkpoint::ReadIndex(FileSystem* fs) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, fs->ReadFile(path_, kShardIndexBytesMax));
  SIGNVOTE_ASSIGN_OR_RETURN(ShardIndex index, ParseShardIndex(path_, text));
  metadata_ = std::move(index.metadata);
  std::map<std::string, const SafetensorsFile*> by_file;
  for (const auto& [tensor, name] : index.files) {
    const SafetensorsFile*& opened = by_file[name];
    if (opened != nullptr) continue;
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> shard =
        SafetensorsFile::Open(fs, FolderPrefix(path_) + name);
    if (!shard.ok()) {
      return WithContext(shard.status(),
                         absl::StrCat(path_, ": where tensor ", Quoted(tensor), " is to lie"));
    }
    opened = shard->get();
    files_.push_back(*std::move(shard));
  }
  absl::flat_hash_set<std::string> there;
  for (const auto& [name, file] : by_file) {
    for (const SafetensorsFile::Tensor& tensor : file->tensors()) {
      const auto it = index.files.find(tensor.name);
      if (it == index.files.end() || it->second != name) {
        return Damaged(path_, absl::StrCat("tensor ", Quoted(tensor.name), " lies in ", name,
                                           ", where the index does not have it"));
      }
      tensors_.push_back({&tensor, file});
      there.insert(tensor.name);
    }
  }
  for (const auto& [tensor, name] : index.files) {
    if (!there.contains(tensor)) {
      return Damaged(path_, absl::StrCat("tensor ", Quoted(tensor), " is not in ", name,
                                         ", where the index has it"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint::Found> Checkpoint::Find(const ByName& by_name, const Layout& layout,
                                                   const TensorSpec& spec) const {
  auto it = by_name.find(spec.name);
  if (it == by_name.end() && spec.name == kEmbedding && !Has(layout, kHead))
    it = by_name.find(kHead);
  if (it == by_name.end()) {
    const bool head_is_tied = spec.name == kHead && by_name.contains(kEmbedding);
    return Unfit(absl::StrCat(
        path_, " has no tensor ", Quoted(spec.name),
        head_is_tied ? "; if its head is tied, set \"tie_word_embeddings\" to true in the "
                       "workers' config.json"
                     : ""));
  }
  if (it->second.tensor->shape != spec.shape) {
    return Unfit(absl::StrCat(
        "tensor ", Quoted(it->first), " has shape ", json(it->second.tensor->shape).dump(), " in ",
        it->second.file->path(), ", the model wants ", json(spec.shape).dump()));
  }
  return it->second;
}

absl::Status Checkpoint::CheckLeftOut(const ByName& by_name, const Found& found) const {
  const SafetensorsFile::Tensor& tensor = *found.tensor;
  if (absl::EndsWith(tensor.name, kInverseFrequencies)) return absl::OkStatus();
  if (tensor.name != kHead || !by_name.contains(kEmbedding)) {
    return Unfit(absl::StrCat(found.file->path(), " has the tensor ", Quoted(tensor.name),
                              ", which the model does not have"));
  }
  if (head_is_embedding_) return absl::OkStatus();
  return Unfit(absl::StrCat(found.file->path(), " has a ", kHead, " that differs from ", kEmbedding,
                            ", but the model's head is tied; set \"tie_word_embeddings\" to "
                            "false in its config.json"));
}

absl::StatusOr<std::vector<const SafetensorsFile::Tensor*>> Checkpoint::Sources(
    const Layout& layout) const {
  ByName by_name;
  for (const Found& found : tensors_) by_name[found.tensor->name] = found;
  absl::flat_hash_set<const SafetensorsFile::Tensor*> taken;
  std::vector<const SafetensorsFile::Tensor*> sources;
  for (const TensorSpec& spec : layout.tensors()) {
    SIGNVOTE_ASSIGN_OR_RETURN(const Found found, Find(by_name, layout, spec));
    sources.push_back(found.tensor);
    taken.insert(found.tensor);
  }
  for (const Found& found : tensors_) {
    if (!taken.contains(found.tensor)) SIGNVOTE_RETURN_IF_ERROR(CheckLeftOut(by_name, found));
  }
  return sources;
}

absl::Status Checkpoint::CheckFits(const Layout& layout) const { return Sources(layout).status(); }

absl::Status Checkpoint::CopyInto(const Layout& layout, std::span<float> x,
                                  const GiveUp& give_up) const {
  SIGNVOTE_CHECK(x.size() == layout.coordinates());
  SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<const SafetensorsFile::Tensor*> sources,
                            Sources(layout));
  for (size_t k = 0; k < sources.size(); ++k) {
    const TensorSpec& spec = layout.tensors()[k];
    for (uint64_t first = 0; first < spec.count; first += kAskEvery) {
      if (give_up && give_up()) return absl::CancelledError("reading the model was given up");
      const uint64_t count = std::min(kAskEvery, spec.count - first);
      sources[k]->WidenInto(first, x.subspan(spec.first + first, count));
    }
  }
  for (const std::unique_ptr<SafetensorsFile>& file : files_)
    SIGNVOTE_RETURN_IF_ERROR(file->CheckWhole());
  return absl::OkStatus();
}

absl::Status Checkpoint::RequireFinite(const GiveUp& give_up) const {
  for (const std::unique_ptr<SafetensorsFile>& file : files_)
    SIGNVOTE_RETURN_IF_ERROR(file->RequireFinite(give_up));
  return absl::OkStatus();
}

}  // namespace signvote
