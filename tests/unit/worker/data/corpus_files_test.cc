#include "worker/data/corpus_files.h"

#include <gtest/gtest.h>

namespace signvote {
namespace {

using Files = std::vector<std::string>;

Files HeldOut(Files files, DataFormat format) {
  return ChooseCorpusFiles("/d", std::move(files), format).held_out;
}

TEST(CorpusFilesTest, ATextNeedsATwinThatIsTrainedOn) {
  const auto text = DataFormat::kText;
  EXPECT_EQ(HeldOut({"/d/train.txt", "/d/val.txt"}, text), Files{"/d/val.txt"});
  EXPECT_EQ(HeldOut({"/d/Test-1.txt", "/d/TRAIN-0.txt", "/d/TRAIN-1.txt"}, text),
            Files{"/d/Test-1.txt"});
  EXPECT_EQ(HeldOut({"/d/w.test.tokens", "/d/w.train.tokens", "/d/w.valid.tokens"}, text),
            (Files{"/d/w.test.tokens", "/d/w.valid.tokens"}));
  EXPECT_EQ(HeldOut({"/d/training.txt", "/d/validation.txt"}, text), Files{"/d/validation.txt"});
  EXPECT_EQ(HeldOut({"/d/train/0.txt", "/d/val/0.txt", "/d/val/1.txt"}, text),
            (Files{"/d/val/0.txt", "/d/val/1.txt"}));
  // The test of a test: one of its words stands for the split.
  EXPECT_EQ(HeldOut({"/d/test/train.txt", "/d/test/val.txt"}, text), Files{"/d/test/val.txt"});
  for (const Files& none :
       {Files{"/d/a.txt", "/d/val.txt"}, Files{"/d/test_ops.h", "/d/train.txt"},
        Files{"/d/train.md", "/d/val.txt"}, Files{"/d/interval.txt", "/d/intertrain.txt"},
        Files{"/d/latest.txt", "/d/latrain.txt"}}) {
    EXPECT_EQ(HeldOut(none, text), Files{}) << none[0];
  }
}

TEST(CorpusFilesTest, TheWordsOfTheCorpusFolderItselfDoNotCount) {
  const auto chosen = ChooseCorpusFiles("/train/val", {"/train/val/a.bin", "/train/val/b.bin"},
                                        DataFormat::kNanoGpt);
  EXPECT_EQ(chosen.held_out, Files{});
  EXPECT_EQ(chosen.train, (Files{"/train/val/a.bin", "/train/val/b.bin"}));
}

TEST(CorpusFilesTest, AShardIsHeldOutByItsNameAloneOrByItsFoldersTwin) {
  const auto shards = DataFormat::kLlmc;
  EXPECT_EQ(HeldOut({"/d/a.bin", "/d/fineweb_val_000000.bin"}, shards),
            Files{"/d/fineweb_val_000000.bin"});
  EXPECT_EQ(HeldOut({"/d/train/0.bin", "/d/valid/0.bin"}, shards), Files{"/d/valid/0.bin"});
  EXPECT_EQ(HeldOut({"/d/a/0.bin", "/d/valid/0.bin"}, shards), Files{});
}

TEST(CorpusFilesTest, WhereAllWouldBeHeldOutNoneIs) {
  const auto chosen = ChooseCorpusFiles("/d", {"/d/test.bin", "/d/val.bin"}, DataFormat::kNanoGpt);
  EXPECT_EQ(chosen.train, (Files{"/d/test.bin", "/d/val.bin"}));
  EXPECT_EQ(chosen.held_out, Files{});
}

TEST(CorpusFilesTest, AListNamesTheFirstAndCountsTheRest) {
  EXPECT_EQ(ListedFiles("/d", {}), "");
  EXPECT_EQ(ListedFiles("/d", {"/d/a", "/d/b/c"}), "a, b/c");
  EXPECT_EQ(ListedFiles("/d/", {"/d/a\nb", "/d/b", "/d/c", "/d/e", "/d/f"}),
            "a b, b, c and 2 more");
}

}  // namespace
}  // namespace signvote
