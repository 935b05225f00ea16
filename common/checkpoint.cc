#include "common/checkpoint.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {
namespace {

using nlohmann::json;

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kIndexSuffix[] = ".index.json";
constexpr char kHead[] = "lm_head.weight";
constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kInverseFrequencies[] = ".rotary_emb.inv_freq";
// Coordinates between two questions whether to give up: a few milliseconds, also from a slow disk.
constexpr uint64_t kAskEvery = uint64_t{1} << 20;
constexpr uint64_t kIndexBytesMax = uint64_t{64} << 20;

absl::Status Damaged(const std::string& path, const std::string& what) {
  return WithExitCode(absl::DataLossError(path + ": " + what), ExitCode::kBadInput);
}

absl::Status Unfit(const std::string& what) {
  return WithExitCode(absl::InvalidArgumentError(what), ExitCode::kBadInput);
}

std::string Quoted(std::string_view text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

// What people download by mistake in a model's place, by its first bytes.
absl::Status RefuseOtherKinds(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> map, fs->Map(path));
  const absl::string_view head(reinterpret_cast<const char*>(map->data().data()),
                               std::min<size_t>(map->data().size(), 64));
  if (absl::StartsWith(head, "version https://git-lfs")) {
    return Unfit(path + ": a Git LFS pointer, not the model itself; run 'git lfs pull' there");
  }
  if (absl::StartsWithIgnoreCase(head, "<!doctype") || absl::StartsWithIgnoreCase(head, "<html")) {
    return Unfit(path + ": a web page, not a model; download the file itself");
  }
  if (absl::StartsWith(head, absl::string_view("PK\x03\x04", 4)) ||
      absl::StartsWith(head, absl::string_view("\x80\x02", 2))) {
    return Unfit(path + ": a PyTorch pickle; convert it to safetensors");
  }
  if (absl::StartsWith(head, "GGUF")) {
    return Unfit(path + ": a GGUF file; give the safetensors files that it was made of");
  }
  return absl::OkStatus();
}

// A name in an index is that of a file beside it, and of nothing else.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string::npos;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(FileSystem* fs,
                                                             const std::string& path) {
  auto checkpoint = std::make_unique<Checkpoint>();
  std::string file = path;
  const absl::StatusOr<bool> folder = fs->IsDirectory(path);
  if (folder.ok() && *folder) {
    const std::string prefix = absl::StrCat(path, absl::EndsWith(path, "/") ? "" : "/");
    file = prefix + kIndex;
    if (!fs->FileSize(file).ok()) file = prefix + kSingle;
    if (!fs->FileSize(file).ok()) {
      return WithExitCode(absl::NotFoundError(absl::StrCat(path, ": the folder has neither ",
                                                           kSingle, " nor ", kIndex)),
                          ExitCode::kBadInput);
    }
  }
  checkpoint->config_path_ = FolderOf(file) + "config.json";
  if (absl::EndsWith(file, kIndexSuffix)) {
    SIGNVOTE_RETURN_IF_ERROR(checkpoint->ReadIndex(fs, file));
    checkpoint->CompareHead();
    return checkpoint;
  }
  SIGNVOTE_RETURN_IF_ERROR(RefuseOtherKinds(fs, file));
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> single,
                            SafetensorsFile::Open(fs, file));
  checkpoint->metadata_ = single->metadata();
  for (const SafetensorsFile::Tensor& tensor : single->tensors())
    checkpoint->tensors_.push_back(&tensor);
  checkpoint->files_.push_back(std::move(single));
  checkpoint->CompareHead();
  return checkpoint;
}

void Checkpoint::CompareHead() {
  const SafetensorsFile::Tensor* head = nullptr;
  const SafetensorsFile::Tensor* embedding = nullptr;
  for (const SafetensorsFile::Tensor* tensor : tensors_) {
    if (tensor->name == kHead) head = tensor;
    if (tensor->name == kEmbedding) embedding = tensor;
  }
  head_is_embedding_ = head != nullptr && embedding != nullptr && head->dtype == embedding->dtype &&
                       head->shape == embedding->shape &&
                       std::equal(head->data.begin(), head->data.end(), embedding->data.begin());
}

absl::Status Checkpoint::ReadIndex(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, fs->ReadFile(path, kIndexBytesMax));
  const json index = json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    return Damaged(path,
                   "not an index of safetensors files: a JSON object with the object "
                   "\"weight_map\" of tensor and file names");
  }
  if (const auto metadata = index.find("metadata");
      metadata != index.end() && metadata->is_object()) {
    for (const auto& [key, value] : metadata->items()) {
      if (value.is_string()) metadata_[key] = value.get<std::string>();
    }
  }
  std::map<std::string, const SafetensorsFile*> by_file;
  absl::flat_hash_map<std::string, const SafetensorsFile*> where;  // by tensor
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !IsPlainName(file.get_ref<const std::string&>())) {
      return Damaged(path, "tensor " + Quoted(tensor) + " is not in a file beside the index");
    }
    const auto& name = file.get_ref<const std::string&>();
    const SafetensorsFile*& opened = by_file[name];
    if (opened == nullptr) {
      const std::string beside = FolderOf(path) + name;
      SIGNVOTE_RETURN_IF_ERROR(RefuseOtherKinds(fs, beside));
      SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> shard,
                                SafetensorsFile::Open(fs, beside));
      opened = shard.get();
      files_.push_back(std::move(shard));
    }
    where[tensor] = opened;
  }
  size_t found = 0;
  for (const auto& [name, file] : by_file) {
    for (const SafetensorsFile::Tensor& tensor : file->tensors()) {
      const auto it = where.find(tensor.name);
      if (it == where.end() || it->second != file) {
        return Damaged(path, absl::StrCat("tensor ", Quoted(tensor.name), " lies in ", name,
                                          ", where the index does not have it"));
      }
      tensors_.push_back(&tensor);
      ++found;
    }
  }
  if (found == where.size()) return absl::OkStatus();
  absl::flat_hash_set<std::string> there;
  for (const SafetensorsFile::Tensor* tensor : tensors_) there.insert(tensor->name);
  for (const auto& [tensor, file] : map->items()) {
    if (!there.contains(tensor)) {
      return Damaged(path, absl::StrCat("tensor ", Quoted(tensor), " is not in ",
                                        file.get<std::string>(), ", where the index has it"));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::CheckFits(const Layout& layout) const {
  absl::flat_hash_map<std::string, const SafetensorsFile::Tensor*> by_name;
  for (const SafetensorsFile::Tensor* tensor : tensors_) by_name[tensor->name] = tensor;
  absl::flat_hash_set<std::string> known;
  for (const TensorSpec& spec : layout.tensors()) {
    known.insert(spec.name);
    const auto it = by_name.find(spec.name);
    if (it == by_name.end()) return Unfit("the model file has no tensor " + Quoted(spec.name));
    if (it->second->shape != spec.shape) {
      return Unfit("tensor " + Quoted(spec.name) + " has shape " + json(it->second->shape).dump() +
                   " in the file, the model wants " + json(spec.shape).dump());
    }
  }
  for (const SafetensorsFile::Tensor* tensor : tensors_) {
    if (known.contains(tensor->name) || absl::EndsWith(tensor->name, kInverseFrequencies)) continue;
    if (tensor->name != kHead || !by_name.contains(kEmbedding)) {
      return Unfit("the model file has the tensor " + Quoted(tensor->name) +
                   ", which the model does not have");
    }
    if (!head_is_embedding_) {
      return Unfit(absl::StrCat("the model file has a ", kHead, " that differs from ", kEmbedding,
                                ", but the model's head is tied; set \"tie_word_embeddings\" to "
                                "false in its config.json"));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::CopyInto(const Layout& layout, std::span<float> x,
                                  const GiveUp& give_up) const {
  SIGNVOTE_CHECK(x.size() == layout.coordinates());
  SIGNVOTE_RETURN_IF_ERROR(CheckFits(layout));
  absl::flat_hash_map<std::string, const SafetensorsFile::Tensor*> by_name;
  for (const SafetensorsFile::Tensor* tensor : tensors_) by_name[tensor->name] = tensor;
  for (const TensorSpec& spec : layout.tensors()) {
    for (uint64_t first = 0; first < spec.count; first += kAskEvery) {
      if (give_up && give_up()) return absl::CancelledError("reading the model was given up");
      const uint64_t count = std::min(kAskEvery, spec.count - first);
      by_name[spec.name]->WidenInto(first, x.subspan(spec.first + first, count));
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
