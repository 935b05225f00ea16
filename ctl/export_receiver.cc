#include "ctl/export_receiver.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/model_file.h"
#include "common/safetensors.h"
#include "common/status.h"

namespace signvote::ctl {

ExportReceiver::ExportReceiver(FileSystem* fs, std::string path, const ModelFormat& format)
    : fs_(fs), path_(std::move(path)), format_(format) {}

absl::Status ExportReceiver::Damaged(const std::string& what) const {
  return absl::DataLossError(absl::StrCat(path_, ": ", what, "; nothing was written"));
}

absl::Status ExportReceiver::Begin(const v1::ExportChunk& chunk) {
  SIGNVOTE_RETURN_IF_ERROR(RequireModelTarget(fs_, path_, chunk.config_json()));
  round_ = chunk.round();
  total_bytes_ = chunk.total_bytes();
  config_json_ = chunk.config_json();
  return absl::OkStatus();
}

absl::Status ExportReceiver::Take(const v1::ExportChunk& chunk) {
  if (!round_.has_value()) SIGNVOTE_RETURN_IF_ERROR(Begin(chunk));
  if (chunk.round() != *round_ || chunk.total_bytes() != total_bytes_) {
    return Damaged(
        absl::StrCat("parts of round ", chunk.round(), " and round ", *round_, " in one export"));
  }
  std::span<const std::byte> data =
      std::as_bytes(std::span(chunk.data().data(), chunk.data().size()));
  if (data.size() > total_bytes_ - received_bytes_)
    return Damaged(absl::StrCat("the server sent more than the ", total_bytes_, " bytes it said"));
  received_bytes_ += data.size();
  SIGNVOTE_RETURN_IF_ERROR(TakeHeader(&data));
  return TakeValues(data);
}

absl::Status ExportReceiver::TakeHeader(std::span<const std::byte>* data) {
  const auto take_until = [&](uint64_t bytes) {
    const size_t more = std::min<uint64_t>(data->size(), bytes - header_.size());
    header_.append(reinterpret_cast<const char*>(data->data()), more);
    *data = data->subspan(more);
    return header_.size() == bytes;
  };
  if (writer_ != nullptr ||
      (header_.size() < kSafetensorsPrefixBytes && !take_until(kSafetensorsPrefixBytes)))
    return absl::OkStatus();
  uint64_t json_bytes;
  std::memcpy(&json_bytes, header_.data(), sizeof(json_bytes));
  if (json_bytes > std::min(kSafetensorsHeaderBytesMax, total_bytes_ - kSafetensorsPrefixBytes))
    return Damaged("the server sent no safetensors file");
  const uint64_t header_bytes = kSafetensorsPrefixBytes + json_bytes;
  if (!take_until(header_bytes)) return absl::OkStatus();
  const auto parsed =
      ParseSafetensorsHeader(path_, std::string_view(header_).substr(kSafetensorsPrefixBytes),
                             total_bytes_ - header_bytes);
  if (!parsed.ok()) return Damaged(std::string(parsed.status().message()));
  std::vector<TensorSpec> tensors;
  for (const SafetensorsContents::Tensor& tensor : parsed->tensors) {
    if (tensor.dtype != TensorDtype::kF32)
      return Damaged("the server sent tensor " + tensor.name + " in another format than fp32");
    tensors.push_back({.name = tensor.name, .shape = tensor.shape});
  }
  absl::StatusOr<Layout> layout = Layout::Make(std::move(tensors));
  if (!layout.ok()) return Damaged(std::string(layout.status().message()));
  SIGNVOTE_ASSIGN_OR_RETURN(
      writer_, ModelWriter::Create(fs_, path_, *std::move(layout), format_, parsed->metadata));
  header_.clear();
  return absl::OkStatus();
}

absl::Status ExportReceiver::TakeValues(std::span<const std::byte> data) {
  if (data.empty()) return absl::OkStatus();
  // Parts may end within a value.
  rest_.append(reinterpret_cast<const char*>(data.data()), data.size());
  std::vector<float> values(rest_.size() / sizeof(float));
  if (values.empty()) return absl::OkStatus();
  std::memcpy(values.data(), rest_.data(), values.size() * sizeof(float));
  rest_.erase(0, values.size() * sizeof(float));
  return writer_->Append(values);
}

absl::StatusOr<Exported> ExportReceiver::Finish() {
  if (!round_.has_value() || received_bytes_ != total_bytes_) {
    return Damaged(
        absl::StrCat("the server sent ", received_bytes_, " of ", total_bytes_, " bytes"));
  }
  if (writer_ == nullptr) return Damaged("the server sent no safetensors file");
  Exported exported{.round = *round_, .has_config = !config_json_.empty()};
  SIGNVOTE_ASSIGN_OR_RETURN(exported.model, writer_->Commit());
  SIGNVOTE_RETURN_IF_ERROR(WriteConfigBehind(fs_, path_, config_json_, format_.dtype));
  return exported;
}

}  // namespace signvote::ctl
