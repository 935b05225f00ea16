#include "worker/data/corpus_files.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/text.h"

namespace signvote {
namespace {

constexpr std::array<std::string_view, 4> kHeldOutWords = {"val", "valid", "validation", "test"};
constexpr std::array<std::string_view, 2> kTrainWords = {"train", "training"};
constexpr size_t kListed = 3;
constexpr size_t kNameBytesMax = 80;

using Words = std::vector<std::string>;

bool IsHeldOutWord(std::string_view word) {
  return std::find(kHeldOutWords.begin(), kHeldOutWords.end(), word) != kHeldOutWords.end();
}

// In lower case.
Words WordsOf(std::string_view name) {
  Words words;
  size_t begin = 0;
  while (begin < name.size()) {
    size_t end = begin;
    while (end < name.size() && absl::ascii_isalpha(static_cast<unsigned char>(name[end]))) ++end;
    if (end > begin) words.push_back(absl::AsciiStrToLower({name.data() + begin, end - begin}));
    begin = end + 1;
  }
  return words;
}

std::string_view Relative(const std::string& folder, const std::string& path) {
  std::string_view name = path;
  if (name.starts_with(folder)) name.remove_prefix(folder.size());
  while (name.starts_with('/')) name.remove_prefix(1);
  return name;
}

std::string_view FileName(std::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

// Whether some file of `corpus` has these words but for "train" in the place of one that holds out.
bool HasTrainTwin(Words words, const absl::flat_hash_set<Words>& corpus) {
  for (std::string& word : words) {
    if (!IsHeldOutWord(word)) continue;
    for (const std::string_view train : kTrainWords) {
      std::string mine = std::exchange(word, std::string(train));
      const bool found = corpus.contains(words);
      word = std::move(mine);
      if (found) return true;
    }
  }
  return false;
}

}  // namespace

CorpusFiles ChooseCorpusFiles(const std::string& folder, std::vector<std::string> files,
                              DataFormat format) {
  const bool text = format == DataFormat::kText;
  CorpusFiles chosen;
  if (!text) {
    const auto others = std::stable_partition(
        files.begin(), files.end(), [](const std::string& file) { return file.ends_with(".bin"); });
    chosen.left_out.assign(std::make_move_iterator(others), std::make_move_iterator(files.end()));
    files.erase(others, files.end());
  }
  std::vector<Words> words;
  words.reserve(files.size());
  for (const std::string& file : files) words.push_back(WordsOf(Relative(folder, file)));
  const absl::flat_hash_set<Words> corpus(words.begin(), words.end());
  for (size_t k = 0; k < files.size(); ++k) {
    const Words name = WordsOf(FileName(files[k]));
    const bool named = !text && std::any_of(name.begin(), name.end(), IsHeldOutWord);
    const bool held_out = named || HasTrainTwin(words[k], corpus);
    (held_out ? chosen.held_out : chosen.train).push_back(std::move(files[k]));
  }
  if (chosen.train.empty()) chosen.train.swap(chosen.held_out);
  return chosen;
}

std::string ListedFiles(const std::string& folder, const std::vector<std::string>& files) {
  std::string listed;
  for (size_t k = 0; k < std::min(files.size(), kListed); ++k) {
    absl::StrAppend(&listed, k > 0 ? ", " : "",
                    ForPeople(Relative(folder, files[k]), kNameBytesMax));
  }
  if (files.size() > kListed) absl::StrAppend(&listed, " and ", files.size() - kListed, " more");
  return listed;
}

}  // namespace signvote
