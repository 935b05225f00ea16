// Goal:   the tasks are what their page says: reproducible, of the sizes stated, with gradients that are
//         those of their losses.
// Method: finite differences against the plain perceptron; statistics of drawn samples.
#include "lab/tasks/task.h"

#include <cmath>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lab/tasks/plain_mlp.h"
#include "lab/tasks/samples.h"
#include "lab/tasks/text.h"
#include "worker/train/batch_view.h"

namespace signvote::lab {
namespace {

using testing::HasSubstr;

Batch FirstBatch(const Dataset& data) {
  Batch batch;
  EXPECT_TRUE(data.TrainBatch({.seed = 3}, &batch).ok());
  return batch;
}

TEST(PlainMlpTest, ItsGradientIsThatOfItsLoss) {
  for (const uint32_t layers : {0u, 1u, 2u}) {
    ModelConfig config;
    config.kind = ModelKind::kMlp;
    config.layers = layers;
    config.features = 7;
    config.hidden = 19;
    config.classes = 3;
    auto model = MakePlainMlp(config, 5);
    ASSERT_TRUE(model.ok()) << model.status();
    const auto data = MakeSampleDataset(MakeTeacherSource(7, 3, 1), {.rows = 21});
    const Batch batch = FirstBatch(*data);
    ASSERT_TRUE((*model)->BeginStep(ReplicaSlot::kCurrent).ok());
    ASSERT_TRUE((*model)->Forward(ReplicaSlot::kCurrent, ViewOf(batch)).ok());
    // Half and half again: Backward() adds.
    uint64_t ready = 0;
    ASSERT_TRUE((*model)->Backward(0.5f, {}).ok());
    ASSERT_TRUE((*model)->Forward(ReplicaSlot::kCurrent, ViewOf(batch)).ok());
    ASSERT_TRUE((*model)->Backward(0.5f, [&](uint64_t, uint64_t count) { ready += count; }).ok());
    EXPECT_EQ(ready, (*model)->layout().coordinates());
    for (size_t t = 0; t < (*model)->layout().tensors().size(); ++t) {
      for (uint64_t i = 0; i < (*model)->layout().tensors()[t].count; i += 5) {
        float& x = (*model)->parameters()[t][i];
        const float before = x;
        constexpr float kStep = 2e-3f;
        x = before + kStep;
        const double above = *(*model)->Forward(ReplicaSlot::kCurrent, ViewOf(batch));
        x = before - kStep;
        const double below = *(*model)->Forward(ReplicaSlot::kCurrent, ViewOf(batch));
        x = before;
        // Second order of the step, and kinks that lie between.
        EXPECT_NEAR((above - below) / (2 * kStep), (*model)->gradient()[t][i], 4e-3)
            << layers << " layers, tensor " << t << ", " << i;
      }
    }
  }
}

TEST(PlainMlpTest, RowsOfAnEvaluationAreThoseOfTheBatch) {
  auto task = MakeTask(FileSystem::Posix(), {.name = "mlp"}, {});
  ASSERT_TRUE(task.ok()) << task.status();
  Batch batch;
  ASSERT_TRUE(task->data->HeldOut(0, 37, &batch).ok());
  const auto rows = task->model->Evaluate(ReplicaSlot::kCurrent, ViewOf(batch));
  ASSERT_TRUE(rows.ok());
  ASSERT_EQ(rows->size(), 37u);
  double sum = 0;
  for (const double loss : *rows) sum += loss;
  ASSERT_TRUE(task->model->BeginStep(ReplicaSlot::kCurrent).ok());
  EXPECT_NEAR(*task->model->Forward(ReplicaSlot::kCurrent, ViewOf(batch)), sum / 37, 1e-12);
}

TEST(TasksTest, EqualSeedsGiveEqualDataAndOthersOther) {
  for (const auto& make : {+[](uint64_t seed) { return MakeTeacherSource(8, 4, seed); },
                           +[](uint64_t seed) { return MakePlaneSource(8, 100, seed); },
                           +[](uint64_t seed) { return MakeGlyphSource(12, 4, seed); }}) {
    const auto values = [&](uint64_t task_seed, uint64_t run_seed) {
      const auto data = MakeSampleDataset(make(task_seed), {.rows = 32});
      Batch batch;
      EXPECT_TRUE(data->TrainBatch({.seed = run_seed}, &batch).ok());
      std::vector<float> all = batch.values;
      all.insert(all.end(), batch.targets.begin(), batch.targets.end());
      return all;
    };
    EXPECT_EQ(values(1, 1), values(1, 1));
    EXPECT_NE(values(1, 1), values(1, 2));
    EXPECT_NE(values(1, 1), values(2, 1));
  }
}

TEST(TasksTest, EveryClassOccursAndThePlanesScalesDifferAsStated) {
  const auto plane = MakeSampleDataset(MakePlaneSource(16, 1e4, 1), {.rows = 4000});
  const Batch batch = FirstBatch(*plane);
  double first = 0, last = 0;
  int64_t ones = 0;
  for (uint64_t row = 0; row < batch.rows; ++row) {
    first += std::pow(batch.values[row * 16], 2);
    last += std::pow(batch.values[row * 16 + 15], 2);
    ones += batch.targets[row];
  }
  EXPECT_NEAR(first / last, 1e4, 1e3);
  EXPECT_NEAR(static_cast<double>(ones) / 4000, 0.5, 0.05);

  const auto glyphs = MakeSampleDataset(MakeGlyphSource(16, 10, 1), {.rows = 400});
  const Batch pictures = FirstBatch(*glyphs);
  EXPECT_EQ(std::set<int64_t>(pictures.targets.begin(), pictures.targets.end()).size(), 10u);
}

TEST(TasksTest, AMadeUpTextIsOfSentencesThatRepeatWords) {
  const std::string text = MadeUpText(20'000, 1);
  EXPECT_GE(text.size(), 20'000u);
  EXPECT_EQ(text, MadeUpText(20'000, 1));
  EXPECT_NE(text, MadeUpText(20'000, 2));
  std::set<std::string> words;
  std::string word;
  size_t count = 0;
  for (const char c : text) {
    if (c >= 'a' && c <= 'z') {
      word += c;
    } else if (!word.empty()) {
      words.insert(word);
      word.clear();
      ++count;
    }
  }
  EXPECT_GT(count, 5 * words.size());
}

TEST(TasksTest, WhatIsNoTaskIsToldWithThoseThereAre) {
  const auto none = MakeTask(FileSystem::Posix(), {.name = "chess"}, {});
  EXPECT_TRUE(absl::IsInvalidArgument(none.status()));
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("logistic, mlp, text, cnn, vit"));
  const auto data = MakeTask(FileSystem::Posix(), {.name = "mlp", .data = "a.txt"}, {});
  EXPECT_TRUE(absl::IsInvalidArgument(data.status()));
  const auto rows = MakeTask(FileSystem::Posix(), {.name = "mlp", .rows = kRowsMax + 1}, {});
  EXPECT_TRUE(absl::IsInvalidArgument(rows.status()));
  EXPECT_THAT(std::string(rows.status().message()), HasSubstr("--batch 65537 is above 65536"));
  EXPECT_TRUE(absl::IsUnimplemented(MakeTask(FileSystem::Posix(), {.name = "cnn"}, {}).status()));
}

}  // namespace
}  // namespace signvote::lab
