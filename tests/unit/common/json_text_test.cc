#include "common/json_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace signvote {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string Fault(const std::string& text, RepeatedKeys repeated = RepeatedKeys::kLastCounts) {
  return JsonObjectFault(text, repeated);
}

TEST(JsonTextTest, AnObjectHasNoFault) {
  for (const char* good :
       {"{}", " {\"a\": [1, {\"b\": null}]}\n", "\xef\xbb\xbf{\"a\": \"\xc3\xa4\"}"})
    EXPECT_EQ(Fault(good), "") << good;
}

TEST(JsonTextTest, WhereItBreaksOffIsToldByLineAndColumn) {
  EXPECT_THAT(Fault("{\n  \"a\": 1,\n  \"b\": ,\n}"), StartsWith("line 3, column 8: syntax error"));
  EXPECT_THAT(Fault("{\"a\": 1"), StartsWith("line 1, column 8: "));
  EXPECT_THAT(Fault("{\"a\": 1}\n}"), StartsWith("line 2, column 1: "));
  EXPECT_THAT(Fault("{\n\"a\": 1e999}"), StartsWith("line 2, column 1"));
  EXPECT_THAT(Fault("{\"a\": \"\xff\"}"), HasSubstr("UTF-8"));
  EXPECT_THAT(Fault(""), StartsWith("line 1, column 1: "));
}

TEST(JsonTextTest, WhatIsAnotherThingIsCalledByItsName) {
  EXPECT_EQ(Fault("[{}]"), "a JSON array");
  EXPECT_EQ(Fault("\"{}\""), "a JSON string");
  EXPECT_EQ(Fault("17"), "a JSON number");
  EXPECT_EQ(Fault("true"), "a JSON boolean");
  EXPECT_EQ(Fault("null"), "null");
  EXPECT_THAT(Fault("<html>"), HasSubstr("a web page"));
}

TEST(JsonTextTest, AKeyThatStandsTwiceInOneObjectIsNamedWhereItMatters) {
  const std::string twice = R"({"a": {"x": 1, "y": {"x": 2}, "x": 3}})";
  EXPECT_EQ(Fault(twice), "");
  EXPECT_EQ(Fault(twice, RepeatedKeys::kRefused), "the key \"x\" stands twice");
  EXPECT_EQ(Fault(R"({"x": [{"x": 1}, {"x": 2}], "y": {"x": 3}})", RepeatedKeys::kRefused), "");
}

TEST(JsonTextTest, NeitherDepthNorLengthMakesAFaultLong) {
  EXPECT_EQ(Fault(std::string(1 << 20, '[')), "a JSON array");
  EXPECT_LT(Fault("{\"a\": " + std::string(1 << 20, '[')).size(), 257u);
  EXPECT_LT(Fault("{\"a\": \"" + std::string(1 << 20, 'x')).size(), 257u);
  const std::string key(1 << 20, 'k');
  EXPECT_LT(Fault("{\"" + key + "\":1,\"" + key + "\":2}", RepeatedKeys::kRefused).size(), 257u);
}

}  // namespace
}  // namespace signvote
