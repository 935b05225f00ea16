#include "server/stepsize/rule_state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "common/checksum.h"

namespace signvote {
namespace {

constexpr auto kLost = absl::StatusCode::kDataLoss;

std::string Record() {
  RuleStateWriter writer("rule", 3);
  writer.Add(uint64_t{0x0102030405060708});
  writer.Add(-0.0);
  return writer.Take();
}

TEST(RuleStateTest, WhatIsWrittenIsRead) {
  const std::string bytes = Record();
  RuleStateReader reader(bytes, "rule", 3);
  EXPECT_EQ(reader.U64(), 0x0102030405060708u);
  EXPECT_TRUE(std::signbit(reader.Double()));
  EXPECT_TRUE(reader.Finish().ok());
}

TEST(RuleStateTest, TheBytesAreThoseOfThePage) {
  const std::string bytes = Record();
  ASSERT_EQ(bytes.size(), 1u + 4 + 4 + 8 + 8 + 8);
  EXPECT_EQ(bytes.substr(0, 9), std::string("\x04rule\x03\0\0\0", 9));
  EXPECT_EQ(bytes.substr(9, 8), "\x08\x07\x06\x05\x04\x03\x02\x01");
  EXPECT_EQ(bytes.substr(17, 8), std::string("\0\0\0\0\0\0\0\x80", 8));
}

TEST(RuleStateTest, AnotherRuleOrVersionIsNamed) {
  const std::string bytes = Record();
  const absl::Status rule = RuleStateReader(bytes, "other", 3).Finish();
  EXPECT_EQ(rule.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(rule.message().find("'rule', version 3"), std::string::npos);
  EXPECT_EQ(RuleStateReader(bytes, "rule", 4).Finish().code(), absl::StatusCode::kInvalidArgument);
}

TEST(RuleStateTest, EveryFlippedBitAndEveryCutIsDamage) {
  const std::string bytes = Record();
  const auto read = [](const std::string& damaged) {
    RuleStateReader reader(damaged, "rule", 3);
    (void)reader.U64();
    (void)reader.Double();
    return reader.Finish().code();
  };
  ASSERT_EQ(read(bytes), absl::StatusCode::kOk);
  for (size_t i = 0; i < 8 * bytes.size(); ++i) {
    std::string flipped = bytes;
    flipped[i / 8] = static_cast<char>(flipped[i / 8] ^ (1 << (i % 8)));
    EXPECT_EQ(read(flipped), kLost) << "bit " << i;
  }
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_EQ(read(bytes.substr(0, n)), kLost);
  EXPECT_EQ(read(bytes + "x"), kLost);
}

TEST(RuleStateTest, ANameLongerThanItsRecordIsDamageThoughTheHashIsRight) {
  for (const int name_bytes : {2, 255}) {
    std::string bytes = "?abcde";  // room for a name of one byte before the version
    bytes[0] = static_cast<char>(name_bytes);
    const uint64_t hash = Xxh3(bytes.data(), bytes.size());
    for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(hash >> (8 * i)));
    EXPECT_EQ(RuleStateReader(bytes, "a", 1).Finish().code(), kLost) << name_bytes;
  }
}

TEST(RuleStateTest, ANameHasAtMost255Bytes) {
  const std::string longest(255, 'n');
  const std::string bytes = RuleStateWriter(longest, 1).Take();
  EXPECT_TRUE(RuleStateReader(bytes, longest, 1).Finish().ok());
  EXPECT_DEATH(RuleStateWriter(longest + "n", 1), "kNameBytesMax");
}

TEST(RuleStateTest, ARecordMayHaveNeitherNameNorFields) {
  const std::string bytes = RuleStateWriter("", 1).Take();
  EXPECT_TRUE(RuleStateReader(bytes, "", 1).Finish().ok());
}

TEST(RuleStateTest, AFieldTooManyOrTooFewIsDamage) {
  const std::string bytes = Record();
  RuleStateReader few(bytes, "rule", 3);
  EXPECT_NE(few.U64(), 0u);
  EXPECT_EQ(few.Finish().code(), kLost);
  RuleStateReader many(bytes, "rule", 3);
  (void)many.U64();
  (void)many.U64();
  EXPECT_EQ(many.U64(), 0u);
  EXPECT_EQ(many.Finish().code(), kLost);
}

}  // namespace
}  // namespace signvote
