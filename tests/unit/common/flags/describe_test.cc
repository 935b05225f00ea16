#include "common/flags/describe.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/flags/flags.h"

namespace signvote {
namespace {

using Json = nlohmann::json;

class DescribeTest : public ::testing::Test {
 protected:
  DescribeTest() {
    app_.add_option("-c,--count,--number", count_, "how many")
        ->check(UnsignedBetween(1, 10))
        ->capture_default_str()
        ->group("Numbers")
        ->envname("PROGRAM_COUNT");
    app_.add_option("--seconds", seconds_, "how long")->check(NumberBetween(-1.5, 100));
    app_.add_option("--seed", seed_, "any")->check(AnyUnsigned());
    app_.add_option("--mode", mode_, "how")->check(CLI::IsMember({"auto", "off"}));
    app_.add_option("--address", address_, "where")
        ->type_name("HOST:PORT")
        ->check(Kind(ValueKind::kDial));
    app_.add_option("--any", any_, "said by nobody");
    CLI::Option* const file = app_.add_option("--file", files_, "which")
                                  ->type_name("FILE")
                                  ->check(Kind(ValueKind::kFile));
    file->required();
    CLI::Option* const quiet = app_.add_flag("--quiet", quiet_, "say nothing");
    quiet->needs(file)->excludes(app_.get_option("--mode"))->excludes(app_.get_option("--count"));
    app_.add_option("--hidden", hidden_, "not for people")->group("");
    CLI::App* const copy = app_.add_subcommand("copy", "copies one file");
    copy->add_option("FILE", from_, "what to copy")->type_name("FILE")->required();
    json_ = Json::parse(DescribeJson(app_));
  }

  Json Option(const std::string& name) const {
    for (const Json& option : json_["options"]) {
      for (const Json& one : option["names"]) {
        if (one == name) return option;
      }
    }
    return nullptr;
  }

  CLI::App app_{"a program", "program"};
  uint64_t count_ = 3, seed_ = 0;
  double seconds_ = 1;
  std::string mode_, address_, any_, hidden_, from_;
  std::vector<std::string> files_;
  bool quiet_ = false;
  Json json_;
};

TEST_F(DescribeTest, EachFieldOfAnOptionIsSaid) {
  EXPECT_EQ(Option("--count"), Json::parse(R"({"names": ["-c", "--count", "--number"],
      "text": "how many", "group": "Numbers", "type": "UINT", "kind": "number",
      "choices": [], "least": "1",
      "most": "10", "default": "3", "many": false, "required": false, "env": "PROGRAM_COUNT",
      "needs": [], "excludes": ["--quiet"]})"));
}

TEST_F(DescribeTest, BoundsChoicesAndTypesAreTakenApart) {
  EXPECT_EQ(Option("--seconds")["type"], "FLOAT");
  EXPECT_EQ(Option("--seconds")["least"], "-1.5");
  EXPECT_EQ(Option("--seconds")["most"], "100");
  EXPECT_EQ(Option("--seed")["type"], "UINT");
  EXPECT_EQ(Option("--seed")["least"], "");
  EXPECT_EQ(Option("--mode")["type"], "TEXT");
  EXPECT_EQ(Option("--mode")["choices"], Json({"auto", "off"}));
  EXPECT_EQ(Option("--address")["type"], "HOST:PORT");
  EXPECT_EQ(Option("--address")["choices"], Json::array());
}

TEST_F(DescribeTest, TheKindOfEachValueIsSaid) {
  const std::pair<const char*, const char*> kinds[] = {
      {"--count", "number"}, {"--seconds", "number"}, {"--mode", "word"}, {"--quiet", "switch"},
      {"--address", "dial"}, {"--file", "file"},      {"--any", ""}};
  for (const auto& [name, kind] : kinds) EXPECT_EQ(Option(name)["kind"], kind) << name;
  EXPECT_EQ(Option("--file")["type"], "FILE") << "a kind is no part of the type";
}

TEST_F(DescribeTest, RepeatedRequiredAndConditionalOptionsSaySo) {
  EXPECT_EQ(Option("--file")["many"], true);
  EXPECT_EQ(Option("--file")["required"], true);
  EXPECT_EQ(Option("--mode")["many"], false);
  EXPECT_EQ(Option("--quiet")["type"], "");
  EXPECT_EQ(Option("--quiet")["needs"], Json({"--file"}));
  EXPECT_EQ(Option("--quiet")["excludes"], Json({"--count", "--mode"}));
}

TEST_F(DescribeTest, HiddenOptionsStayHidden) {
  EXPECT_EQ(Option("--hidden"), nullptr);
  EXPECT_NE(Option("--help"), nullptr);
}

TEST_F(DescribeTest, SubcommandsCarryTheirOptionsAndPositionals) {
  ASSERT_EQ(json_["subcommands"].size(), 1u);
  const Json& copy = json_["subcommands"][0];
  EXPECT_EQ(copy["name"], "copy");
  EXPECT_EQ(copy["text"], "copies one file");
  ASSERT_EQ(copy["positionals"].size(), 1u);
  EXPECT_EQ(copy["positionals"][0]["names"], Json({"FILE"}));
  EXPECT_EQ(copy["positionals"][0]["type"], "FILE");
  EXPECT_EQ(copy["options"].size(), 1u) << "--help";
}

TEST_F(DescribeTest, ASoleDescribePrintsItAndNothingElseIsChecked) {
  const std::vector<const char*> words = {"program", "--describe"};
  std::string print;
  ASSERT_TRUE(ParseFlags(&app_, 2, words.data(), FileSystem::Posix(), &print).ok())
      << "--file is required";
  EXPECT_EQ(print, DescribeJson(app_));
}

TEST_F(DescribeTest, BesideOtherWordsDescribeIsAnUnknownFlag) {
  const std::vector<const char*> words = {"program", "--describe", "--file=x"};
  std::string print;
  EXPECT_FALSE(ParseFlags(&app_, 3, words.data(), FileSystem::Posix(), &print).ok());
  EXPECT_EQ(print, "");
}

}  // namespace
}  // namespace signvote
