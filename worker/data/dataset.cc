#include "worker/data/dataset.h"

#include <dlfcn.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/coin.h"
#include "common/exit_codes.h"
#include "common/rng.h"
#include "common/status.h"
#include "worker/data/held_out_windows.h"
#include "worker/data/token_source.h"
#include "worker/data/window_order.h"

namespace signvote {
namespace {

// Streams of the generator: synthetic minibatches hash their key, in a domain of their own, because
// coins have the same seed; held-out ones and cluster centres have seeds of their own, so that every
// run of every seed is measured on the same data.
constexpr uint64_t kHeldOutSeed = 0x68656c646f7574;  // "heldout"
constexpr uint64_t kCentreSeed = 0x63656e747265;     // "centre"
constexpr uint64_t kBlockTokens = 1 << 16;           // that a check reads between looks at its stop

Rng TrainRng(const BatchKey& key) {
  return Rng(DomainSeed(kDataDomain, key.seed),
             Mix(uint64_t{key.share.value()} + 1, key.data_step.value(), key.micro));
}

// Windows of so many tokens and their successors.
class WindowDataset : public Dataset {
 public:
  WindowDataset(std::unique_ptr<TokenSource> source, const DatasetOptions& options)
      : source_(std::move(source)),
        options_(options),
        order_(source_->train_tokens(), options.length) {
    if (options_.eval_targets == 0) return;
    held_out_.emplace(source_->tokens() - source_->train_tokens(), options_.eval_length,
                      options_.eval_targets);
  }

  absl::Status TrainBatch(const BatchKey& key, Batch* batch) const override {
    const uint64_t micro = key.data_step.value() * key.micros + key.micro;
    batch->rows = options_.rows;
    batch->length = options_.length;
    return Fill(batch, [&](uint64_t row) {
      return order_.First(key.seed, key.share, micro * options_.rows + row);
    });
  }
  uint64_t held_out_windows() const override {
    return held_out_.has_value() ? held_out_->count() : 0;
  }
  absl::Status HeldOut(uint64_t first, uint64_t count, Batch* batch) const override {
    batch->rows = count;
    batch->length = options_.eval_length;
    return Fill(batch, [&](uint64_t row) {
      return source_->train_tokens() + held_out_->First(first + row);
    });
  }
  absl::Status CheckAll(const std::stop_token& stop) const override {
    if (options_.vocabulary > source_->largest_possible_token()) return absl::OkStatus();
    std::vector<int64_t> block;
    for (uint64_t first = 0; first < source_->tokens(); first += block.size()) {
      if (stop.stop_requested()) return absl::CancelledError("stopped");
      block.resize(std::min(kBlockTokens, source_->tokens() - first));
      SIGNVOTE_RETURN_IF_ERROR(ReadWindow(first, &block));
    }
    return absl::OkStatus();
  }
  std::string description() const override {
    std::string line = absl::StrFormat("%s: %d %ss in %d files, %d held out", options_.path,
                                       source_->tokens(), target_unit(), source_->files(),
                                       source_->tokens() - source_->train_tokens());
    const std::string& held_out = source_->held_out_files();
    if (!held_out.empty()) absl::StrAppend(&line, " (", held_out, ")");
    const std::string& left_out = source_->left_out_files();
    if (!left_out.empty()) absl::StrAppend(&line, "; left out: ", left_out);
    return line;
  }
  std::string target_unit() const override {
    return options_.format == DataFormat::kText ? "byte" : "token";
  }

  // Looks at the first window of each file, so that tokens of another vocabulary are told at the
  // start and not when a minibatch meets them.
  absl::Status CheckBeginnings() const {
    std::vector<int64_t> window(options_.length + 1);
    for (const uint64_t first : source_->file_starts()) {
      window.resize(std::min<uint64_t>(options_.length + 1, source_->tokens() - first));
      SIGNVOTE_RETURN_IF_ERROR(ReadWindow(first, &window));
    }
    return absl::OkStatus();
  }

 private:
  // Fills `window` with the tokens from `first` on.
  absl::Status ReadWindow(uint64_t first, std::vector<int64_t>* window) const {
    source_->Read(first, window->size(), window->data());
    if (absl::Status whole = source_->CheckWhole(); !whole.ok())
      return WithContext(std::move(whole), "--data");
    for (uint64_t i = 0; i < window->size(); ++i) {
      if ((*window)[i] < static_cast<int64_t>(options_.vocabulary)) continue;
      return WithExitCode(
          absl::InvalidArgumentError(absl::StrFormat(
              "--data %s: token %d at position %d is outside the model's vocabulary of %d; give "
              "--vocab-size or another model",
              options_.path, (*window)[i], first + i, options_.vocabulary)),
          ExitCode::kBadInput);
    }
    return absl::OkStatus();
  }

  // Row r of the batch, whose sizes are set, is the window that begins at first(r).
  template <typename FirstToken>
  absl::Status Fill(Batch* batch, FirstToken first) const {
    const uint64_t length = batch->length;
    batch->inputs.resize(batch->rows * length);
    batch->targets.resize(batch->rows * length);
    std::vector<int64_t> window(length + 1);
    for (uint64_t row = 0; row < batch->rows; ++row) {
      SIGNVOTE_RETURN_IF_ERROR(ReadWindow(first(row), &window));
      std::copy(window.begin(), window.end() - 1,
                batch->inputs.begin() + static_cast<int64_t>(row * length));
      std::copy(window.begin() + 1, window.end(),
                batch->targets.begin() + static_cast<int64_t>(row * length));
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<TokenSource> source_;
  const DatasetOptions options_;
  const WindowOrder order_;
  std::optional<HeldOutWindows> held_out_;
};

// Gaussian-like clusters around seeded centres: class k's samples are centre_k/4 + noise of
// deviation 1, so that neighbouring classes overlap and the loss has a floor above zero.
class SyntheticDataset : public Dataset {
 public:
  explicit SyntheticDataset(const DatasetOptions& options) : options_(options) {
    Rng rng(kCentreSeed, options.features);
    centres_.resize(options.classes * options.features);
    for (float& value : centres_) value = static_cast<float>(rng.Bell() * 0.25);
  }

  absl::Status TrainBatch(const BatchKey& key, Batch* batch) const override {
    Resize(options_.rows, batch);
    Rng rng = TrainRng(key);
    for (uint64_t row = 0; row < options_.rows; ++row) Draw(&rng, row, batch);
    return absl::OkStatus();
  }
  uint64_t held_out_windows() const override { return options_.eval_targets; }
  absl::Status HeldOut(uint64_t first, uint64_t count, Batch* batch) const override {
    Resize(count, batch);
    for (uint64_t row = 0; row < count; ++row) {
      Rng rng(kHeldOutSeed, first + row);
      Draw(&rng, row, batch);
    }
    return absl::OkStatus();
  }
  absl::Status CheckAll(const std::stop_token&) const override { return absl::OkStatus(); }
  std::string description() const override {
    return absl::StrFormat("synthetic: %d classes of %d features", options_.classes,
                           options_.features);
  }
  std::string target_unit() const override { return "sample"; }

 private:
  void Resize(uint64_t rows, Batch* batch) const {
    batch->rows = rows;
    batch->length = 0;
    batch->values.resize(rows * options_.features);
    batch->targets.resize(rows);
  }
  void Draw(Rng* rng, uint64_t row, Batch* batch) const {
    const uint64_t features = options_.features;
    const uint64_t label = rng->Below(options_.classes);
    batch->targets[row] = static_cast<int64_t>(label);
    for (uint64_t i = 0; i < features; ++i) {
      batch->values[row * features + i] =
          centres_[label * features + i] + static_cast<float>(rng->Bell());
    }
  }

  const DatasetOptions options_;
  std::vector<float> centres_;  // [classes, features]
};

// Whether each part holds a window.
absl::Status CheckSizes(const TokenSource& source, const DatasetOptions& options) {
  const uint64_t held_out = source.tokens() - source.train_tokens();
  const auto too_small = [&](const char* flag, uint64_t length, const char* part,
                             const char* remedy) {
    const std::string unit = options.format == DataFormat::kText ? "byte" : "token";
    return WithExitCode(
        absl::InvalidArgumentError(absl::StrFormat(
            "--data %s: too small: %d %ss, of which %d are held out; %s %d needs %d "
            "%s: give more text%s",
            options.path, source.tokens(), unit, held_out, flag, length, length + 1, part, remedy)),
        ExitCode::kBadInput);
  };
  if (source.train_tokens() <= options.length) {
    return too_small("--sequence", options.length, "beside them", " or a shorter --sequence");
  }
  if (options.eval_targets > 0 && held_out <= options.eval_length) {
    return too_small("--eval-sequence", options.eval_length, "of these",
                     ", a shorter --eval-sequence, or --eval off");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DataFormat> ParseDataFormat(const std::string& text) {
  if (text == "text") return DataFormat::kText;
  if (text == "nanogpt") return DataFormat::kNanoGpt;
  if (text == "llmc") return DataFormat::kLlmc;
  if (text == "synthetic") return DataFormat::kSynthetic;
  return absl::InvalidArgumentError(
      absl::StrCat("--data-format ", text, ": choose text, nanogpt, llmc or synthetic"));
}

std::string DefaultCorpusPath() {
  if (const char* root = std::getenv("LIBTORCH"); root != nullptr && *root != '\0') {
    return absl::StrCat(root, "/include");
  }
  // The headers beside the library that this process runs with, wherever it was found.
  void* const loaded = ::dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (loaded == nullptr) return "";
  char folder[PATH_MAX] = "";
  const bool known = ::dlinfo(loaded, RTLD_DI_ORIGIN, folder) == 0;
  (void)::dlclose(loaded);  // gives back dlopen's reference; the program holds its own
  if (!known) return "";
  const std::string lib = folder;
  return lib.substr(0, lib.rfind('/')) + "/include";
}

absl::StatusOr<std::unique_ptr<Dataset>> OpenDataset(FileSystem* fs, const DatasetOptions& given) {
  if (given.format == DataFormat::kSynthetic) {
    return std::unique_ptr<Dataset>(std::make_unique<SyntheticDataset>(given));
  }
  DatasetOptions options = given;
  if (options.path.empty() && options.format == DataFormat::kText)
    options.path = DefaultCorpusPath();
  if (options.path.empty()) {
    return WithExitCode(absl::InvalidArgumentError("--data is missing: give a file or folder"),
                        ExitCode::kUsage);
  }
  absl::StatusOr<std::unique_ptr<TokenSource>> source =
      TokenSource::Open(fs, options.path, options.format);
  if (!source.ok()) return WithContext(source.status(), "--data");
  SIGNVOTE_RETURN_IF_ERROR(CheckSizes(**source, options));
  auto dataset = std::make_unique<WindowDataset>(*std::move(source), options);
  SIGNVOTE_RETURN_IF_ERROR(dataset->CheckBeginnings());
  return std::unique_ptr<Dataset>(std::move(dataset));
}

}  // namespace signvote
