#pragma once
// Which files of a folder are a corpus, and which of them are never trained on. docs/data.md, "Held
// out".
//
// A name is taken in words: runs of letters, whatever their case. So "interval_003.bin" has no word
// "val", and "TinyStories-VALID.txt" has the word "valid". A file is held out when
//   - it is a shard whose name has one of the words val, valid, validation, test; or
//   - it or its folder has one of them, and another file of the corpus has the same words with "train"
//     or "training" in its place: "wiki.test.tokens" beside "wiki.train.tokens",
//     "val/0001.txt" beside "train/0000.txt".
// A lone "test" is not enough for texts: folders of programs are full of it.

#include <string>
#include <vector>

#include "worker/data/dataset.h"

namespace signvote {

struct CorpusFiles {
  std::vector<std::string> train;     // in order of path
  std::vector<std::string> held_out;  // in order of path; empty: none is by its name
  std::vector<std::string> left_out;  // of shards' folders: what is no ".bin"
};

// Pure. `folder` is what every path of `files` begins with; its own words do not count. `files` in
// order of path. Where all would be held out, none is.
CorpusFiles ChooseCorpusFiles(const std::string& folder, std::vector<std::string> files,
                              DataFormat format);

// "val_0.bin, val_1.bin and 3 more": relative to `folder`.
std::string ListedFiles(const std::string& folder, const std::vector<std::string>& files);

}  // namespace signvote
