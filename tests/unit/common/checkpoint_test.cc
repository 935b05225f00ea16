// Goal: the model files of the world load, exactly, and what is not one is refused with the culprit
// and the remedy. Method: files written here byte by byte.
#include "common/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::HasSubstr;

// One tensor of a file, in the file's own format.
struct Written {
  std::string name;
  std::string dtype;
  std::string shape;
  std::string bytes;
};

template <typename Element>
std::string Bytes(const std::vector<Element>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Element)};
}

std::string FileOf(const std::vector<Written>& tensors) {
  std::string header = R"({"__metadata__":{"format":"pt"})", data;
  for (const Written& t : tensors) {
    header += ",\"" + t.name + R"(":{"dtype":")" + t.dtype + R"(","shape":)" + t.shape +
              R"(,"data_offsets":[)" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + t.bytes.size()) + "]}";
    data += t.bytes;
  }
  header += "}";
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

class CheckpointTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = dir_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  // A model of an embedding [2, 2] and a bias [2]; with a head of its own unless it is tied.
  static Layout Model(bool own_head = false) {
    std::vector<TensorSpec> tensors = {{.name = "model.embed_tokens.weight", .shape = {2, 2}},
                                       {.name = "b", .shape = {2}}};
    if (own_head) tensors.push_back({.name = "lm_head.weight", .shape = {2, 2}});
    auto layout = Layout::Make(std::move(tensors));
    EXPECT_TRUE(layout.ok());
    return *std::move(layout);
  }
  static Written Embedding(std::vector<float> values = {1, 2, 3, 4}) {
    return {"model.embed_tokens.weight", "F32", "[2,2]", Bytes(values)};
  }
  static Written Bias() { return {"b", "F32", "[2]", Bytes<float>({5, 6})}; }
  static Written Head(std::vector<float> values) {
    return {"lm_head.weight", "F32", "[2,2]", Bytes(values)};
  }
  std::vector<float> Load(const std::string& path, const Layout& layout) {
    const auto checkpoint = Checkpoint::Open(fs_, path);
    EXPECT_TRUE(checkpoint.ok()) << Describe(checkpoint.status());
    std::vector<float> x(layout.coordinates(), -1);
    if (!checkpoint.ok()) return x;
    const absl::Status status = (*checkpoint)->CopyInto(layout, x);
    EXPECT_TRUE(status.ok()) << Describe(status);
    return x;
  }
  void ExpectNotOpened(const std::string& path, absl::StatusCode code, const std::string& text) {
    const absl::Status status = Checkpoint::Open(fs_, path).status();
    EXPECT_EQ(status.code(), code) << Describe(status);
    EXPECT_THAT(Describe(status), HasSubstr(text));
    EXPECT_THAT(Describe(status), HasSubstr(dir_ / ""));
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  }
  void ExpectRefused(const std::string& path, const Layout& layout, const std::string& text) {
    const auto checkpoint = Checkpoint::Open(fs_, path);
    ASSERT_TRUE(checkpoint.ok()) << Describe(checkpoint.status());
    std::vector<float> x(layout.coordinates(), -1);
    const absl::Status status = (*checkpoint)->CopyInto(layout, x);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Describe(status), HasSubstr(text));
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
    EXPECT_EQ(x, std::vector<float>(x.size(), -1)) << "a refusal leaves x as it was";
  }

  TempDir dir_;
  FileSystem* const fs_ = FileSystem::Posix();
};

TEST_F(CheckpointTest, SixteenBitTensorsAreWidenedExactlyAndMayBeMixed) {
  const std::string path =
      Write("m.safetensors", FileOf({{"model.embed_tokens.weight", "BF16", "[2,2]",
                                      Bytes<uint16_t>({0x3f80, 0xc040, 0x0001, 0x8000})},
                                     {"b", "F16", "[2]", Bytes<uint16_t>({0x3c00, 0x0001})}}));
  const std::vector<float> x = Load(path, Model());
  EXPECT_EQ(x, (std::vector<float>{1, -3, std::bit_cast<float>(0x00010000u), -0.0f, 1,
                                   std::ldexp(1.0f, -24)}));
  EXPECT_TRUE(std::signbit(x[3]));
}

TEST_F(CheckpointTest, TheFilesOrderIsNotTheModels) {
  EXPECT_EQ(Load(Write("m.safetensors", FileOf({Bias(), Embedding()})), Model()),
            (std::vector<float>{1, 2, 3, 4, 5, 6}));
}

TEST_F(CheckpointTest, RotaryFrequenciesFollowFromTheConfigAndAreLeftOut) {
  const Written frequencies{"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", "[1]",
                            Bytes<float>({9})};
  EXPECT_EQ(Load(Write("m.safetensors", FileOf({Embedding(), frequencies, Bias()})), Model()),
            (std::vector<float>{1, 2, 3, 4, 5, 6}));
}

TEST_F(CheckpointTest, ATiedHeadMayBeThereOnceOrTwice) {
  const Layout tied = Model();
  EXPECT_EQ(Load(Write("once.safetensors", FileOf({Embedding(), Bias()})), tied).front(), 1);
  EXPECT_EQ(
      Load(Write("twice.safetensors", FileOf({Embedding(), Bias(), Head({1, 2, 3, 4})})), tied)
          .size(),
      6u);
  ExpectRefused(Write("other.safetensors", FileOf({Embedding(), Bias(), Head({1, 2, 3, 4.5})})),
                tied, "lm_head.weight that differs from model.embed_tokens.weight");
  ExpectRefused(
      Write("one.safetensors", FileOf({Embedding(), Bias()})), Model(/*own_head=*/true),
      "has no tensor \"lm_head.weight\"; if its head is tied, set \"tie_word_embeddings\"");
  EXPECT_EQ(Load(Write("own.safetensors", FileOf({Embedding(), Bias(), Head({7, 7, 7, 7})})),
                 Model(/*own_head=*/true))
                .back(),
            7);
}

TEST_F(CheckpointTest, ATiedHeadOfAnotherFormatIsComparedByItsNumbers) {
  const auto head = [](uint16_t last) {
    return Written{"lm_head.weight", "BF16", "[2,2]",
                   Bytes<uint16_t>({0x3f80, 0x4000, 0x4040, last})};
  };
  EXPECT_EQ(
      Load(Write("same.safetensors", FileOf({Embedding(), Bias(), head(0x4080)})), Model()).front(),
      1);
  ExpectRefused(Write("other.safetensors", FileOf({Embedding(), Bias(), head(0x4081)})), Model(),
                (dir_ / "other.safetensors") + " has a lm_head.weight that differs");
  // Equal as numbers, not as bits.
  ExpectRefused(
      Write("zero.safetensors", FileOf({Embedding({0, 0, 0, 0}), Bias(), Head({0, 0, -0.0f, 0})})),
      Model(), "differs from model.embed_tokens.weight");
}

// As safetensors.torch.save_model leaves it: of two names of one tensor the first in the alphabet.
TEST_F(CheckpointTest, ATiedHeadMayStandForTheEmbeddingThatIsNotThere) {
  const std::string path = Write("m.safetensors", FileOf({Bias(), Head({1, 2, 3, 4})}));
  EXPECT_EQ(Load(path, Model()), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  ExpectRefused(path, Model(/*own_head=*/true), "no tensor \"model.embed_tokens.weight\"");
}

TEST_F(CheckpointTest, AHeaderWhoseLengthLooksLikeAPickleIsRead) {
  std::string file = FileOf({Embedding(), Bias()});
  uint64_t length;
  std::memcpy(&length, file.data(), sizeof(length));
  file.insert(sizeof(length) + length, std::string(640 - length, ' '));
  length = 640;
  std::memcpy(file.data(), &length, sizeof(length));
  EXPECT_EQ(Load(Write("m.safetensors", file), Model()).back(), 6);
}

TEST_F(CheckpointTest, UnknownTensorsAndOtherShapesAreRefusedByName) {
  ExpectRefused(
      Write("a.safetensors", FileOf({Embedding(), Bias(), {"x", "F32", "[1]", Bytes<float>({1})}})),
      Model(), "has the tensor \"x\", which the model does not have");
  ExpectRefused(
      Write("b.safetensors", FileOf({Embedding(), {"b", "F32", "[2,1]", Bytes<float>({1, 2})}})),
      Model(),
      "tensor \"b\" has shape [2,1] in " + (dir_ / "b.safetensors") + ", the model wants [2]");
  ExpectRefused(dir_ / "a.safetensors", Model(), (dir_ / "a.safetensors") + " has the tensor");
  ExpectRefused(Write("c.safetensors",
                      FileOf({{"lm_head.weight", "F32", "[2]", Bytes<float>({5, 6})}, Bias()})),
                Model(),
                "tensor \"lm_head.weight\" has shape [2] in " + (dir_ / "c.safetensors") +
                    ", the model wants [2,2]");
  ExpectRefused(Write("d.safetensors", FileOf({Bias()})), Model(),
                (dir_ / "d.safetensors") + " has no tensor \"model.embed_tokens.weight\"");
}

TEST_F(CheckpointTest, AnIndexNamesTheFileOfEachTensor) {
  Write("s-1.safetensors", FileOf({Bias()}));
  Write("s-2.safetensors", FileOf({Embedding()}));
  const std::string index = R"({"metadata":{"total_size":24,"by":"me"},"weight_map":
      {"model.embed_tokens.weight":"s-2.safetensors","b":"s-1.safetensors"}})";
  const std::string path = Write("model.safetensors.index.json", index);
  EXPECT_EQ(Load(path, Model()), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(Load(dir_ / "", Model()), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  const auto checkpoint = Checkpoint::Open(fs_, path);
  EXPECT_EQ((*checkpoint)->metadata(), (std::map<std::string, std::string>{{"by", "me"}}));
  EXPECT_EQ((*checkpoint)->config_path(), dir_ / "config.json");
}

TEST_F(CheckpointTest, AFolderHoldsTheModelUnderItsUsualName) {
  ExpectNotOpened(dir_ / "", absl::StatusCode::kNotFound,
                  "neither model.safetensors nor model.safetensors.index.json");
  Write("pytorch_model.bin", "PK");
  ExpectNotOpened(dir_ / "", absl::StatusCode::kNotFound,
                  "it has pytorch_model.bin, a PyTorch pickle: convert it to safetensors");
  Write("model.safetensors", FileOf({Embedding(), Bias()}));
  EXPECT_EQ(Load(dir_ / "", Model()).back(), 6);
}

TEST_F(CheckpointTest, AnIndexThatDoesNotHoldIsRefused) {
  Write("s-1.safetensors", FileOf({Bias()}));
  Write("s-2.safetensors", FileOf({Embedding()}));
  const auto refused = [&](const std::string& index, absl::StatusCode code,
                           const std::string& text) {
    ExpectNotOpened(Write("x.index.json", index), code, text);
  };
  const absl::StatusCode loss = absl::StatusCode::kDataLoss;
  refused("{}", loss, "not an index of safetensors files");
  refused(R"({"weight_map":{"b":"../s-1.safetensors"}})", loss,
          "tensor \"b\" is not in a file beside the index");
  refused(R"({"weight_map":{"b":"s-1.safetensors","b":"s-1.safetensors"}})", loss,
          "the key \"b\" stands twice");
  refused(R"({"weight_map":{"b":"s-1.safetensors","c":"s-1.safetensors"}})", loss,
          "tensor \"c\" is not in s-1.safetensors");
  refused(R"({"weight_map":{"b":"s-2.safetensors"}})", loss,
          "lies in s-2.safetensors, where the index does not have it");
  refused(R"({"weight_map":{"b":"missing.safetensors"}})", absl::StatusCode::kNotFound,
          "x.index.json: where tensor \"b\" is to lie: " + (dir_ / "missing.safetensors"));
  Write("pytorch_model-1.bin", std::string("PK\x03\x04", 4));
  refused(R"({"weight_map":{"b":"pytorch_model-1.bin"}})", absl::StatusCode::kInvalidArgument,
          "pytorch_model-1.bin: a zip archive; convert a PyTorch pickle");
}

TEST_F(CheckpointTest, AnIndexNeedsNoUsualNameAndStandsForAModelThatIsNotThere) {
  Write("s.safetensors", FileOf({Embedding(), Bias()}));
  const std::string index =
      R"({"weight_map":{"model.embed_tokens.weight":"s.safetensors","b":"s.safetensors"}})";
  EXPECT_EQ(Load(Write("model.safetensors.index.fp32.json", index), Model()).back(), 6);
  Write("nano.st.index.json", index);
  EXPECT_EQ(Load(dir_ / "nano.st", Model()).back(), 6);
  Write("nano.st", FileOf({Embedding({9, 9, 9, 9}), Bias()}));
  EXPECT_EQ(Load(dir_ / "nano.st", Model()).front(), 9);
}

TEST_F(CheckpointTest, InAFolderTheWholeModelComesBeforeAnIndexAsInTransformers) {
  Write("s.safetensors", FileOf({Embedding({9, 9, 9, 9}), Bias()}));
  Write("model.safetensors.index.json",
        R"({"weight_map":{"model.embed_tokens.weight":"s.safetensors","b":"s.safetensors"}})");
  Write("model.safetensors", FileOf({Embedding(), Bias()}));
  EXPECT_EQ(Load(dir_ / "", Model()).front(), 1);
}

TEST_F(CheckpointTest, WhatIsClearlySomethingElseIsCalledByItsName) {
  const absl::StatusCode invalid = absl::StatusCode::kInvalidArgument;
  ExpectNotOpened(Write("a", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), invalid,
                  "git lfs pull");
  ExpectNotOpened(Write("b", "<!DOCTYPE html><html>"), invalid, "a web page");
  ExpectNotOpened(Write("c", "<HTML lang=en>"), invalid, "a web page");
  ExpectNotOpened(Write("d", std::string("PK\x03\x04\x00\x00", 6)), invalid, "PyTorch pickle");
  ExpectNotOpened(Write("e", "GGUF\x03"), invalid, "GGUF");
  ExpectNotOpened(Write("j", R"({"weight_map":{"b":"s-1.safetensors"}})"), invalid, "a JSON text");
  ExpectNotOpened(Write("x.index.json", "version https://git-lfs.github.com/spec/v1\n"), invalid,
                  "git lfs pull");
  ExpectNotOpened(Write("f", ""), absl::StatusCode::kDataLoss, "truncated");
  ExpectNotOpened(dir_ / "absent", absl::StatusCode::kNotFound, "absent");
}

TEST_F(CheckpointTest, NumbersThatAreNotFiniteAreFoundInEachFormatAndFile) {
  Write("s-1.safetensors", FileOf({{"b", "F16", "[2]", Bytes<uint16_t>({0x3c00, 0x7c00})}}));
  Write("s-2.safetensors", FileOf({Embedding()}));
  const auto checkpoint = Checkpoint::Open(
      fs_,
      Write(
          "model.safetensors.index.json",
          R"({"weight_map":{"model.embed_tokens.weight":"s-2.safetensors","b":"s-1.safetensors"}})"));
  ASSERT_TRUE(checkpoint.ok()) << Describe(checkpoint.status());
  const absl::Status status = (*checkpoint)->RequireFinite();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Describe(status), HasSubstr("number 1 of tensor \"b\" is not finite"));
}

}  // namespace
}  // namespace signvote
