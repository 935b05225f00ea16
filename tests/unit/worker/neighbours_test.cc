#include "worker/neighbours.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace signvote {
namespace {

using std::chrono::seconds;

constexpr uint32_t kEight = 0xff;  // processors 0 to 7

class FakeTable final : public ProcessTable {
 public:
  std::optional<ProcessEntry> Self() override { return self; }
  std::vector<ProcessEntry> Others() override {
    ++looks;
    return others;
  }
  void Add(const std::string& program, uint32_t processors) {
    others.push_back({.id = 100 + others.size(), .program = program, .processors = {processors}});
  }
  std::optional<ProcessEntry> self =
      ProcessEntry{.id = 1, .program = "signvote-worker", .processors = {kEight}};
  std::vector<ProcessEntry> others;
  int looks = 0;
};

class NeighbourWatchTest : public ::testing::Test {
 protected:
  std::optional<ThreadsAdvice> Look(uint32_t threads) {
    return NeighbourWatch(&table_, threads).Look(start_);
  }
  FakeTable table_;
  const Time start_ = Time{} + seconds(100);
};

TEST_F(NeighbourWatchTest, WorkersThatTakeEveryProcessorEachAreToldTheirShare) {
  for (int i = 0; i < 2; ++i) table_.Add("signvote-worker", kEight);
  const auto advice = Look(8);
  ASSERT_TRUE(advice.has_value());
  EXPECT_EQ(advice->workers, 3u);
  EXPECT_EQ(advice->processors, 8u);
  EXPECT_EQ(advice->threads, 2u);
}

TEST_F(NeighbourWatchTest, MoreWorkersThanProcessorsGetOneThreadEach) {
  for (int i = 0; i < 9; ++i) table_.Add("signvote-worker", kEight);
  ASSERT_TRUE(Look(8).has_value());
  EXPECT_EQ(Look(8)->threads, 1u);
}

TEST_F(NeighbourWatchTest, NothingIsSaidOfOtherProgramsOrOtherProcessors) {
  table_.Add("signvote-server", kEight);
  table_.Add("signvote-worker", 0xf00);
  EXPECT_FALSE(Look(8).has_value());
}

TEST_F(NeighbourWatchTest, NothingIsSaidToAWorkerThatLeavesProcessorsFreeOrHasOne) {
  table_.Add("signvote-worker", kEight);
  EXPECT_FALSE(Look(7).has_value());
  table_.self->processors = {1};
  EXPECT_FALSE(Look(1).has_value());
  table_.self.reset();
  EXPECT_FALSE(Look(8).has_value());
}

TEST_F(NeighbourWatchTest, ANeighbourWhoComesLaterIsNoticedWithinAMinuteAndOnce) {
  NeighbourWatch watch(&table_, 8);
  EXPECT_FALSE(watch.Look(start_).has_value());
  table_.Add("signvote-worker", kEight);
  EXPECT_FALSE(watch.Look(start_ + seconds(59)).has_value());
  EXPECT_EQ(table_.looks, 1);
  EXPECT_TRUE(watch.Look(start_ + seconds(60)).has_value());
  EXPECT_FALSE(watch.Look(start_ + seconds(600)).has_value());
  EXPECT_EQ(table_.looks, 2) << "nothing is left to look for";
}

}  // namespace
}  // namespace signvote
