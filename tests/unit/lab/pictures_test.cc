// Goal:   a folder of pictures, or MNIST's files, become the data set that the page says; what is wrong in
//         it is told in one line with the file, before much is read.
// Method: small pictures in memory, the packed ones written by stb's other half.
#include "lab/tasks/pictures.h"

#include <cmath>
#include <map>
#include <set>

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stb/stb_image_write.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/exit_codes.h"
#include "lab/tasks/idx_file.h"
#include "lab/tasks/picture.h"
#include "lab/tasks/picture_files.h"
#include "lab/tasks/task.h"
#include "tests/fuzz/memory_files.h"

namespace signvote::lab {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

using testing::SizeIs;

using Files = std::map<std::string, std::string>;

// One grey all over.
std::string Pgm(uint32_t width, uint32_t height, uint8_t grey) {
  return absl::StrFormat("P5\n%d %d\n255\n", width, height) +
         std::string(size_t{width} * height, static_cast<char>(grey));
}

void Append(void* out, void* data, int size) {
  static_cast<std::string*>(out)->append(static_cast<const char*>(data), static_cast<size_t>(size));
}

// Red, green and blue of a picture whose left half is of the first colour.
std::vector<uint8_t> Halves(int width, int height, std::array<uint8_t, 3> left,
                            std::array<uint8_t, 3> right) {
  std::vector<uint8_t> rgb;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (const uint8_t value : 2 * x < width ? left : right) rgb.push_back(value);
  return rgb;
}

std::string Png(const std::vector<uint8_t>& rgb, int width, int height) {
  std::string out;
  stbi_write_png_to_func(Append, &out, width, height, 3, rgb.data(), 3 * width);
  return out;
}
std::string Jpeg(const std::vector<uint8_t>& rgb, int width, int height) {
  std::string out;
  stbi_write_jpg_to_func(Append, &out, width, height, 3, rgb.data(), 100);
  return out;
}
std::string Bmp(const std::vector<uint8_t>& rgb, int width, int height) {
  std::string out;
  stbi_write_bmp_to_func(Append, &out, width, height, 3, rgb.data());
  return out;
}

std::string Word(uint32_t value) {
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
  return out;
}
std::string IdxLabels(const std::vector<uint8_t>& labels) {
  return Word(0x801) + Word(static_cast<uint32_t>(labels.size())) +
         std::string(labels.begin(), labels.end());
}
// Of 28 × 28, each of one grey.
std::string Idx(const std::vector<uint8_t>& greys) {
  std::string out = Word(0x803) + Word(static_cast<uint32_t>(greys.size())) + Word(28) + Word(28);
  for (const uint8_t grey : greys) out += std::string(28 * 28, static_cast<char>(grey));
  return out;
}

absl::StatusOr<Pictures> Open(Files files, PicturesOptions options = {.side = 4, .rows = 5}) {
  fuzz::MemoryFiles fs(std::move(files));
  return OpenPictures(&fs, "d", options);
}

// Two classes of `count` pictures, whose greys say which they are.
Files TwoClasses(int count, const std::string& folder = "d") {
  Files files;
  for (int k = 0; k < count; ++k) {
    files[absl::StrFormat("%s/cat/%03d.pgm", folder, k)] = Pgm(4, 4, static_cast<uint8_t>(k));
    files[absl::StrFormat("%s/dog/%03d.PGM", folder, k)] = Pgm(4, 4, static_cast<uint8_t>(100 + k));
  }
  return files;
}

// The first values of `rows` pictures.
std::multiset<float> FirstValues(const Batch& batch) {
  const size_t size = batch.values.size() / batch.rows;
  std::multiset<float> firsts;
  for (uint64_t row = 0; row < batch.rows; ++row) firsts.insert(batch.values[row * size]);
  return firsts;
}

TEST(PictureTest, EveryKindIsReadAsGreyAndShrunkWhole) {
  const auto rgb = Halves(32, 16, {255, 0, 0}, {0, 255, 0});
  for (const std::string& bytes : {Png(rgb, 32, 16), Jpeg(rgb, 32, 16), Bmp(rgb, 32, 16),
                                   "P6\n32 16\n255\n" + std::string(rgb.begin(), rgb.end())}) {
    const auto grey = DecodePicture(bytes, 4);
    ASSERT_TRUE(grey.ok()) << grey.status();
    ASSERT_THAT(*grey, SizeIs(16));
    for (size_t row = 0; row < 4; ++row) {
      EXPECT_NEAR((*grey)[row * 4], 76, 8);       // 0.30 of 255
      EXPECT_NEAR((*grey)[row * 4 + 3], 150, 8);  // 0.59
    }
  }
}

TEST(PictureTest, OneOfItsOwnSideIsTakenAsItIs) {
  std::vector<uint8_t> values;
  for (int k = 0; k < 16; ++k) values.push_back(static_cast<uint8_t>(k * 16));
  const auto grey = DecodePicture("P5\n4 4\n255\n" + std::string(values.begin(), values.end()), 4);
  ASSERT_TRUE(grey.ok()) << grey.status();
  EXPECT_EQ(*grey, values);
}

TEST(PictureTest, WhatIsBrokenOrForeignOrTooLargeIsToldApart) {
  const std::string png = Png(Halves(32, 16, {1, 2, 3}, {4, 5, 6}), 32, 16);
  const auto cut = DecodePicture(png.substr(0, png.size() / 2), 4);
  EXPECT_TRUE(absl::IsDataLoss(cut.status())) << cut.status();
  EXPECT_TRUE(absl::IsDataLoss(DecodePicture("", 4).status()));
  const auto gif = DecodePicture("GIF89a and so on", 4);
  EXPECT_TRUE(absl::IsInvalidArgument(gif.status())) << gif.status();
  EXPECT_THAT(std::string(gif.status().message()), HasSubstr("write it as PNG, JPEG"));
  const auto large = DecodePicture("P5\n20000 20000\n255\n", 4);
  EXPECT_TRUE(absl::IsInvalidArgument(large.status())) << large.status();
  EXPECT_THAT(std::string(large.status().message()), HasSubstr("20000 x 20000 pixels"));
}

TEST(PicturesTest, EachPictureIsMetOnceInAnEpochAndWhatIsHeldOutNever) {
  const auto pictures = Open(TwoClasses(20));
  ASSERT_TRUE(pictures.ok()) << pictures.status();
  EXPECT_EQ(pictures->classes, 2u);
  const Dataset& data = *pictures->data;
  EXPECT_EQ(data.held_out_windows(), 4u);
  Batch batch;
  ASSERT_TRUE(data.HeldOut(0, 4, &batch).ok());
  EXPECT_THAT(batch.targets, ElementsAre(0, 0, 1, 1));
  const std::multiset<float> held_out = FirstValues(batch);
  // 36 are left: two epochs of one share, in batches of five that do not end where an epoch does.
  for (const uint32_t share : {0u, 3u}) {
    std::vector<float> order;
    for (uint64_t step = 0; order.size() < 72; ++step) {
      ASSERT_TRUE(
          data.TrainBatch({.seed = 7, .share = Share(share), .data_step = DataStep(step)}, &batch)
              .ok());
      for (uint64_t row = 0; row < batch.rows; ++row) {
        order.push_back(batch.values[row * 16]);
        // The second class is the brighter one.
        EXPECT_EQ(batch.targets[row], batch.values[row * 16] > 0 ? 1 : 0);
      }
    }
    for (const ptrdiff_t epoch : {0, 1}) {
      const std::set<float> met(order.begin() + 36 * epoch, order.begin() + 36 * (epoch + 1));
      EXPECT_THAT(met, SizeIs(36));
      for (const float value : held_out) EXPECT_FALSE(met.contains(value));
    }
    EXPECT_NE(std::vector<float>(order.begin(), order.begin() + 36),
              std::vector<float>(order.begin() + 36, order.begin() + 72));
  }
}

TEST(PicturesTest, AMinibatchIsAFunctionOfSeedShareAndStep) {
  const auto one = Open(TwoClasses(20)), two = Open(TwoClasses(20));
  ASSERT_TRUE(one.ok() && two.ok());
  const auto values = [](const Pictures& pictures, uint64_t seed, uint32_t share, uint64_t step) {
    Batch batch;
    EXPECT_TRUE(
        pictures.data
            ->TrainBatch({.seed = seed, .share = Share(share), .data_step = DataStep(step)}, &batch)
            .ok());
    return batch.values;
  };
  EXPECT_EQ(values(*one, 1, 2, 3), values(*two, 1, 2, 3));
  EXPECT_NE(values(*one, 1, 2, 3), values(*one, 2, 2, 3));
  EXPECT_NE(values(*one, 1, 2, 3), values(*one, 1, 1, 3));
  EXPECT_NE(values(*one, 1, 2, 3), values(*one, 1, 2, 4));
}

TEST(PicturesTest, ValuesToTrainOnHaveMeanZeroAndDeviationOne) {
  const auto pictures = Open(TwoClasses(20), {.side = 4, .rows = 36});
  ASSERT_TRUE(pictures.ok()) << pictures.status();
  Batch batch;
  ASSERT_TRUE(pictures->data->TrainBatch({}, &batch).ok());
  double sum = 0, squares = 0;
  for (const float value : batch.values) {
    sum += value;
    squares += double{value} * value;
  }
  const auto count = static_cast<double>(batch.values.size());
  EXPECT_NEAR(sum / count, 0, 1e-6);
  EXPECT_NEAR(squares / count, 1, 1e-6);
  // Nothing but black: no number is lost.
  Files black;
  for (const char* const path : {"d/a/1.pgm", "d/b/1.pgm"}) black[path] = Pgm(4, 4, 0);
  for (int k = 0; k < 20; ++k) black[absl::StrCat("d/a/k", k, ".pgm")] = Pgm(4, 4, 0);
  const auto none = Open(black);
  ASSERT_TRUE(none.ok()) << none.status();
  ASSERT_TRUE(none->data->TrainBatch({}, &batch).ok());
  EXPECT_THAT(batch.values, Each(0.0f));
}

TEST(PicturesTest, AFolderValIsHeldOutAndWhatIsNoPictureIsLeftOut) {
  Files files = TwoClasses(12, "d/Train");
  files["d/VAL/cat/sub/x.pgm"] = Pgm(4, 4, 250);
  files["d/test/dog/y.pgm"] = Pgm(4, 4, 251);
  files["d/README.md"] = files["d/Train/cat/Thumbs.db"] = files["d/Train/dog/._1.pgm"] = "no";
  const auto pictures = Open(files);
  ASSERT_TRUE(pictures.ok()) << pictures.status();
  EXPECT_EQ(pictures->data->held_out_windows(), 2u);
  EXPECT_EQ(pictures->data->description(),
            "d: 26 pictures of 2 classes, 2 held out (VAL, test); left out: README.md, "
            "Train/cat/Thumbs.db, Train/dog/._1.pgm");
  Batch batch;
  ASSERT_TRUE(pictures->data->HeldOut(0, 2, &batch).ok());
  EXPECT_THAT(batch.targets, ElementsAre(0, 1));
}

TEST(PicturesTest, ManyThatAreHeldOutAreMeasuredByASpreadOfThem) {
  const auto pictures = Open(TwoClasses(100), {.side = 4, .rows = 5, .held_out = 4});
  ASSERT_TRUE(pictures.ok()) << pictures.status();
  Batch batch;
  EXPECT_EQ(pictures->data->held_out_windows(), 4u);
  ASSERT_TRUE(pictures->data->HeldOut(0, 4, &batch).ok());
  EXPECT_THAT(batch.targets, ElementsAre(0, 0, 1, 1));
}

TEST(PicturesTest, DigitsAreReadAndThoseOfT10kAreHeldOut) {
  Files files{{"d/train-images-idx3-ubyte", Idx({0, 50, 100, 150, 200})},
              {"d/train-labels-idx1-ubyte", IdxLabels({0, 1, 2, 3, 4})},
              {"d/train-images-idx3-ubyte.gz", "beside it"},
              {"d/t10k-images.idx3-ubyte", Idx({10, 210})},
              {"d/t10k-labels.idx1-ubyte", IdxLabels({0, 4})}};
  auto pictures = Open(files);
  ASSERT_TRUE(pictures.ok()) << pictures.status();
  EXPECT_EQ(pictures->classes, 5u);
  EXPECT_EQ(pictures->data->description(), "d: 7 pictures of 5 classes, 2 held out (t10k)");
  Batch batch;
  ASSERT_TRUE(pictures->data->HeldOut(0, 2, &batch).ok());
  EXPECT_THAT(batch.targets, ElementsAre(0, 4));
  EXPECT_LT(batch.values.front(), batch.values.back());
  ASSERT_TRUE(pictures->data->TrainBatch({}, &batch).ok());
  EXPECT_EQ(std::set<int64_t>(batch.targets.begin(), batch.targets.end()).size(), 5u);
  // Without them every tenth of a class.
  files.erase("d/t10k-images.idx3-ubyte");
  files.erase("d/t10k-labels.idx1-ubyte");
  files["d/train-images-idx3-ubyte"] = Idx(std::vector<uint8_t>(30, 9));
  std::vector<uint8_t> labels(30, 0);
  labels[0] = labels[5] = 1;
  files["d/train-labels-idx1-ubyte"] = IdxLabels(labels);
  pictures = Open(files);
  ASSERT_TRUE(pictures.ok()) << pictures.status();
  EXPECT_EQ(pictures->data->description(), "d: 30 pictures of 2 classes, 2 held out");
}

// What is added to or taken from (empty) a folder of two classes, or of digits.
struct Wrong {
  const char* name;
  Files files;
  const char* told;
};

class PicturesRefusalTest : public testing::TestWithParam<Wrong> {};

TEST_P(PicturesRefusalTest, NamesTheCulpritAndARemedyInOneLine) {
  const auto pictures = Open(GetParam().files);
  ASSERT_FALSE(pictures.ok());
  EXPECT_EQ(ExitCodeFor(pictures.status()), ExitCode::kBadInput) << pictures.status();
  const std::string message(pictures.status().message());
  EXPECT_THAT(message, AllOf(HasSubstr("--data "), HasSubstr(GetParam().told)));
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

Files With(Files files, const std::string& path, const std::string& bytes) {
  files[path] = bytes;
  return files;
}
Files Digits(const std::string& images, const std::string& labels) {
  return {{"d/train-images-idx3-ubyte", images}, {"d/train-labels-idx1-ubyte", labels}};
}

INSTANTIATE_TEST_SUITE_P(
    Folders, PicturesRefusalTest,
    testing::Values(
        Wrong{"AFile", {{"d", "x"}}, "d: is a file; give a folder"},
        Wrong{"NoPicture",
              {{"d/a/1.gif", "x"}},
              "holds no picture (PNG, JPEG, BMP, PGM, PPM), but a/1.gif"},
        Wrong{"OneClass", {{"d/a/1.pgm", Pgm(2, 2, 1)}}, "one class, a; give"},
        Wrong{"NoClass", With(TwoClasses(10), "d/1.png", "x"),
              "d/1.png: lies in no class's folder"},
        Wrong{"Few", TwoClasses(9), "no class has 10 pictures"},
        Wrong{"ForeignPart", With(TwoClasses(1, "d/train"), "d/extra/cat/1.pgm", "x"),
              "d/extra/cat/1.pgm: lies beside a folder train"},
        Wrong{"StrangeClass", With(TwoClasses(1, "d/train"), "d/val/cow/1.pgm", Pgm(2, 2, 1)),
              "d/val/cow/1.pgm: there is no picture of the class cow to train on"},
        Wrong{"Broken", With(TwoClasses(10), "d/cat/004.pgm", "P5\n4 4\n255\nshort"),
              "d/cat/004.pgm: a picture that cannot be read"},
        Wrong{"Empty", With(TwoClasses(10), "d/cat/004.pgm", ""),
              "d/cat/004.pgm: a picture that cannot be read (the file is empty)"},
        Wrong{"Foreign", With(TwoClasses(10), "d/cat/004.pgm", "GIF89a"),
              "d/cat/004.pgm: no picture that is known here"},
        Wrong{"LongFile",
              With(TwoClasses(10), "d/cat/004.pgm", std::string(kPictureBytesMax + 1, ' ')),
              "d/cat/004.pgm: 67108865 bytes, and a picture's file has at most 67108864"},
        Wrong{"Packed",
              {{"d/train-images-idx3-ubyte.gz", "x"}},
              "train-images-idx3-ubyte.gz: is packed; unpack it (gunzip"},
        Wrong{"NoLabels",
              {{"d/train-images-idx3-ubyte", Idx({1, 2})}},
              "there is no file train-labels-idx1-ubyte; put it beside train-images-idx3-ubyte"},
        Wrong{"TwoOfThem",
              With(Digits(Idx({1, 2}), IdxLabels({0, 1})), "d/x/train-images-idx3-ubyte", "x"),
              "give the folder of one of them"},
        Wrong{"NoIdx", Digits("<!doctype html>", IdxLabels({0, 1})),
              "d/train-images-idx3-ubyte: no IDX file of pictures"},
        Wrong{"GzipByAnotherName", Digits("\x1f\x8b\x08 and more", IdxLabels({0, 1})),
              "a gzip file; unpack it first"},
        Wrong{"Short", Digits(Idx({1, 2}).substr(0, 100), IdxLabels({0, 1})),
              "its head says 1568 bytes of values, and 84 follow"},
        Wrong{"Huge",
              Digits(Word(0x803) + Word(1) + Word(1u << 31) + Word(1u << 31), IdxLabels({0})),
              "pictures of 2147483648 x 2147483648 pixels"},
        Wrong{"OtherCount", Digits(Idx({1, 2}), IdxLabels({0})),
              "d/train-labels-idx1-ubyte: 1 labels are not of the 2 pictures"},
        Wrong{"FewDigits", Digits(Idx({1, 2}), IdxLabels({0, 1})), "too few pictures"},
        Wrong{"OneDigit",
              Digits(Idx(std::vector<uint8_t>(20, 1)), IdxLabels(std::vector<uint8_t>(20, 0))),
              "every label is 0"}),
    [](const auto& one) { return one.param.name; });

TEST(PicturesTest, WhatDoesNotFitIntoMemoryIsRefusedBeforeAPictureIsRead) {
  Files files = TwoClasses(10);
  // Read, they would be told to be broken.
  for (auto& [path, bytes] : files) bytes = "P5";
  files["/proc/meminfo"] = "MemAvailable:       0 kB\n";
  const auto pictures = Open(files);
  ASSERT_FALSE(pictures.ok());
  EXPECT_EQ(ExitCodeFor(pictures.status()), ExitCode::kNoMemory) << pictures.status();
  EXPECT_THAT(std::string(pictures.status().message()), HasSubstr("20 pictures"));
}

TEST(PicturesTest, ATaskOfPicturesHasAsManyClassesAsTheFolder) {
  fuzz::MemoryFiles fs(TwoClasses(20));
  ModelConfig asked;
  const TorchMakers torch{.network = [&](const ModelConfig& config, const ModelOptions&) {
    asked = config;
    ModelConfig mlp;
    mlp.kind = ModelKind::kMlp;
    mlp.features = config.side * config.side;
    mlp.classes = config.classes;
    return MakePlainMlp(mlp, 1);
  }};
  const auto task = MakeTask(&fs, {.name = "cnn", .data = "d", .rows = 3}, torch);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(asked.classes, 2u);
  Batch batch;
  ASSERT_TRUE(task->data->TrainBatch({}, &batch).ok());
  EXPECT_EQ(batch.rows, 3u);
  EXPECT_EQ(batch.values.size(), 3u * 16 * 16);
  const auto missing = MakeTask(&fs, {.name = "vit", .data = "e"}, torch);
  EXPECT_TRUE(absl::IsNotFound(missing.status())) << missing.status();
}

}  // namespace
}  // namespace signvote::lab
