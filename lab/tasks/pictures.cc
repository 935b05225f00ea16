#include "lab/tasks/pictures.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/memory_budget.h"
#include "common/status.h"
#include "common/text.h"
#include "lab/tasks/idx_file.h"
#include "lab/tasks/picture.h"
#include "lab/tasks/picture_files.h"
#include "worker/data/corpus_files.h"
#include "worker/data/held_out_windows.h"
#include "worker/data/window_order.h"

namespace signvote::lab {
namespace {

constexpr size_t kNameBytesMax = 80;

// What one part of the data holds.
struct Part {
  std::vector<uint8_t> grey;     // [count, side, side]
  std::vector<uint16_t> labels;  // [count]

  size_t count() const { return labels.size(); }
  void Reserve(size_t pictures, uint32_t side) {
    grey.reserve(pictures * side * side);
    labels.reserve(pictures);
  }
  void Add(std::span<const uint8_t> picture, uint32_t label) {
    grey.insert(grey.end(), picture.begin(), picture.end());
    labels.push_back(static_cast<uint16_t>(label));
  }
};

class PictureDataset final : public Dataset {
 public:
  // REQUIRES: both parts hold a picture.
  PictureDataset(Part train, Part held_out, const PicturesOptions& options, std::string description)
      : train_(std::move(train)),
        held_out_(std::move(held_out)),
        options_(options),
        description_(std::move(description)),
        order_(train_.count() + 1, /*length=*/1),
        windows_(held_out_.count() + 1, /*length=*/1, options.held_out) {
    std::array<uint64_t, 256> counts{};
    for (const uint8_t grey : train_.grey) ++counts[grey];
    double sum = 0, squares = 0;
    for (size_t k = 0; k < counts.size(); ++k) {
      const auto grey = static_cast<double>(k), count = static_cast<double>(counts[k]);
      sum += count * grey;
      squares += count * grey * grey;
    }
    const auto all = static_cast<double>(train_.grey.size());
    const double mean = sum / all;
    // Of nothing but one grey, whatever is held out stays finite.
    const double deviation = std::sqrt(std::max(squares / all - mean * mean, 1.0));
    for (size_t k = 0; k < values_.size(); ++k)
      values_[k] = static_cast<float>((static_cast<double>(k) - mean) / deviation);
  }

  absl::Status TrainBatch(const BatchKey& key, Batch* batch) const override {
    const uint64_t micro = key.data_step.value() * key.micros + key.micro;
    Fill(train_, options_.rows, batch, [&](uint64_t row) {
      return order_.First(key.seed, key.share, micro * options_.rows + row);
    });
    return absl::OkStatus();
  }
  uint64_t held_out_windows() const override { return windows_.count(); }
  absl::Status HeldOut(uint64_t first, uint64_t count, Batch* batch) const override {
    Fill(held_out_, count, batch, [&](uint64_t row) { return windows_.First(first + row); });
    return absl::OkStatus();
  }
  absl::Status CheckAll(const std::stop_token&) const override { return absl::OkStatus(); }
  std::string description() const override { return description_; }
  std::string target_unit() const override { return "sample"; }

 private:
  template <typename Index>
  void Fill(const Part& part, uint64_t rows, Batch* batch, Index index) const {
    const size_t size = size_t{options_.side} * options_.side;
    batch->rows = rows;
    batch->length = 0;
    batch->values.resize(rows * size);
    batch->targets.resize(rows);
    for (uint64_t row = 0; row < rows; ++row) {
      const uint64_t k = index(row);
      for (size_t i = 0; i < size; ++i)
        batch->values[row * size + i] = values_[part.grey[k * size + i]];
      batch->targets[row] = part.labels[k];
    }
  }

  // Constant after construction.
  const Part train_, held_out_;
  const PicturesOptions options_;
  const std::string description_;
  const WindowOrder order_;
  const HeldOutWindows windows_;
  std::array<float, 256> values_;  // of each grey
};

absl::Status Bad(const std::string& path, const absl::Status& status) {
  return WithExitCode(
      WithContext(status, absl::StrCat("--data ", path)),
      absl::IsResourceExhausted(status) ? ExitCode::kNoMemory : ExitCode::kBadInput);
}
absl::Status Bad(const std::string& path, const std::string& what_and_remedy) {
  return Bad(path, absl::InvalidArgumentError(what_and_remedy));
}

absl::Status CheckFits(FileSystem* fs, const std::string& path, uint64_t count, uint32_t side) {
  const uint64_t bytes = uint64_t{side} * side + sizeof(uint16_t);
  return WithExitCode(CheckMemory(absl::StrCat("--data ", path),
                                  {{.what = absl::StrCat(count, " pictures"),
                                    .bytes = count * bytes,
                                    .remedy = "fewer pictures"}},
                                  AvailableMemory(fs)),
                      ExitCode::kNoMemory);
}

// ---- a folder for each class

absl::Status AddFile(FileSystem* fs, const PictureFile& file, uint32_t side, Part* part) {
  const absl::StatusOr<uint64_t> bytes = fs->FileSize(file.path);
  if (!bytes.ok()) return WithContext(bytes.status(), "--data");
  if (*bytes > kPictureBytesMax) {
    return Bad(file.path, absl::StrCat(*bytes, " bytes, and a picture's file has at most ",
                                       kPictureBytesMax, "; make it smaller"));
  }
  const absl::StatusOr<std::string> text = fs->ReadFile(file.path, kPictureBytesMax);
  if (!text.ok()) return WithContext(text.status(), "--data");
  const absl::StatusOr<std::vector<uint8_t>> grey = DecodePicture(*text, side);
  if (!grey.ok()) return Bad(file.path, grey.status());
  part->Add(*grey, file.label);
  return absl::OkStatus();
}

absl::StatusOr<Pictures> OpenFolder(FileSystem* fs, const std::string& path,
                                    std::vector<std::string> files,
                                    const PicturesOptions& options) {
  SIGNVOTE_ASSIGN_OR_RETURN(PictureFiles chosen, ChoosePictureFiles(path, std::move(files)));
  SIGNVOTE_RETURN_IF_ERROR(
      CheckFits(fs, path, chosen.train.size() + chosen.held_out.size(), options.side));
  Part train, held_out;
  for (const auto& [from, to] :
       {std::pair(&chosen.train, &train), std::pair(&chosen.held_out, &held_out)}) {
    to->Reserve(from->size(), options.side);
    for (const PictureFile& file : *from)
      SIGNVOTE_RETURN_IF_ERROR(AddFile(fs, file, options.side, to));
  }
  std::string line =
      absl::StrFormat("%s: %d pictures of %d classes, %d held out", path,
                      train.count() + held_out.count(), chosen.classes.size(), held_out.count());
  if (!chosen.held_out_folders.empty()) absl::StrAppend(&line, " (", chosen.held_out_folders, ")");
  if (!chosen.left_out.empty())
    absl::StrAppend(&line, "; left out: ", ListedFiles(path, chosen.left_out));
  return Pictures{.data = std::make_unique<PictureDataset>(std::move(train), std::move(held_out),
                                                           options, std::move(line)),
                  .classes = static_cast<uint32_t>(chosen.classes.size())};
}

// ---- MNIST's files

std::string_view NameOf(std::string_view path) { return path.substr(path.rfind('/') + 1); }

// The file whose name ends as `stem` with "-idx3-ubyte" or ".idx3-ubyte" (`dimensions` 3); nullopt: there is
// none. INVALID_ARGUMENT: there are several, or it is packed.
absl::StatusOr<std::optional<std::string>> FindIdx(const std::vector<std::string>& files,
                                                   const std::string& stem, int dimensions) {
  std::optional<std::string> found, packed;
  for (const std::string& file : files) {
    std::string_view name = NameOf(file);
    const bool gzip = name.ends_with(".gz");
    if (gzip) name.remove_suffix(3);
    if (!name.ends_with(absl::StrCat(stem, "-idx", dimensions, "-ubyte")) &&
        !name.ends_with(absl::StrCat(stem, ".idx", dimensions, "-ubyte")))
      continue;
    std::optional<std::string>& one = gzip ? packed : found;
    if (one.has_value() && !gzip)
      return Bad(file, absl::StrCat("there is ", ForPeople(*one, kNameBytesMax),
                                    " too; give the folder of one of them"));
    one = file;
  }
  if (!found.has_value() && packed.has_value())
    return Bad(*packed, "is packed; unpack it (gunzip --keep)");
  return found;
}

// A file's bytes stay mapped only as long as they are read.
absl::StatusOr<std::unique_ptr<MappedFile>> MapIdx(FileSystem* fs, const std::string& path) {
  absl::StatusOr<std::unique_ptr<MappedFile>> map = fs->Map(path);
  if (!map.ok()) return WithContext(map.status(), "--data");
  return map;
}

absl::StatusOr<Part> ReadIdx(FileSystem* fs, const std::string& pictures_path,
                             const std::string& labels_path, uint32_t side) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto pictures_map, MapIdx(fs, pictures_path));
  SIGNVOTE_ASSIGN_OR_RETURN(const auto labels_map, MapIdx(fs, labels_path));
  const absl::StatusOr<IdxPictures> pictures = ParseIdxPictures(pictures_map->data());
  if (!pictures.ok()) return Bad(pictures_path, pictures.status());
  const absl::StatusOr<std::span<const uint8_t>> labels = ParseIdxLabels(labels_map->data());
  if (!labels.ok()) return Bad(labels_path, labels.status());
  if (labels->size() != pictures->count) {
    return Bad(labels_path, absl::StrCat(labels->size(), " labels are not of the ", pictures->count,
                                         " pictures beside it; download both anew"));
  }
  SIGNVOTE_RETURN_IF_ERROR(CheckFits(fs, pictures_path, pictures->count, side));
  Part part;
  part.Reserve(pictures->count, side);
  for (uint32_t k = 0; k < pictures->count; ++k) {
    const absl::StatusOr<std::vector<uint8_t>> grey =
        ScaleGrey(pictures->Picture(k), pictures->width, pictures->height, side);
    if (!grey.ok()) return Bad(pictures_path, grey.status());
    part.Add(*grey, (*labels)[k]);
  }
  for (const auto& [map, path] :
       {std::pair(pictures_map.get(), &pictures_path), std::pair(labels_map.get(), &labels_path)}) {
    if (map->cut())
      return Bad(*path, absl::DataLossError("was cut while it was read; put the whole file back"));
  }
  return part;
}

// nullopt: the folder has no such part.
absl::StatusOr<std::optional<Part>> ReadIdxPart(FileSystem* fs, const std::string& path,
                                                const std::vector<std::string>& files,
                                                const std::string& part, uint32_t side) {
  SIGNVOTE_ASSIGN_OR_RETURN(const auto pictures, FindIdx(files, part + "-images", 3));
  SIGNVOTE_ASSIGN_OR_RETURN(const auto labels, FindIdx(files, part + "-labels", 1));
  if (!pictures.has_value() && !labels.has_value()) return std::nullopt;
  if (!pictures.has_value() || !labels.has_value()) {
    return Bad(path,
               absl::StrCat("there is no file ", part,
                            pictures.has_value() ? "-labels-idx1-ubyte" : "-images-idx3-ubyte",
                            "; put it beside ",
                            std::string(NameOf(pictures.has_value() ? *pictures : *labels))));
  }
  return ReadIdx(fs, *pictures, *labels, side);
}

// Every tenth picture of a class goes to `held_out`.
void HoldOut(size_t size, Part* all, Part* held_out) {
  std::vector<size_t> seen(size_t{UINT8_MAX} + 1);
  Part train;
  for (size_t k = 0; k < all->count(); ++k) {
    const uint16_t label = all->labels[k];
    Part& to = ++seen[label] % kHeldOutOf == 0 ? *held_out : train;
    to.Add(std::span(all->grey).subspan(k * size, size), label);
  }
  *all = std::move(train);
}

absl::StatusOr<Pictures> OpenIdx(FileSystem* fs, const std::string& path,
                                 const std::vector<std::string>& files, Part train,
                                 const PicturesOptions& options) {
  Part held_out;
  std::string source;
  for (const char* const part : {"t10k", "test"}) {
    SIGNVOTE_ASSIGN_OR_RETURN(std::optional<Part> read,
                              ReadIdxPart(fs, path, files, part, options.side));
    if (!read.has_value()) continue;
    held_out = *std::move(read);
    source = absl::StrCat(" (", part, ")");
    break;
  }
  if (held_out.count() == 0) HoldOut(size_t{options.side} * options.side, &train, &held_out);
  if (train.count() == 0 || held_out.count() == 0)
    return Bad(path, "too few pictures to train on some and hold others out; give more");
  const uint16_t largest = *std::max_element(train.labels.begin(), train.labels.end());
  if (largest == 0)
    return Bad(path, "every label is 0, and there is nothing to tell apart; give two classes");
  const auto stranger = std::find_if(held_out.labels.begin(), held_out.labels.end(),
                                     [largest](uint16_t label) { return label > largest; });
  if (stranger != held_out.labels.end()) {
    return Bad(path, absl::StrCat("the class ", *stranger, " is only among what is held out",
                                  "; take files that belong together"));
  }
  std::string line =
      absl::StrFormat("%s: %d pictures of %d classes, %d held out%s", path,
                      train.count() + held_out.count(), largest + 1, held_out.count(), source);
  return Pictures{.data = std::make_unique<PictureDataset>(std::move(train), std::move(held_out),
                                                           options, std::move(line)),
                  .classes = largest + 1u};
}

}  // namespace

absl::StatusOr<Pictures> OpenPictures(FileSystem* fs, const std::string& path,
                                      const PicturesOptions& options) {
  SIGNVOTE_CHECK(options.held_out > 0);
  const absl::StatusOr<bool> folder = fs->IsDirectory(path);
  if (!folder.ok()) return WithContext(folder.status(), "--data");
  if (!*folder) {
    return Bad(path,
               "is a file; give a folder with a folder of pictures for each class, or with "
               "MNIST's files");
  }
  absl::StatusOr<std::vector<std::string>> files = fs->ListFiles(path);
  if (!files.ok()) return WithContext(files.status(), "--data");
  SIGNVOTE_ASSIGN_OR_RETURN(std::optional<Part> train,
                            ReadIdxPart(fs, path, *files, "train", options.side));
  if (train.has_value()) return OpenIdx(fs, path, *files, *std::move(train), options);
  return OpenFolder(fs, path, *std::move(files), options);
}

}  // namespace signvote::lab
