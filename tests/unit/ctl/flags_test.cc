#include "ctl/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "common/exit_codes.h"

namespace signvote::ctl {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Read {
  absl::Status status;
  CtlFlags flags;
  std::string print;
};

Read ReadFlags(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "signvote");
  Read read;
  read.status = ParseCtlFlags(static_cast<int>(arguments.size()), arguments.data(),
                              FileSystem::Posix(), &read.flags, &read.print);
  return read;
}

class CtlFlagsTest : public testing::Test {
 protected:
  void SetUp() override {
    ::unsetenv("SIGNVOTE_SERVER");
    ::unsetenv("SIGNVOTE_TLS_DIR");
  }
};

TEST_F(CtlFlagsTest, EachWordIsItsCommand) {
  for (const auto& [arguments, command] : std::vector<std::pair<std::vector<const char*>, Command>>{
           {{"status"}, Command::kStatus},
           {{"top"}, Command::kTop},
           {{"pause"}, Command::kPause},
           {{"resume"}, Command::kResume},
           {{"drain", "a"}, Command::kDrain},
           {{"evict", "a"}, Command::kEvict},
           {{"export", "f"}, Command::kExport},
           {{"certs", "d"}, Command::kCerts},
           {{"lab", "tasks"}, Command::kLab},
           {{"version"}, Command::kVersion}}) {
    const Read read = ReadFlags(arguments);
    ASSERT_TRUE(read.status.ok()) << arguments[0] << ": " << read.status;
    EXPECT_EQ(read.flags.command, command) << arguments[0];
    EXPECT_EQ(read.print, "") << arguments[0];
  }
}

TEST_F(CtlFlagsTest, WhatFollowsLabIsThatProgramsWhateverItLooksLike) {
  const Read read = ReadFlags({"lab", "train", "--task", "mlp", "--server", "status", "--help"});
  ASSERT_TRUE(read.status.ok()) << read.status;
  EXPECT_EQ(read.print, "");
  EXPECT_THAT(read.flags.lab,
              ElementsAre("train", "--task", "mlp", "--server", "status", "--help"));
}

TEST_F(CtlFlagsTest, WithoutACommandItsObjectOrAKnownFlagNothingIsDone) {
  for (const std::vector<const char*>& arguments :
       std::vector<std::vector<const char*>>{{},
                                             {"drain"},
                                             {"evict"},
                                             {"export"},
                                             {"certs"},
                                             {"restart"},
                                             {"status", "--lines"},
                                             {"status", "pause"}}) {
    EXPECT_EQ(ExitCodeFor(ReadFlags(arguments).status), ExitCode::kUsage)
        << (arguments.empty() ? "" : arguments[0]);
  }
}

TEST_F(CtlFlagsTest, TheConnectionsFlagsMayStandOnEitherSideOfTheCommand) {
  const Read before = ReadFlags({"--server", "h:1", "--insecure", "--timeout", "2.5", "pause"});
  const Read after =
      ReadFlags({"drain", "alpha", "--server", "h:1", "--insecure", "--timeout=2.5"});
  for (const Read* read : {&before, &after}) {
    ASSERT_TRUE(read->status.ok()) << read->status;
    EXPECT_EQ(read->flags.admin.server, "h:1");
    EXPECT_TRUE(read->flags.admin.insecure);
    EXPECT_EQ(read->flags.admin.timeout, std::chrono::milliseconds(2500));
  }
  EXPECT_EQ(after.flags.worker, "alpha");
}

TEST_F(CtlFlagsTest, ATlsFolderNamesTheFilesThatNoFlagNames) {
  const Read read = ReadFlags({"status", "--tls-dir", "d", "--tls-key", "k.pem"});
  ASSERT_TRUE(read.status.ok()) << read.status;
  EXPECT_EQ(read.flags.admin.tls.ca, "d/ca.crt");
  EXPECT_EQ(read.flags.admin.tls.certificate, "d/admin.crt");
  EXPECT_EQ(read.flags.admin.tls.key, "k.pem");
  EXPECT_EQ(ReadFlags({"status"}).flags.admin.tls.ca, "");
}

TEST_F(CtlFlagsTest, TheEnvironmentNamesServerAndFolderWhereTheCommandLineDoesNot) {
  ::setenv("SIGNVOTE_SERVER", "far:2", 1);
  ::setenv("SIGNVOTE_TLS_DIR", "e", 1);
  const Read read = ReadFlags({"status"});
  EXPECT_EQ(read.flags.admin.server, "far:2");
  EXPECT_EQ(read.flags.admin.tls.ca, "e/ca.crt");
  const Read said = ReadFlags({"status", "--server", "h:1", "--tls-dir", "d"});
  EXPECT_EQ(said.flags.admin.server, "h:1");
  EXPECT_EQ(said.flags.admin.tls.ca, "d/ca.crt");
}

TEST_F(CtlFlagsTest, TopIsAScreenUnlessOneOtherFormIsAskedFor) {
  EXPECT_EQ(ReadFlags({"top"}).flags.top.mode, TopMode::kScreen);
  EXPECT_EQ(ReadFlags({"top", "--lines"}).flags.top.mode, TopMode::kLines);
  EXPECT_EQ(ReadFlags({"top", "--json"}).flags.top.mode, TopMode::kJson);
  EXPECT_EQ(ReadFlags({"top", "--once"}).flags.top.mode, TopMode::kOnce);
  for (const std::vector<const char*>& two :
       std::vector<std::vector<const char*>>{{"top", "--lines", "--json"},
                                             {"top", "--json", "--once"},
                                             {"top", "--once", "--lines"}}) {
    const Read read = ReadFlags(two);
    EXPECT_EQ(ExitCodeFor(read.status), ExitCode::kUsage);
    EXPECT_THAT(std::string(read.status.message()), HasSubstr("exclude one another"));
  }
}

TEST_F(CtlFlagsTest, TopsTimesAndItsServerAreReadIntoWhatItWorksWith) {
  const Read read =
      ReadFlags({"top", "--interval", "0.5", "--server-timeout", "3", "--server", "h:1"});
  ASSERT_TRUE(read.status.ok()) << read.status;
  EXPECT_EQ(read.flags.top.interval, std::chrono::milliseconds(500));
  EXPECT_EQ(read.flags.top.server_timeout, std::chrono::seconds(3));
  EXPECT_EQ(read.flags.top.server, "h:1");
  EXPECT_EQ(ReadFlags({"top"}).flags.top.server_timeout, std::chrono::minutes(10));
  for (const char* wrong :
       {"--interval=0", "--interval=61", "--interval=nan", "--server-timeout=-1"})
    EXPECT_EQ(ExitCodeFor(ReadFlags({"top", wrong}).status), ExitCode::kUsage) << wrong;
}

TEST_F(CtlFlagsTest, CertsAndExportKeepWhatTheyWereGiven) {
  const Read certs = ReadFlags({"certs", "d", "--server-name", "x", "--server-name", "y",
                                "--worker", "a", "--worker", "b", "--days", "7"});
  ASSERT_TRUE(certs.status.ok()) << certs.status;
  EXPECT_EQ(certs.flags.certs.directory, "d");
  EXPECT_THAT(certs.flags.certs.server_names, ElementsAre("x", "y"));
  EXPECT_THAT(certs.flags.certs.workers, ElementsAre("a", "b"));
  EXPECT_EQ(certs.flags.certs.days, 7);
  EXPECT_EQ(ReadFlags({"export", "m.safetensors"}).flags.file, "m.safetensors");
  const auto narrow = ReadFlags({"export", "m", "--dtype", "bf16", "--shard-bytes", "7"});
  EXPECT_EQ(narrow.flags.format.dtype, TensorDtype::kBf16);
  EXPECT_EQ(narrow.flags.format.shard_bytes, 7u);
  EXPECT_TRUE(ReadFlags({"status", "--json"}).flags.json);
}

TEST_F(CtlFlagsTest, HelpAndVersionAreTextForStandardOutput) {
  EXPECT_THAT(ReadFlags({"--help"}).print, HasSubstr("evict"));
  EXPECT_THAT(ReadFlags({"top", "--help"}).print, HasSubstr("--server-timeout"));
  const Read version = ReadFlags({"--version"});
  EXPECT_TRUE(version.status.ok()) << version.status;
  EXPECT_THAT(version.print, HasSubstr("signvote "));
}

}  // namespace
}  // namespace signvote::ctl
