#include "common/safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "common/check.h"
#include "common/exit_codes.h"
#include "common/file_kind.h"
#include "common/half_float.h"
#include "common/status.h"

namespace signvote {
namespace {

using nlohmann::json;

constexpr uint64_t kHeaderAlignment = 64;
constexpr uint64_t kAskEvery = uint64_t{1} << 20;  // numbers
constexpr int kNestingMax = 3;  // the format itself: file { tensor { shape [ … ] } }
constexpr char kMetadataKey[] = "__metadata__";

absl::Status Damaged(const std::string& path, const std::string& what) {
  return WithExitCode(absl::DataLossError(path + ": " + what), ExitCode::kBadInput);
}

absl::Status Unfit(const std::string& what) {
  return WithExitCode(absl::InvalidArgumentError(what), ExitCode::kBadInput);
}

std::string ShapeText(const std::vector<uint64_t>& shape) { return json(shape).dump(); }

std::string Quoted(std::string_view text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

// Parses the header; refuses repeated keys, which JSON allows and a checkpoint must not have.
absl::StatusOr<json> ParseHeader(const std::string& path, std::string_view text) {
  std::vector<std::set<std::string>> keys;
  std::string repeated;
  bool too_deep = false;
  const json::parser_callback_t callback = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kNestingMax) too_deep = true;
    if (too_deep) return false;
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.empty()) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second && repeated.empty()) repeated = key;
    }
    return true;
  };
  json header = json::parse(text.begin(), text.end(), callback, /*allow_exceptions=*/false);
  if (too_deep) return Damaged(path, "the header nests deeper than the format allows");
  if (header.is_discarded() || !header.is_object())
    return Damaged(path, "the header is not a JSON object");
  if (!repeated.empty()) return Damaged(path, "the header repeats the key " + Quoted(repeated));
  return header;
}

// A JSON array of unsigned integers.
bool ReadIntegers(const json& value, std::vector<uint64_t>* out) {
  if (!value.is_array()) return false;
  for (const json& item : value) {
    if (!item.is_number_unsigned()) return false;
    out->push_back(item.get<uint64_t>());
  }
  return true;
}

const char* NameOf(TensorDtype dtype) {
  switch (dtype) {
    case TensorDtype::kF32:
      return "F32";
    case TensorDtype::kBf16:
      return "BF16";
    case TensorDtype::kF16:
      break;
  }
  return "F16";
}

std::optional<TensorDtype> DtypeNamed(std::string_view name) {
  for (const TensorDtype dtype : {TensorDtype::kF32, TensorDtype::kBf16, TensorDtype::kF16})
    if (name == NameOf(dtype)) return dtype;
  return std::nullopt;
}

template <typename Element>
Element ReadElement(std::span<const std::byte> data, uint64_t i) {
  Element element;
  std::memcpy(&element, data.data() + i * sizeof(Element), sizeof(Element));
  return element;
}

// Reads one tensor's entry.
absl::StatusOr<SafetensorsContents::Tensor> ParseTensor(const std::string& path,
                                                        const std::string& name, const json& entry,
                                                        uint64_t data_bytes) {
  const std::string tensor_text = "tensor " + Quoted(name);
  const auto dtype = entry.find("dtype");
  const auto shape = entry.find("shape");
  const auto offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string() || shape == entry.end() ||
      offsets == entry.end()) {
    return Damaged(path, tensor_text + " lacks dtype, shape or data_offsets");
  }
  SafetensorsContents::Tensor tensor;
  tensor.name = name;
  std::vector<uint64_t> range;
  if (!ReadIntegers(*shape, &tensor.shape) || !ReadIntegers(*offsets, &range) ||
      range.size() != 2) {
    return Damaged(path,
                   tensor_text + " has a shape or data_offsets that are not unsigned integers");
  }
  const std::optional<TensorDtype> known = DtypeNamed(dtype->get_ref<const std::string&>());
  if (!known.has_value()) {
    return Unfit(path + ": " + tensor_text + " is " + dtype->get<std::string>() +
                 "; F32, BF16 and F16 are read: convert the file to one of them");
  }
  tensor.dtype = *known;
  const uint64_t element_bytes = BytesOf(*known);
  tensor.begin = range[0];
  tensor.end = range[1];
  if (tensor.begin > tensor.end || tensor.end > data_bytes) {
    return Damaged(path, tensor_text + " lies at bytes [" + std::to_string(tensor.begin) + ", " +
                             std::to_string(tensor.end) + "), outside the file's " +
                             std::to_string(data_bytes) + " bytes of data");
  }
  uint64_t count = 1;
  for (const uint64_t dimension : tensor.shape) {
    if (dimension != 0 && count > UINT64_MAX / element_bytes / dimension) {
      return Damaged(path,
                     tensor_text + " has a shape too large to exist: " + ShapeText(tensor.shape));
    }
    count *= dimension;
  }
  if (count * element_bytes != tensor.end - tensor.begin) {
    return Damaged(path, tensor_text + " " + ShapeText(tensor.shape) + " needs " +
                             std::to_string(count * element_bytes) +
                             " bytes, its data_offsets hold " +
                             std::to_string(tensor.end - tensor.begin));
  }
  return tensor;
}

}  // namespace

uint64_t BytesOf(TensorDtype dtype) { return dtype == TensorDtype::kF32 ? 4 : 2; }

absl::StatusOr<SafetensorsContents> ParseSafetensorsHeader(const std::string& path,
                                                           std::string_view text,
                                                           uint64_t data_bytes) {
  if (text.empty() || text.front() != '{') return Damaged(path, "the header is not a JSON object");
  SIGNVOTE_ASSIGN_OR_RETURN(const json header, ParseHeader(path, text));
  SafetensorsContents contents;
  for (const auto& [name, entry] : header.items()) {
    if (!entry.is_object())
      return Damaged(path, "the header's entry " + Quoted(name) + " is not an object");
    if (name == kMetadataKey) {
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return Damaged(path, "the metadata " + Quoted(key) + " is not a string");
        contents.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    SIGNVOTE_ASSIGN_OR_RETURN(SafetensorsContents::Tensor tensor,
                              ParseTensor(path, name, entry, data_bytes));
    contents.tensors.push_back(std::move(tensor));
  }
  std::stable_sort(contents.tensors.begin(), contents.tensors.end(),
                   [](const auto& a, const auto& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  uint64_t at = 0;
  for (const SafetensorsContents::Tensor& tensor : contents.tensors) {
    if (tensor.begin != at) {
      return Damaged(path, "tensor " + Quoted(tensor.name) + " starts at byte " +
                               std::to_string(tensor.begin) +
                               (tensor.begin < at ? ", inside the tensor before it, which ends at "
                                                  : ", after a hole that begins at ") +
                               std::to_string(at));
    }
    at = tensor.end;
  }
  if (at != data_bytes) {
    return Damaged(path,
                   std::to_string(data_bytes - at) + " bytes after the last tensor belong to none");
  }
  return contents;
}

uint64_t SafetensorsFile::Tensor::count() const { return data.size() / BytesOf(dtype); }

float SafetensorsFile::Tensor::At(uint64_t i) const {
  switch (dtype) {
    case TensorDtype::kF32:
      return ReadElement<float>(data, i);
    case TensorDtype::kBf16:
      return WidenBf16(ReadElement<uint16_t>(data, i));
    case TensorDtype::kF16:
      break;
  }
  return WidenF16(ReadElement<uint16_t>(data, i));
}

void SafetensorsFile::Tensor::WidenInto(uint64_t first, std::span<float> out) const {
  SIGNVOTE_CHECK(first <= count() && out.size() <= count() - first);
  if (dtype == TensorDtype::kF32) {
    if (!out.empty())
      std::memcpy(out.data(), data.data() + first * sizeof(float), out.size_bytes());
    return;
  }
  for (uint64_t i = 0; i < out.size(); ++i) out[i] = At(first + i);
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(FileSystem* fs,
                                                                       const std::string& path) {
  auto file = std::make_unique<SafetensorsFile>();
  file->path_ = path;
  SIGNVOTE_ASSIGN_OR_RETURN(file->map_, fs->Map(path));
  const std::span<const std::byte> bytes = file->map_->data();
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (const std::string kind = ForeignKind(all, GivenAs::kModel); !kind.empty())
    return Unfit(path + ": " + kind);
  if (bytes.size() < kSafetensorsPrefixBytes) {
    return Damaged(path, "truncated: " + std::to_string(bytes.size()) +
                             " bytes, a safetensors file has at least 8");
  }
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kSafetensorsHeaderBytesMax && all.front() == '{') {
    return Unfit(path +
                 ": a JSON text, not a model; give its safetensors file, or an index under a name "
                 "that ends in .json");
  }
  if (header_bytes > kSafetensorsHeaderBytesMax) {
    return Damaged(path,
                   "announces a header of " + std::to_string(header_bytes) +
                       " bytes (at most 100 MB are allowed): not a safetensors file, or damaged");
  }
  if (header_bytes > bytes.size() - kSafetensorsPrefixBytes) {
    return Damaged(path, "truncated: the header needs " + std::to_string(header_bytes) +
                             " bytes, " + std::to_string(bytes.size() - kSafetensorsPrefixBytes) +
                             " are there");
  }
  const std::span<const std::byte> data = bytes.subspan(kSafetensorsPrefixBytes + header_bytes);
  SIGNVOTE_ASSIGN_OR_RETURN(
      SafetensorsContents contents,
      ParseSafetensorsHeader(path, all.substr(kSafetensorsPrefixBytes, header_bytes), data.size()));
  file->metadata_ = std::move(contents.metadata);
  for (SafetensorsContents::Tensor& tensor : contents.tensors) {
    file->tensors_.push_back({.name = std::move(tensor.name),
                              .shape = std::move(tensor.shape),
                              .dtype = tensor.dtype,
                              .data = data.subspan(tensor.begin, tensor.end - tensor.begin)});
  }
  return file;
}

absl::Status SafetensorsFile::RequireFinite(const std::function<bool()>& give_up) const {
  for (const Tensor& tensor : tensors_) {
    for (uint64_t i = 0; i < tensor.count(); ++i) {
      if (i % kAskEvery == 0 && give_up && give_up()) {
        return absl::CancelledError(path_ + ": reading it was given up");
      }
      if (!std::isfinite(tensor.At(i))) {
        return Damaged(path_, "number " + std::to_string(i) + " of tensor " + Quoted(tensor.name) +
                                  " is not finite");
      }
    }
  }
  return CheckWhole();
}

absl::Status SafetensorsFile::CheckWhole() const {
  if (!map_->cut()) return absl::OkStatus();
  return Damaged(path_, "was cut while it was read; put the whole file back");
}

std::string SafetensorsHeader(std::span<const TensorSpec> tensors, TensorDtype dtype,
                              const std::map<std::string, std::string>& metadata) {
  std::string text = "{";
  if (!metadata.empty()) {
    text += Quoted(kMetadataKey) + ":{";
    for (const auto& [key, value] : metadata) {
      if (text.back() != '{') text += ',';
      text += Quoted(key) + ":" + Quoted(value);
    }
    text += '}';
  }
  uint64_t at = 0;
  for (const TensorSpec& spec : tensors) {
    if (text.back() != '{') text += ',';
    const uint64_t end = at + spec.count * BytesOf(dtype);
    text += Quoted(spec.name) + R"(:{"dtype":")" + NameOf(dtype) + R"(","shape":)" +
            ShapeText(spec.shape) + R"(,"data_offsets":[)" + std::to_string(at) + "," +
            std::to_string(end) + "]}";
    at = end;
  }
  text += '}';
  const uint64_t unpadded = kSafetensorsPrefixBytes + text.size();
  text.append((kHeaderAlignment - unpadded % kHeaderAlignment) % kHeaderAlignment, ' ');
  const uint64_t length = text.size();
  std::string out(reinterpret_cast<const char*>(&length), sizeof(length));
  return out + text;
}

}  // namespace signvote
