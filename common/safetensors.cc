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
#include "common/half_float.h"
#include "common/status.h"

namespace signvote {
namespace {

using nlohmann::json;

constexpr uint64_t kPrefixBytes = 8;
constexpr uint64_t kHeaderBytesMax = 100'000'000;
constexpr uint64_t kHeaderAlignment = 64;
constexpr uint64_t kPieceValues = uint64_t{1} << 20;
constexpr uint64_t kBytesPerValue = 4;  // of what is written
constexpr int kNestingMax = 3;          // the format itself: file { tensor { shape [ … ] } }
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

uint64_t BytesOf(SafetensorsFile::Dtype dtype) {
  return dtype == SafetensorsFile::Dtype::kF32 ? 4 : 2;
}

std::optional<SafetensorsFile::Dtype> DtypeNamed(std::string_view name) {
  if (name == "F32") return SafetensorsFile::Dtype::kF32;
  if (name == "BF16") return SafetensorsFile::Dtype::kBf16;
  if (name == "F16") return SafetensorsFile::Dtype::kF16;
  return std::nullopt;
}

template <typename Element>
Element ReadElement(std::span<const std::byte> data, uint64_t i) {
  Element element;
  std::memcpy(&element, data.data() + i * sizeof(Element), sizeof(Element));
  return element;
}

// A file with its header.
absl::StatusOr<std::unique_ptr<AtomicFile>> BeginSafetensors(
    FileSystem* fs, const std::string& path, const Layout& layout,
    const std::map<std::string, std::string>& metadata) {
  std::map<std::string, std::string> full = metadata;
  full.emplace("format", "pt");
  const std::string header = SafetensorsHeader(layout, full);
  SIGNVOTE_ASSIGN_OR_RETURN(std::unique_ptr<AtomicFile> file, fs->CreateAtomic(path, 0644));
  SIGNVOTE_RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(header))));
  return file;
}

}  // namespace

uint64_t SafetensorsFile::Tensor::count() const { return data.size() / BytesOf(dtype); }

float SafetensorsFile::Tensor::At(uint64_t i) const {
  switch (dtype) {
    case Dtype::kF32:
      return ReadElement<float>(data, i);
    case Dtype::kBf16:
      return WidenBf16(ReadElement<uint16_t>(data, i));
    case Dtype::kF16:
      break;
  }
  return WidenF16(ReadElement<uint16_t>(data, i));
}

void SafetensorsFile::Tensor::WidenInto(uint64_t first, std::span<float> out) const {
  SIGNVOTE_CHECK(first <= count() && out.size() <= count() - first);
  if (dtype == Dtype::kF32) {
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
  if (bytes.size() < kPrefixBytes) {
    return Damaged(path, "truncated: " + std::to_string(bytes.size()) +
                             " bytes, a safetensors file has at least 8");
  }
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kHeaderBytesMax) {
    return Damaged(path,
                   "announces a header of " + std::to_string(header_bytes) +
                       " bytes (at most 100 MB are allowed): not a safetensors file, or damaged");
  }
  if (header_bytes > bytes.size() - kPrefixBytes) {
    return Damaged(path, "truncated: the header needs " + std::to_string(header_bytes) +
                             " bytes, " + std::to_string(bytes.size() - kPrefixBytes) +
                             " are there");
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kPrefixBytes,
                              header_bytes);
  if (text.empty() || text.front() != '{') return Damaged(path, "the header is not a JSON object");
  SIGNVOTE_ASSIGN_OR_RETURN(const json header, ParseHeader(path, text));
  const std::span<const std::byte> data = bytes.subspan(kPrefixBytes + header_bytes);

  for (const auto& [name, entry] : header.items()) {
    if (!entry.is_object())
      return Damaged(path, "the header's entry " + Quoted(name) + " is not an object");
    if (name == kMetadataKey) {
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return Damaged(path, "the metadata " + Quoted(key) + " is not a string");
        file->metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    const std::string tensor_text = "tensor " + Quoted(name);
    const auto dtype = entry.find("dtype");
    const auto shape = entry.find("shape");
    const auto offsets = entry.find("data_offsets");
    if (dtype == entry.end() || !dtype->is_string() || shape == entry.end() ||
        offsets == entry.end()) {
      return Damaged(path, tensor_text + " lacks dtype, shape or data_offsets");
    }
    Tensor tensor;
    tensor.name = name;
    std::vector<uint64_t> range;
    if (!ReadIntegers(*shape, &tensor.shape) || !ReadIntegers(*offsets, &range) ||
        range.size() != 2) {
      return Damaged(path,
                     tensor_text + " has a shape or data_offsets that are not unsigned integers");
    }
    const std::optional<Dtype> known = DtypeNamed(dtype->get_ref<const std::string&>());
    if (!known.has_value()) {
      return Unfit(path + ": " + tensor_text + " is " + dtype->get<std::string>() +
                   "; F32, BF16 and F16 are read: convert the file to one of them");
    }
    tensor.dtype = *known;
    const uint64_t element_bytes = BytesOf(*known);
    const uint64_t begin = range[0];
    const uint64_t end = range[1];
    if (begin > end || end > data.size()) {
      return Damaged(path, tensor_text + " lies at bytes [" + std::to_string(begin) + ", " +
                               std::to_string(end) + "), outside the file's " +
                               std::to_string(data.size()) + " bytes of data");
    }
    uint64_t count = 1;
    for (const uint64_t dimension : tensor.shape) {
      if (dimension != 0 && count > UINT64_MAX / element_bytes / dimension) {
        return Damaged(path,
                       tensor_text + " has a shape too large to exist: " + ShapeText(tensor.shape));
      }
      count *= dimension;
    }
    if (count * element_bytes != end - begin) {
      return Damaged(path, tensor_text + " " + ShapeText(tensor.shape) + " needs " +
                               std::to_string(count * element_bytes) +
                               " bytes, its data_offsets hold " + std::to_string(end - begin));
    }
    tensor.data = data.subspan(begin, end - begin);
    file->tensors_.push_back(std::move(tensor));
  }

  std::stable_sort(
      file->tensors_.begin(), file->tensors_.end(), [](const Tensor& a, const Tensor& b) {
        return std::pair(a.data.data(), a.data.size()) < std::pair(b.data.data(), b.data.size());
      });
  uint64_t at = 0;
  for (const Tensor& tensor : file->tensors_) {
    const auto begin = static_cast<uint64_t>(tensor.data.data() - data.data());
    if (begin != at) {
      return Damaged(path, "tensor " + Quoted(tensor.name) + " starts at byte " +
                               std::to_string(begin) +
                               (begin < at ? ", inside the tensor before it, which ends at "
                                           : ", after a hole that begins at ") +
                               std::to_string(at));
    }
    at = begin + tensor.data.size();
  }
  if (at != data.size()) {
    return Damaged(
        path, std::to_string(data.size() - at) + " bytes after the last tensor belong to none");
  }
  return file;
}

absl::Status SafetensorsFile::RequireFinite(const std::function<bool()>& give_up) const {
  for (const Tensor& tensor : tensors_) {
    for (uint64_t i = 0; i < tensor.count(); ++i) {
      if (i % kPieceValues == 0 && give_up && give_up()) {
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

std::string SafetensorsHeader(const Layout& layout,
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
  for (const TensorSpec& spec : layout.tensors()) {
    if (text.back() != '{') text += ',';
    text += Quoted(spec.name) + R"(:{"dtype":"F32","shape":)" + ShapeText(spec.shape) +
            R"(,"data_offsets":[)" + std::to_string(spec.first * kBytesPerValue) + "," +
            std::to_string((spec.first + spec.count) * kBytesPerValue) + "]}";
  }
  text += '}';
  const uint64_t unpadded = kPrefixBytes + text.size();
  text.append((kHeaderAlignment - unpadded % kHeaderAlignment) % kHeaderAlignment, ' ');
  const uint64_t length = text.size();
  std::string out(reinterpret_cast<const char*>(&length), sizeof(length));
  return out + text;
}

absl::Status WriteSafetensors(FileSystem* fs, const std::string& path, const Layout& layout,
                              std::span<const float> x,
                              const std::map<std::string, std::string>& metadata) {
  SIGNVOTE_CHECK(x.size() == layout.coordinates());
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file,
                            BeginSafetensors(fs, path, layout, metadata));
  SIGNVOTE_RETURN_IF_ERROR(file->Append(std::as_bytes(x)));
  return file->Commit();
}

absl::Status WriteSafetensors(FileSystem* fs, const std::string& path, const Layout& layout,
                              const ReadValues& read,
                              const std::map<std::string, std::string>& metadata) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file,
                            BeginSafetensors(fs, path, layout, metadata));
  std::vector<float> piece(std::min(kPieceValues, layout.coordinates()));
  for (uint64_t first = 0; first < layout.coordinates(); first += piece.size()) {
    const std::span<float> values =
        std::span(piece).first(std::min<uint64_t>(piece.size(), layout.coordinates() - first));
    SIGNVOTE_RETURN_IF_ERROR(read(first, values));
    SIGNVOTE_RETURN_IF_ERROR(file->Append(std::as_bytes(values)));
  }
  return file->Commit();
}

}  // namespace signvote
