#include "lab/tasks/text.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/coin_mix.h"
#include "common/rng.h"
#include "worker/data/held_out_windows.h"
#include "worker/data/window_order.h"

namespace signvote::lab {
namespace {

constexpr uint64_t kTextDomain = 0x317478657462616cull;  // "labtext1"
constexpr size_t kWords = 240;
constexpr size_t kFollowers = 12;          // words that may follow a word
constexpr uint64_t kSentenceWordsMin = 4;  // and up to twice as many more
constexpr uint64_t kHeldOutOf = 20;        // one part in so many is held out

std::string Word(Rng* rng) {
  static constexpr const char* kOnsets[] = {"b",  "d", "f", "g",  "k",  "l",  "m",  "n",
                                            "p",  "r", "s", "t",  "v",  "st", "br", "tr",
                                            "sh", "",  "h", "gr", "pl", "th", "w",  "c"};
  static constexpr const char* kVowels[] = {"a", "e", "i", "o", "u", "ai", "ea", "ou"};
  static constexpr const char* kCodas[] = {"", "", "n", "r", "s", "l", "t", "nd", "m", "ck"};
  std::string word;
  const uint64_t syllables = 1 + rng->Below(3);
  for (uint64_t k = 0; k < syllables; ++k) {
    absl::StrAppend(&word, kOnsets[rng->Below(std::size(kOnsets))],
                    kVowels[rng->Below(std::size(kVowels))], kCodas[rng->Below(std::size(kCodas))]);
  }
  return word;
}

// An index below `count`, small ones more often: the smaller of two.
uint64_t Early(Rng* rng, uint64_t count) {
  const uint64_t first = rng->Below(count);
  return std::min(first, rng->Below(count));
}

class TextDataset final : public Dataset {
 public:
  TextDataset(std::string text, const TextWindowsOptions& options)
      : text_(std::move(text)),
        options_(options),
        train_bytes_(text_.size() - text_.size() / kHeldOutOf),
        order_(train_bytes_, options.length) {
    SIGNVOTE_CHECK(text_.size() - train_bytes_ > options_.length);
    if (options_.held_out > 0) {
      held_out_.emplace(text_.size() - train_bytes_, options_.length,
                        options_.held_out * options_.length);
    }
  }

  absl::Status TrainBatch(const BatchKey& key, Batch* batch) const override {
    const uint64_t micro = key.data_step.value() * key.micros + key.micro;
    Fill(options_.rows, batch, [&](uint64_t row) {
      return order_.First(key.seed, key.share, micro * options_.rows + row);
    });
    return absl::OkStatus();
  }
  uint64_t held_out_windows() const override {
    return held_out_.has_value() ? held_out_->count() : 0;
  }
  absl::Status HeldOut(uint64_t first, uint64_t count, Batch* batch) const override {
    Fill(count, batch, [&](uint64_t row) { return train_bytes_ + held_out_->First(first + row); });
    return absl::OkStatus();
  }
  absl::Status CheckAll(const std::stop_token&) const override { return absl::OkStatus(); }
  std::string description() const override { return options_.description; }
  std::string target_unit() const override { return "byte"; }

 private:
  template <typename First>
  void Fill(uint64_t rows, Batch* batch, First first) const {
    const uint64_t length = options_.length;
    batch->rows = rows;
    batch->length = length;
    batch->inputs.resize(rows * length);
    batch->targets.resize(rows * length);
    for (uint64_t row = 0; row < rows; ++row) {
      const char* const window = text_.data() + first(row);
      for (uint64_t i = 0; i < length; ++i) {
        batch->inputs[row * length + i] = static_cast<unsigned char>(window[i]);
        batch->targets[row * length + i] = static_cast<unsigned char>(window[i + 1]);
      }
    }
  }

  const std::string text_;
  const TextWindowsOptions options_;
  const uint64_t train_bytes_;
  const WindowOrder order_;
  std::optional<HeldOutWindows> held_out_;
};

}  // namespace

std::string MadeUpText(uint64_t bytes, uint64_t seed) {
  Rng rng(DomainSeed(kTextDomain, seed), /*stream=*/0);
  std::vector<std::string> words;
  for (size_t k = 0; k < kWords; ++k) words.push_back(Word(&rng));
  std::vector<std::array<size_t, kFollowers>> followers(kWords);
  for (auto& row : followers)
    for (size_t& next : row) next = Early(&rng, kWords);
  std::string text;
  size_t word = 0;
  while (text.size() < bytes) {
    const uint64_t length = kSentenceWordsMin + rng.Below(2 * kSentenceWordsMin);
    std::string sentence;
    for (uint64_t k = 0; k < length; ++k) {
      // Now and then any word: what a model cannot know.
      word = rng.Below(10) == 0 ? Early(&rng, kWords) : followers[word][Early(&rng, kFollowers)];
      absl::StrAppend(&sentence, k == 0 ? "" : rng.Below(12) == 0 ? ", " : " ", words[word]);
    }
    sentence[0] = static_cast<char>(sentence[0] - 'a' + 'A');
    absl::StrAppend(&text, sentence, rng.Below(6) == 0 ? ".\n" : ". ");
  }
  return text;
}

std::unique_ptr<Dataset> MakeTextDataset(std::string text, const TextWindowsOptions& options) {
  return std::make_unique<TextDataset>(std::move(text), options);
}

}  // namespace signvote::lab
