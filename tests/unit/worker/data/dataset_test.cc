#include "worker/data/dataset.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>

#include <gtest/gtest.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/rng.h"
#include "tests/support/page_vectors.h"
#include "worker/data/held_out_windows.h"
#include "worker/data/token_source.h"
#include "worker/data/window_order.h"

namespace signvote {
namespace {

namespace stdfs = std::filesystem;

class DatasetTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (stdfs::temp_directory_path() / "signvote_data_XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { stdfs::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& bytes) {
    const stdfs::path path = folder_ / name;
    stdfs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path.string();
  }
  template <typename Token>
  static std::string Bytes(const std::vector<Token>& tokens) {
    return {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(Token)};
  }
  static std::string LlmcHeader(int32_t magic, int32_t version, int32_t tokens) {
    std::vector<int32_t> header(256, 0);
    header[0] = magic;
    header[1] = version;
    header[2] = tokens;
    return Bytes(header);
  }
  absl::StatusOr<std::unique_ptr<Dataset>> Open(DatasetOptions options) {
    return OpenDataset(FileSystem::Posix(), options);
  }

  stdfs::path folder_;
};

// Position i holds a value from which i can be read back; none is zero, which no text has.
std::string Positions(size_t count) {
  std::string text(count, ' ');
  for (size_t i = 0; i < count; ++i) text[i] = static_cast<char>(1 + i % 251);
  return text;
}

BatchKey Key(uint64_t seed, uint32_t share, uint64_t step, uint32_t micro = 0) {
  return {seed, Share(share), DataStep(step), micro};
}

TEST_F(DatasetTest, AMinibatchIsAFunctionOfSeedShareAndStepAlone) {
  DatasetOptions options;
  options.path = Write("corpus.txt", Positions(100000));
  options.length = 16;
  const auto first = Open(options);
  const auto second = Open(options);
  ASSERT_TRUE(first.ok()) << first.status();
  Batch a, b;
  ASSERT_TRUE((*first)->TrainBatch(Key(1, 2, 3), &a).ok());
  ASSERT_TRUE(
      (*first)->TrainBatch(Key(1, 2, 4), &b).ok());  // another call in between changes nothing
  ASSERT_TRUE((*second)->TrainBatch(Key(1, 2, 3), &b).ok());
  EXPECT_EQ(a.inputs, b.inputs);
  EXPECT_EQ(a.targets, b.targets);
  for (const BatchKey& other : {Key(2, 2, 3), Key(1, 3, 3), Key(1, 2, 4), Key(1, 2, 3, 1)}) {
    ASSERT_TRUE((*first)->TrainBatch(other, &b).ok());
    EXPECT_NE(a.inputs, b.inputs);
  }
}

TEST_F(DatasetTest, ADataStepOfSeveralMicroBatchesGoesOnWhereTheLastEnded) {
  DatasetOptions options;
  options.path = Write("corpus.txt", Positions(100000));
  options.length = 16;
  options.rows = 2;
  const auto data = Open(options);
  ASSERT_TRUE(data.ok()) << data.status();
  Batch whole, part;
  for (uint32_t k = 0; k < 6; ++k) {
    ASSERT_TRUE((*data)->TrainBatch(Key(1, 2, k), &whole).ok());
    BatchKey key = Key(1, 2, k / 3, k % 3);
    key.micros = 3;
    ASSERT_TRUE((*data)->TrainBatch(key, &part).ok());
    EXPECT_EQ(part.inputs, whole.inputs) << k;
  }
}

TEST_F(DatasetTest, TargetsAreTheNextTokens) {
  DatasetOptions options;
  options.path = Write("corpus.txt", Positions(10000));
  options.rows = 4;
  options.length = 32;
  const auto data = Open(options);
  ASSERT_TRUE(data.ok()) << data.status();
  Batch batch;
  ASSERT_TRUE((*data)->TrainBatch(Key(5, 0, 0), &batch).ok());
  ASSERT_EQ(batch.inputs.size(), 4u * 32u);
  for (size_t i = 0; i < batch.inputs.size(); ++i)
    EXPECT_EQ(batch.targets[i], batch.inputs[i] % 251 + 1);
}

TEST_F(DatasetTest, HeldOutBytesAreNeverTrainedOn) {
  // Training bytes are 'a', the last 5 % are 'b'.
  DatasetOptions options;
  options.path = Write("corpus.txt", std::string(9500, 'a') + std::string(500, 'b'));
  options.length = 20;
  options.eval_targets = 10'000;
  options.eval_length = 30;
  const auto data = Open(options);
  ASSERT_TRUE(data.ok()) << data.status();
  Batch batch;
  for (uint64_t step = 0; step < 500; ++step) {
    ASSERT_TRUE((*data)->TrainBatch(Key(9, 0, step), &batch).ok());
    for (const auto* tokens : {&batch.inputs, &batch.targets}) {
      ASSERT_EQ(std::set<int64_t>(tokens->begin(), tokens->end()), std::set<int64_t>{'a'});
    }
  }
  ASSERT_EQ((*data)->held_out_windows(), 16u) << "all that there are";
  ASSERT_TRUE((*data)->HeldOut(0, 16, &batch).ok());
  for (const auto* tokens : {&batch.inputs, &batch.targets}) {
    ASSERT_EQ(tokens->size(), 16u * 30);
    ASSERT_EQ(std::set<int64_t>(tokens->begin(), tokens->end()), std::set<int64_t>{'b'});
  }
}

TEST_F(DatasetTest, HeldOutWindowsAreTheSameWhateverAMinibatchIs) {
  DatasetOptions options;
  options.path = Write("corpus.txt", Positions(100'000));
  options.eval_targets = 1000;
  options.eval_length = 50;
  Batch expected, batch;
  std::optional<uint64_t> hash;
  for (const auto& [rows, length] : {std::pair(8u, 128u), {1u, 128u}, {8u, 16u}, {64u, 1024u}}) {
    options.rows = rows;
    options.length = length;
    const auto data = Open(options);
    ASSERT_TRUE(data.ok()) << data.status();
    ASSERT_EQ((*data)->held_out_windows(), 20u);
    ASSERT_TRUE((*data)->HeldOut(0, 20, &batch).ok());
    if (!hash.has_value()) {
      expected = batch;
      hash = *HashOfHeldOut(**data);
    }
    EXPECT_EQ(batch.inputs, expected.inputs);
    EXPECT_EQ(batch.targets, expected.targets);
    EXPECT_EQ(*HashOfHeldOut(**data), *hash);
    // A slice of them is a part of them.
    ASSERT_TRUE((*data)->HeldOut(7, 2, &batch).ok());
    EXPECT_EQ(batch.inputs, std::vector<int64_t>(expected.inputs.begin() + 7 * 50,
                                                 expected.inputs.begin() + 9 * 50));
  }
}

TEST_F(DatasetTest, TheHashNamesWhatIsMeasuredAndNotWhereItLies) {
  DatasetOptions options;
  options.eval_targets = 1000;
  options.eval_length = 50;
  const auto hash = [&](const std::string& path) {
    options.path = path;
    const auto data = Open(options);
    EXPECT_TRUE(data.ok()) << data.status();
    return data.ok() ? *HashOfHeldOut(**data) : 0;
  };
  std::string text = Positions(100'000);
  const uint64_t one = hash(Write("one.txt", text));
  // The same tokens in two files of a folder.
  (void)Write("folder/a.txt", text.substr(0, 60'000));
  (void)Write("folder/b.txt", text.substr(60'000));
  EXPECT_EQ(hash((folder_ / "folder").string()), one);
  // What is trained on is not part of it; a byte of what is measured is.
  text[100] = 'x';
  EXPECT_EQ(hash(Write("two.txt", text)), one);
  text[95'000] = static_cast<char>(text[95'000] + 1);
  EXPECT_NE(hash(Write("three.txt", text)), one);
  options.eval_targets = 950;
  EXPECT_NE(hash((folder_ / "one.txt").string()), one);
}

TEST_F(DatasetTest, AFolderIsItsFilesInOrderOfPathAcrossFileBorders) {
  const std::string text =
      Positions((3 << 20) + 1234);  // the large file is mapped, the small ones are copied
  Write("b/large.txt", text.substr(1000, 3 << 20));
  Write("a.txt", text.substr(0, 1000));
  Write("empty.txt", "");
  Write("c.txt", text.substr(1000 + (3 << 20)));
  const auto source = TokenSource::Open(FileSystem::Posix(), folder_.string(), DataFormat::kText);
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ((*source)->tokens(), text.size());
  std::vector<int64_t> tokens(text.size());
  (*source)->Read(0, text.size(), tokens.data());
  for (size_t i = 0; i < text.size(); ++i) ASSERT_EQ(tokens[i], static_cast<uint8_t>(text[i])) << i;
  (*source)->Read(990, 20, tokens.data());  // over a border
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(tokens[i], static_cast<uint8_t>(text[990 + i]));
}

TEST_F(DatasetTest, NanoGptShardsAreHeaderlessUint16) {
  std::vector<uint16_t> tokens(1000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint16_t>(60000 + i);
  const auto source = TokenSource::Open(FileSystem::Posix(), Write("train.bin", Bytes(tokens)),
                                        DataFormat::kNanoGpt);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->tokens(), 1000u);
  EXPECT_EQ((*source)->train_tokens(), 950u);
  int64_t token = 0;
  (*source)->Read(999, 1, &token);
  EXPECT_EQ(token, 60999);
}

TEST_F(DatasetTest, BothVersionsOfLlmcShardsAreReadAndValShardsAreHeldOut) {
  std::vector<uint16_t> narrow(100, 7);
  std::vector<uint32_t> wide(50, 128000);
  Write("x_val_000000.bin", LlmcHeader(20240801, 7, 50) + Bytes(wide));
  Write("y_train_000001.bin", LlmcHeader(20240520, 1, 100) + Bytes(narrow));
  Write("notes.txt", "not a shard");
  const auto source = TokenSource::Open(FileSystem::Posix(), folder_.string(), DataFormat::kLlmc);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->tokens(), 150u);
  EXPECT_EQ((*source)->train_tokens(), 100u);
  std::vector<int64_t> tokens(150);
  (*source)->Read(0, 150, tokens.data());
  EXPECT_EQ(tokens[99], 7);
  EXPECT_EQ(tokens[100], 128000);
}

TEST_F(DatasetTest, MalformedShardsAreDataLossWithTheFileNamed) {
  const struct {
    const char* name;
    std::string bytes;
    DataFormat format;
    const char* message;
  } cases[] = {
      {"odd.bin", "abc", DataFormat::kNanoGpt, "no whole number of 16-bit tokens"},
      {"empty.bin", "", DataFormat::kNanoGpt, "the shard is empty"},
      {"short.bin", "abcd", DataFormat::kLlmc, "the header alone"},
      {"magic.bin", LlmcHeader(1, 1, 0), DataFormat::kLlmc, "--data-format nanogpt"},
      {"version.bin", LlmcHeader(20240520, 7, 0), DataFormat::kLlmc, "version 7 is no llm.c shard"},
      {"count.bin", LlmcHeader(20240520, 1, 3) + "abcd", DataFormat::kLlmc,
       "says 3 tokens, the file holds 2"},
      {"negative.bin", LlmcHeader(20240520, 1, -1), DataFormat::kLlmc, "says -1 tokens"},
      {"none.bin", LlmcHeader(20240520, 1, 0), DataFormat::kLlmc, "the shard holds no token"},
  };
  for (const auto& c : cases) {
    const auto source = TokenSource::Open(FileSystem::Posix(), Write(c.name, c.bytes), c.format);
    EXPECT_EQ(source.status().code(), absl::StatusCode::kDataLoss) << c.name;
    EXPECT_EQ(ExitCodeFor(source.status()), ExitCode::kBadInput);
    EXPECT_NE(source.status().message().find(c.message), absl::string_view::npos)
        << source.status();
    EXPECT_NE(source.status().message().find(c.name), absl::string_view::npos) << source.status();
  }
}

TEST_F(DatasetTest, FilesOfAnotherKindAreNamedWithTheRemedy) {
  const auto bytes = [](const char* text, size_t count) { return std::string(text, count); };
  std::vector<uint32_t> wide(200, 50256);
  const struct {
    const char* name;
    std::string bytes;
    DataFormat format;
    const char* message;
  } cases[] = {
      {"a.gz", bytes("\x1f\x8b\x08\x00", 4), DataFormat::kText, "a gzip file; unpack it first"},
      {"b.bin", bytes("\x1f\x8b\x08\x00", 4), DataFormat::kNanoGpt, "a gzip file"},
      {"c.zip", bytes("PK\x03\x04", 4), DataFormat::kText, "a zip archive; unpack it first"},
      {"d.zst", bytes("\x28\xb5\x2f\xfd", 4), DataFormat::kText, "a zstd file"},
      {"e.npy", bytes("\x93NUMPY\x01\x00", 8), DataFormat::kNanoGpt, "a NumPy array"},
      {"f.txt", bytes("\xff\xfeh\x00i\x00", 6), DataFormat::kText, "UTF-16 text; convert it"},
      {"g.txt", bytes("\xfe\xff\x00h", 4), DataFormat::kText, "UTF-16 text"},
      {"h.txt", bytes("\x89PNG\r\n\x1a\n\0\0", 10), DataFormat::kText, "a picture; give text"},
      {"j.txt", bytes("h\0i\0", 4), DataFormat::kText,
       "byte 1 is zero, which none of a text is; give token shards with --data-format nanogpt or "
       "llmc, convert UTF-16 to UTF-8 (iconv)"},
      {"k.txt", std::string(65535, 'x') + bytes("\0", 1), DataFormat::kText, "byte 65535 is zero"},
      {"l.bin", Bytes(std::vector<uint16_t>(3000, 262)) + bytes("\1\0", 2), DataFormat::kText,
       "byte 6001 is zero"},
      {"m.bin", LlmcHeader(20240520, 1, 0), DataFormat::kText,
       "an llm.c shard; give --data-format llmc"},
      {"n.bin", LlmcHeader(20240801, 7, 0), DataFormat::kText, "give --data-format llmc"},
      {"o.pdf", "%PDF-1.7\n", DataFormat::kText, "a PDF file; write its text"},
      {"s.gguf", "GGUF", DataFormat::kNanoGpt, "a GGUF file"},
      {"p.db", bytes("SQLite format 3\0", 16), DataFormat::kText, "an SQLite database"},
      {"q.so",
       bytes("\x7f"
             "ELF\2",
             5),
       DataFormat::kText, "a program; give text, or take it out"},
      {"r.jpg", bytes("\xff\xd8\xff\xe0", 4), DataFormat::kText, "a picture"},
      {"h.bin", LlmcHeader(20240520, 1, 0), DataFormat::kNanoGpt, "give --data-format llmc"},
      {"i.bin", Bytes(wide), DataFormat::kNanoGpt, "seem to be 32-bit tokens"},
      {"big.txt", bytes("\xff\xfe", 2) + std::string(2 << 20, 'x'), DataFormat::kText, "UTF-16"},
  };
  for (const auto& c : cases) {
    const auto source = TokenSource::Open(FileSystem::Posix(), Write(c.name, c.bytes), c.format);
    EXPECT_EQ(source.status().code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_EQ(ExitCodeFor(source.status()), ExitCode::kBadInput);
    EXPECT_NE(source.status().message().find(c.message), absl::string_view::npos)
        << source.status();
    EXPECT_NE(source.status().message().find(c.name), absl::string_view::npos) << source.status();
  }
}

// Vocabularies of more than 65,536 are what 32-bit tokens are written for.
TEST_F(DatasetTest, HeaderlessTokensOf32And64BitsAreRefusedWhateverTheirVocabulary) {
  Rng rng(1, 2);
  for (const uint64_t vocabulary : {65u, 50'257u, 65'537u, 128'256u, 262'144u, 1'000'000u}) {
    std::vector<uint32_t> wide(1024);
    for (uint32_t& token : wide) token = static_cast<uint32_t>(rng.Below(vocabulary));
    const std::vector<int64_t> wider(wide.begin(), wide.end());
    for (const std::string& shard : {Bytes(wide), Bytes(wider), Bytes(wide).substr(0, 64)}) {
      const auto source =
          TokenSource::Open(FileSystem::Posix(), Write("t.bin", shard), DataFormat::kNanoGpt);
      EXPECT_EQ(ExitCodeFor(source.status()), ExitCode::kBadInput) << vocabulary;
      EXPECT_NE(source.status().message().find("seem to be 32-bit tokens, or wider"),
                absl::string_view::npos)
          << vocabulary << source.status();
    }
  }
}

TEST_F(DatasetTest, SixteenBitTokensAreNotTakenForWiderOnes) {
  // Half of the tokens are 0, but not every second one; a file of zeros alone; one of few different
  // tokens; small ones at every second place but for one.
  std::vector<uint16_t> half(400), few(400), rare(400);
  for (size_t i = 0; i < 400; ++i) {
    half[i] = i % 4 < 2 ? 0 : 9;
    few[i] = static_cast<uint16_t>(i * i % 11);
    rare[i] = static_cast<uint16_t>(i % 2 == 1 ? i % 16 : 20'000 + i);
  }
  rare[201] = 16;
  for (const auto& shard : {half, std::vector<uint16_t>(400, 0), few, rare}) {
    const auto source =
        TokenSource::Open(FileSystem::Posix(), Write("t.bin", Bytes(shard)), DataFormat::kNanoGpt);
    EXPECT_TRUE(source.ok()) << source.status();
  }
}

TEST_F(DatasetTest, ATextMayHoldAnyByteButZeroAmongItsFirst) {
  std::string text = Positions(100'000);
  text[65'536] = '\0';  // as rare slips in a long text are
  const auto source =
      TokenSource::Open(FileSystem::Posix(), Write("t.txt", text), DataFormat::kText);
  EXPECT_TRUE(source.ok()) << source.status();
}

TEST_F(DatasetTest, OnlyAWordOfItsNameHoldsAShardOut) {
  const std::string tokens = Bytes(std::vector<uint16_t>(100, 7));
  const auto held_out = [&] {
    const auto source =
        TokenSource::Open(FileSystem::Posix(), folder_.string(), DataFormat::kNanoGpt);
    EXPECT_TRUE(source.ok()) << source.status();
    return source.ok() ? (*source)->tokens() - (*source)->train_tokens() : 0;
  };
  for (const char* name : {"interval_003.bin", "evaluate.bin", "latest.bin", "invalid.bin"})
    Write(name, tokens);
  EXPECT_EQ(held_out(), 20u) << "the last 5 %";
  uint64_t files = 0;
  for (const char* name :
       {"x_train_val.bin", "validation-1.bin", "VALID_000.bin", "owt.Test.bin"}) {
    Write(name, tokens);
    EXPECT_EQ(held_out(), 100 * ++files) << name;
  }
}

TEST_F(DatasetTest, ATextIsHeldOutByTheNameOfTheOneBesideIt) {
  DatasetOptions options;
  options.path = folder_.string();
  options.length = 10;
  options.eval_targets = 100;
  options.eval_length = 10;
  Write("test_tools.txt", std::string(500, 'a'));  // no text has its name with "train" in it
  Write("wiki.train.txt", std::string(2000, 'a'));
  Write("wiki.VALID.txt", std::string(300, 'b'));
  const auto data = Open(options);
  ASSERT_TRUE(data.ok()) << data.status();
  Batch batch;
  ASSERT_TRUE((*data)->HeldOut(0, (*data)->held_out_windows(), &batch).ok());
  EXPECT_EQ(std::set<int64_t>(batch.inputs.begin(), batch.inputs.end()), std::set<int64_t>{'b'});
  EXPECT_EQ((*data)->description(), absl::StrCat(options.path, ": 2800 bytes in 3 files, 300 held ",
                                                 "out (wiki.VALID.txt)"));
}

TEST_F(DatasetTest, WhatOfAFolderIsNoShardIsSaidToBeLeftOut) {
  DatasetOptions options;
  options.path = folder_.string();
  options.format = DataFormat::kNanoGpt;
  Write("a.npy", "x");
  Write("b/train.bin.gz", "x");
  const auto none = Open(options);
  EXPECT_NE(none.status().message().find("holds no .bin file, but a.npy, b/train.bin.gz"),
            absl::string_view::npos)
      << none.status();
  Write("c.u16", "x");
  Write("d.txt", "x");
  Write("e/train.bin", Bytes(std::vector<uint16_t>(1000, 7)));
  const auto data = Open(options);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ((*data)->description(),
            absl::StrCat(options.path, ": 1000 tokens in 1 files, 50 held out; left out: a.npy, ",
                         "b/train.bin.gz, c.u16 and 1 more"));
}

TEST_F(DatasetTest, AForeignTokenAtTheBeginningOfAnyShardIsToldAtTheStart) {
  Write("train_0.bin", Bytes(std::vector<uint16_t>(4000, 5)));
  Write("train_1.bin", Bytes(std::vector<uint16_t>(4000, 300)));
  DatasetOptions options;
  options.path = folder_.string();
  options.format = DataFormat::kNanoGpt;
  const auto data = Open(options);
  EXPECT_EQ(ExitCodeFor(data.status()), ExitCode::kBadInput);
  EXPECT_NE(data.status().message().find("token 300 at position 4000"), absl::string_view::npos)
      << data.status();
}

TEST_F(DatasetTest, ACorpusThatIsTooSmallSaysHowMuchIsNeeded) {
  DatasetOptions options;
  options.path = Write("corpus.txt", std::string(2000, 'x'));
  options.length = 1900;
  const auto data = Open(options);
  EXPECT_EQ(ExitCodeFor(data.status()), ExitCode::kBadInput);
  EXPECT_NE(
      data.status().message().find(
          "too small: 2000 bytes, of which 100 are held out; --sequence 1900 needs 1901 beside "
          "them: give more text or a shorter --sequence"),
      absl::string_view::npos)
      << data.status();
  options.length = 1899;  // exactly enough
  EXPECT_TRUE(Open(options).ok());
}

TEST_F(DatasetTest, AHeldOutPartThatIsTooSmallSaysHowMuchIsNeeded) {
  DatasetOptions options;
  options.path = Write("corpus.txt", std::string(2000, 'x'));
  options.eval_targets = 1;
  options.eval_length = 100;
  const auto data = Open(options);
  EXPECT_EQ(ExitCodeFor(data.status()), ExitCode::kBadInput);
  EXPECT_NE(
      data.status().message().find(
          "too small: 2000 bytes, of which 100 are held out; --eval-sequence 100 needs 101 of "
          "these: give more text, a shorter --eval-sequence, or --eval off"),
      absl::string_view::npos)
      << data.status();
  options.eval_length = 99;  // exactly enough
  EXPECT_TRUE(Open(options).ok());
  options.eval_length = 100;
  options.eval_targets = 0;  // none are wanted
  EXPECT_TRUE(Open(options).ok());
}

TEST_F(DatasetTest, AMissingPathAnEmptyFolderAndAForeignTokenAreBadInput) {
  DatasetOptions options;
  options.path = (folder_ / "nowhere").string();
  auto data = Open(options);
  EXPECT_EQ(data.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ExitCodeFor(data.status()), ExitCode::kBadInput);
  EXPECT_NE(data.status().message().find("nowhere"), absl::string_view::npos);

  options.path = folder_.string();
  data = Open(options);
  EXPECT_EQ(ExitCodeFor(data.status()), ExitCode::kBadInput);
  EXPECT_NE(data.status().message().find("the folder holds no file"), absl::string_view::npos)
      << data.status();

  // Behind the first window only a minibatch meets it.
  std::vector<uint16_t> tokens(4000, 300);
  std::fill(tokens.begin(), tokens.begin() + 200, uint16_t{1});
  options.path = Write("train.bin", Bytes(tokens));
  options.format = DataFormat::kNanoGpt;
  data = Open(options);
  ASSERT_TRUE(data.ok()) << data.status();
  Batch batch;
  const absl::Status all = (*data)->CheckAll({});
  EXPECT_EQ(all.message(),
            absl::StrCat("--data ", options.path,
                         ": token 300 at position 200 is outside the model's vocabulary of 256; "
                         "give --vocab-size or another model"));
  std::stop_source stopped;
  stopped.request_stop();
  EXPECT_TRUE(absl::IsCancelled((*data)->CheckAll(stopped.get_token())));
  const absl::Status drawn = (*data)->TrainBatch(Key(1, 0, 0), &batch);
  EXPECT_EQ(ExitCodeFor(drawn), ExitCode::kBadInput);
  EXPECT_NE(drawn.message().find("token 300"), absl::string_view::npos) << drawn;
  EXPECT_NE(drawn.message().find("--vocab-size"), absl::string_view::npos) << drawn;
}

TEST_F(DatasetTest, EveryTestVectorOfThePageIsTrue) {
  DatasetOptions options;
  options.format = DataFormat::kSynthetic;
  options.rows = 8;
  const auto data = Open(options);
  ASSERT_TRUE(data.ok()) << data.status();
  std::set<std::string> seen;
  for (const PageVector& vector : PageVectors(SIGNVOTE_SOURCE_DIR "/docs/data.md")) {
    std::string result;
    if (vector.kind == "minibatch") {
      Batch batch;
      const BatchKey key = Key(vector.number("seed"), static_cast<uint32_t>(vector.number("share")),
                               vector.number("data_step"));
      ASSERT_TRUE((*data)->TrainBatch(key, &batch).ok());
      for (const int64_t label : batch.targets) absl::StrAppend(&result, label, " ");
      absl::StrAppend(&result,
                      absl::Hex(Xxh3(batch.values.data(), batch.values.size() * sizeof(float), 0),
                                absl::kZeroPad16));
    } else if (vector.kind == "window") {
      const WindowOrder order(vector.number("tokens"), vector.number("length"));
      result = absl::StrCat(order.First(vector.number("seed"),
                                        Share(static_cast<uint32_t>(vector.number("share"))),
                                        vector.number("k")));
    } else if (vector.kind == "held_out_window") {
      const HeldOutWindows windows(vector.number("tokens"), vector.number("length"),
                                   vector.number("targets"));
      result = absl::StrCat(windows.First(vector.number("k")), " of ", windows.count());
    } else if (vector.kind == "held_out_tokens") {
      // Windows of `length` tokens and their successors, one behind the other.
      const uint64_t length = vector.number("length");
      std::vector<int64_t> tokens;
      for (const absl::string_view token : absl::StrSplit(vector.arguments.at("tokens"), ',')) {
        int64_t value = 0;
        ASSERT_TRUE(absl::SimpleAtoi(token, &value));
        tokens.push_back(value);
      }
      HeldOutHash hash(tokens.size() / (length + 1), length);
      for (auto window = tokens.begin(); window != tokens.end();
           window += static_cast<int64_t>(length + 1)) {
        const auto end = window + static_cast<int64_t>(length);
        hash.Add({.rows = 1,
                  .length = length,
                  .inputs = {window, end},
                  .targets = {window + 1, end + 1}});
      }
      result = absl::StrCat(absl::Hex(hash.Digest(), absl::kZeroPad16));
    } else if (vector.kind == "held_out_samples") {
      options.eval_targets = vector.number("samples");
      result = absl::StrCat(absl::Hex(*HashOfHeldOut(**Open(options)), absl::kZeroPad16));
    } else {
      Rng rng(vector.number("seed"), vector.number("stream"));
      for (uint64_t k = 0; k < vector.number("k"); ++k) (void)rng.Next();
      if (vector.kind == "draw") result = absl::StrCat(absl::Hex(rng.Next(), absl::kZeroPad16));
      if (vector.kind == "bell") {
        result = absl::StrCat(absl::Hex(std::bit_cast<uint64_t>(rng.Bell()), absl::kZeroPad16));
      }
      if (vector.kind == "below") result = absl::StrCat(rng.Below(vector.number("bound")));
    }
    EXPECT_EQ(result, vector.result) << vector.line;
    seen.insert(vector.kind);
  }
  EXPECT_EQ(seen,
            (std::set<std::string>{"draw", "bell", "below", "minibatch", "window",
                                   "held_out_window", "held_out_tokens", "held_out_samples"}));
}

TEST_F(DatasetTest, SyntheticClassesAreBalancedAndSeparable) {
  DatasetOptions options;
  options.format = DataFormat::kSynthetic;
  options.rows = 4096;
  options.eval_targets = 4096;
  const auto data = Open(options);
  ASSERT_TRUE(data.ok()) << data.status();
  Batch train, held_out;
  ASSERT_TRUE((*data)->TrainBatch(Key(1, 0, 0), &train).ok());
  ASSERT_EQ((*data)->held_out_windows(), 4096u);
  ASSERT_TRUE((*data)->HeldOut(0, 4096, &held_out).ok());
  EXPECT_NE(train.values, held_out.values);
  // Nearest class mean, learnt on one batch, judged on the other.
  std::vector<double> means(10 * 64, 0.0);
  std::vector<double> counts(10, 0.0);
  for (size_t row = 0; row < 4096; ++row) {
    const size_t label = static_cast<size_t>(train.targets[row]);
    ++counts[label];
    for (size_t i = 0; i < 64; ++i) means[label * 64 + i] += train.values[row * 64 + i];
  }
  size_t right = 0;
  for (double count : counts) EXPECT_NEAR(count, 409.6, 100);  // 5 deviations of a binomial
  for (size_t row = 0; row < 4096; ++row) {
    size_t best = 0;
    double best_distance = 1e300;
    for (size_t label = 0; label < 10; ++label) {
      double distance = 0;
      for (size_t i = 0; i < 64; ++i) {
        const double delta = held_out.values[row * 64 + i] - means[label * 64 + i] / counts[label];
        distance += delta * delta;
      }
      if (distance < best_distance) best_distance = distance, best = label;
    }
    right += best == static_cast<size_t>(held_out.targets[row]) ? 1 : 0;
  }
  EXPECT_GT(right, 4096 * 6 / 10);
  EXPECT_LT(right, 4096u);
}

TEST_F(DatasetTest, AnUnknownFormatNamesTheKnownOnes) {
  const auto format = ParseDataFormat("csv");
  EXPECT_EQ(format.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(format.status().message().find("text, nanogpt, llmc or synthetic"),
            absl::string_view::npos);
}

}  // namespace
}  // namespace signvote
