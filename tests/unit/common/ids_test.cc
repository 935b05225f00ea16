#include "common/ids.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <type_traits>
#include <unordered_set>

namespace signvote {
namespace {

static_assert(!std::is_convertible_v<uint64_t, Round>, "a bare integer is no round");
static_assert(!std::is_constructible_v<Round, Epoch>, "an epoch is no round");

TEST(StrongInt, ComparesCountsAndHashes) {
  EXPECT_LT(Round(1), Round(2));
  EXPECT_EQ(Round(1).next(), Round(2));
  Round round(5);
  EXPECT_EQ(++round, Round(6));
  const std::unordered_set<Share> shares = {Share(1), Share(2), Share(1)};
  EXPECT_EQ(shares.size(), 2u);
}

TEST(WorkerName, AcceptsHostNames) {
  const std::string longest(63, 'x');
  for (const char* name : {"a", "worker-1", "w.example.org", "W_2", longest.c_str(), "0"}) {
    EXPECT_TRUE(ValidateWorkerName(name).ok()) << name;
  }
}

TEST(WorkerName, RefusesEverythingElse) {
  for (const std::string& name :
       {std::string(), std::string(64, 'x'), std::string("-a"), std::string("a-"),
        std::string(".a"), std::string("a b"), std::string("a/b"), std::string("ü"),
        std::string("a\nb"), std::string("a\0b", 3)}) {
    EXPECT_EQ(ValidateWorkerName(name).code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST(RunId, TextAndBytesRoundTrip) {
  const std::string text = "123e4567-e89b-42d3-a456-426614174000";
  const auto id = RunId::FromText(text);
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(id->ToText(), text);
  EXPECT_EQ(static_cast<unsigned char>(id->bytes()[0]), 0x12);
  EXPECT_EQ(*RunId::FromBytes(id->bytes()), *id);
  EXPECT_EQ(*RunId::FromText("123E4567-E89B-42D3-A456-426614174000"), *id);
  EXPECT_FALSE(id->empty());
  EXPECT_TRUE(RunId().empty());
}

TEST(RunId, MalformedTextAndBytesAreRefused) {
  for (const std::string& text : {std::string(), std::string("123e4567-e89b-42d3-a456-42661417400"),
                                  std::string("123e4567-e89b-42d3-a456-4266141740000"),
                                  std::string("123e4567+e89b-42d3-a456-426614174000"),
                                  std::string("123e4567-e89b-42d3-a456-42661417400g")}) {
    EXPECT_EQ(RunId::FromText(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_EQ(RunId::FromBytes("short").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RunId::FromBytes(std::string(17, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(RunId, RandomOnesAreVersion4) {
  for (const auto& [high, low] :
       {std::pair(uint64_t{0}, uint64_t{0}), std::pair(~uint64_t{0}, ~uint64_t{0})}) {
    const std::string text = RunId::FromRandom(high, low).ToText();
    EXPECT_EQ(text[14], '4') << text;
    EXPECT_NE(std::string("89ab").find(text[19]), std::string::npos) << text;
  }
  EXPECT_NE(RunId::FromRandom(1, 2), RunId::FromRandom(1, 3));
}

}  // namespace
}  // namespace signvote
