#include "common/layout.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "common/bits.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/text.h"

namespace signvote {
namespace {

constexpr uint64_t kCoordinatesMax = uint64_t{1} << 40;
constexpr size_t kNameBytesMax = 1024;
// A layout comes from a worker: what no model has is not worth the memory.
constexpr size_t kTensorsMax = size_t{1} << 16;
constexpr size_t kDimensionsMax = 64;
constexpr char kDigestMagic[] = "signvote-layout-2";

constexpr uint64_t kChunkCoordinatesMin = uint64_t{1} << 15;
constexpr uint64_t kChunkCoordinatesMax = uint64_t{1} << 21;
constexpr uint64_t kChunksWanted = 8;
// A large ballot is cut finer, into chunks of this many coordinates (64 KiB packed) and more: on a
// slow link the verdict of the last chunk cannot come back before it has gone up, and a round lasts
// that much longer than its bytes.
constexpr uint64_t kChunkCoordinatesFine = uint64_t{1} << 19;
constexpr uint64_t kChunksWantedFine = 48;

template <typename T>
void HashInteger(Xxh3Stream& hash, T value) {
  // Packed bits already require a little-endian machine (bits.h).
  hash.Update(&value, sizeof(value));
}

// Names travel through JSON and logs.
bool IsFitForPeople(std::string_view text) {
  while (!text.empty()) {
    const CodePoint next = FirstCodePoint(text);
    if (!next.fits) return false;
    text.remove_prefix(next.bytes);
  }
  return true;
}

std::string ShapeText(const std::vector<uint64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

std::string FloatText(float value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(value));
  return text;
}

// Tensors in ascending order of the bytes of their names.
std::vector<const TensorSpec*> ByName(std::span<const TensorSpec> tensors) {
  std::vector<const TensorSpec*> out;
  out.reserve(tensors.size());
  for (const TensorSpec& t : tensors) out.push_back(&t);
  std::sort(out.begin(), out.end(),
            [](const TensorSpec* a, const TensorSpec* b) { return a->name < b->name; });
  return out;
}

uint64_t DigestOf(std::span<const TensorSpec> tensors) {
  Xxh3Stream hash;
  hash.Update(kDigestMagic, sizeof(kDigestMagic) - 1);
  HashInteger(hash, static_cast<uint32_t>(tensors.size()));
  for (const TensorSpec* t : ByName(tensors)) {
    HashInteger(hash, static_cast<uint32_t>(t->name.size()));
    hash.Update(t->name.data(), t->name.size());
    HashInteger(hash, static_cast<uint32_t>(t->shape.size()));
    for (const uint64_t dimension : t->shape) HashInteger(hash, dimension);
  }
  return hash.Digest();
}

}  // namespace

absl::StatusOr<Layout> Layout::Make(std::vector<TensorSpec> tensors) {
  if (tensors.empty()) return absl::InvalidArgumentError("the layout has no tensor");
  if (tensors.size() > kTensorsMax) {
    return absl::InvalidArgumentError("the layout has " + std::to_string(tensors.size()) +
                                      " tensors; at most 65536 are allowed");
  }
  Layout layout;
  absl::flat_hash_set<std::string> names;
  uint64_t total = 0;
  for (size_t k = 0; k < tensors.size(); ++k) {
    TensorSpec& t = tensors[k];
    if (t.name.empty()) {
      return absl::InvalidArgumentError("tensor " + std::to_string(k) +
                                        " of the layout has an empty name");
    }
    if (t.name.size() > kNameBytesMax) {
      return absl::InvalidArgumentError(
          "tensor " + std::to_string(k) + " of the layout has a name of " +
          std::to_string(t.name.size()) + " bytes; at most 1024 are allowed");
    }
    if (!IsFitForPeople(t.name)) {
      return absl::InvalidArgumentError("the name of tensor " + std::to_string(k) +
                                        " of the layout is not UTF-8 or has control characters");
    }
    if (t.name == "__metadata__") {
      return absl::InvalidArgumentError(
          "a tensor is named __metadata__, which safetensors reserves; rename it");
    }
    if (!names.insert(t.name).second) {
      return absl::InvalidArgumentError("two tensors of the layout are named " + t.name);
    }
    if (t.shape.size() > kDimensionsMax) {
      return absl::InvalidArgumentError("tensor " + t.name + " has " +
                                        std::to_string(t.shape.size()) +
                                        " dimensions; at most 64 are allowed");
    }
    if (!std::isfinite(t.step_scale) || !(t.step_scale > 0.0f)) {
      return absl::InvalidArgumentError("tensor " + t.name + ": step_scale " +
                                        FloatText(t.step_scale) + " must be finite and above 0");
    }
    if (!std::isfinite(t.weight_decay) || !(t.weight_decay >= 0.0f)) {
      return absl::InvalidArgumentError("tensor " + t.name + ": weight_decay " +
                                        FloatText(t.weight_decay) +
                                        " must be finite and not below 0");
    }
    // One zero: −0 would travel as other bytes.
    if (t.weight_decay == 0.0f) t.weight_decay = 0.0f;
    uint64_t count = 1;
    for (const uint64_t dimension : t.shape) {
      if (dimension == 0) {
        return absl::InvalidArgumentError("tensor " + t.name +
                                          " has a zero dimension: " + ShapeText(t.shape));
      }
      if (dimension > kCoordinatesMax / count) {
        return absl::InvalidArgumentError("tensor " + t.name + " " + ShapeText(t.shape) +
                                          " has more than 2^40 coordinates");
      }
      count *= dimension;
    }
    if (count > kCoordinatesMax - total) {
      return absl::InvalidArgumentError("with tensor " + t.name +
                                        " the layout has more than 2^40 coordinates");
    }
    t.first = total;
    t.count = count;
    total += count;
    layout.step_scale_max_ = std::max(layout.step_scale_max_, t.step_scale);
  }
  layout.digest_ = DigestOf(tensors);
  layout.coordinates_ = total;
  layout.tensors_ = std::move(tensors);
  return layout;
}

std::string Layout::FirstDifference(const Layout& other) const {
  const std::vector<const TensorSpec*> here = ByName(tensors_), there = ByName(other.tensors_);
  const auto missing = [&](const TensorSpec& t, std::string_view where) {
    return "tensor " + t.name + " " + ShapeText(t.shape) + " is missing " + std::string(where) +
           " (" + std::to_string(here.size()) + " tensors here, " + std::to_string(there.size()) +
           " there)";
  };
  for (size_t k = 0; k < std::max(here.size(), there.size()); ++k) {
    if (k == here.size() || (k < there.size() && there[k]->name < here[k]->name)) {
      return missing(*there[k], "here");
    }
    if (k == there.size() || here[k]->name < there[k]->name) return missing(*here[k], "there");
    if (here[k]->shape != there[k]->shape) {
      return "tensor " + here[k]->name + " is " + ShapeText(here[k]->shape) + " here, " +
             ShapeText(there[k]->shape) + " there";
    }
  }
  return "";
}

ChunkPlan::ChunkPlan(uint64_t coordinates, uint64_t chunk_coordinates)
    : coordinates_(coordinates), chunk_coordinates_(chunk_coordinates) {
  SIGNVOTE_CHECK(coordinates > 0);
  SIGNVOTE_CHECK(chunk_coordinates > 0 && chunk_coordinates % kChunkCoordinatesMultiple == 0);
  const uint64_t chunks = (coordinates - 1) / chunk_coordinates + 1;
  SIGNVOTE_CHECK(chunks <= UINT32_MAX);
  chunks_ = static_cast<uint32_t>(chunks);
}

uint64_t ChunkPlan::DefaultChunkCoordinates(uint64_t coordinates) {
  const auto part = [coordinates](uint64_t chunks) { return (coordinates + chunks - 1) / chunks; };
  const uint64_t wanted =
      std::max(std::min(part(kChunksWanted), kChunkCoordinatesFine), part(kChunksWantedFine));
  const uint64_t whole = (wanted + kChunkCoordinatesMultiple - 1) / kChunkCoordinatesMultiple *
                         kChunkCoordinatesMultiple;
  return std::clamp(whole, kChunkCoordinatesMin, kChunkCoordinatesMax);
}

uint64_t ChunkPlan::Count(ChunkIndex k) const {
  SIGNVOTE_CHECK(k.value() < chunks_);
  return std::min(chunk_coordinates_, coordinates_ - First(k));
}

size_t ChunkPlan::Bytes(ChunkIndex k) const { return BytesForBits(Count(k)); }

size_t ChunkPlan::TotalBytes() const { return BytesForBits(coordinates_); }

}  // namespace signvote
