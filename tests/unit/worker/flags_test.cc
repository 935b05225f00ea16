#include "worker/flags.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/exit_codes.h"

namespace signvote {
namespace {

struct Read {
  absl::Status status;
  WorkerFlags flags;
  std::string print;
};

Read ReadFlags(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "signvote-worker");
  Read read;
  read.status = ParseWorkerFlags(static_cast<int>(arguments.size()), arguments.data(),
                                 FileSystem::Posix(), &read.flags, &read.print);
  return read;
}

TEST(WorkerFlagsTest, TheRunsWeightDecayIsAUsageErrorThatNamesTheServersFlag) {
  const Read read = ReadFlags({"--weight-decay", "0.1"});
  EXPECT_EQ(ExitCodeFor(read.status), ExitCode::kUsage);
  EXPECT_EQ(read.status.message(),
            "--weight-decay is the run's and no longer the worker's: give signvote-server "
            "--weight-decay");
}

TEST(WorkerFlagsTest, TheTimeBetweenCheckpointsNeedsAFolderForThem) {
  EXPECT_EQ(ReadFlags({}).flags.checkpoint.folder, "");
  const Read read = ReadFlags({"--checkpoint", "d", "--checkpoint-every", "200"});
  ASSERT_TRUE(read.status.ok()) << read.status;
  EXPECT_EQ(read.flags.checkpoint.folder, "d");
  EXPECT_EQ(read.flags.checkpoint.every.rounds, 200u);
  EXPECT_EQ(ReadFlags({"--checkpoint", "d"}).flags.checkpoint.every.time, std::chrono::minutes(1));
  const Read alone = ReadFlags({"--checkpoint-every", "200"});
  EXPECT_EQ(ExitCodeFor(alone.status), ExitCode::kUsage);
  EXPECT_EQ(alone.status.message(),
            "--checkpoint-every needs --checkpoint DIR, in which it writes");
}

TEST(WorkerFlagsTest, TheFormatOfTheReplicaIsReadAndNeedsAReplicaThatIsWritten) {
  const Read read = ReadFlags({"--save", "m", "--save-dtype", "bf16", "--save-shard-bytes", "0"});
  ASSERT_TRUE(read.status.ok()) << read.status;
  EXPECT_EQ(read.flags.save_format.dtype, TensorDtype::kBf16);
  EXPECT_EQ(read.flags.save_format.shard_bytes, 0u);
  EXPECT_EQ(ReadFlags({}).flags.save_format.dtype, TensorDtype::kF32);
  for (const std::vector<const char*>& bad :
       {std::vector{"--save-dtype", "bf16"}, std::vector{"--save-shard-bytes", "1000"},
        std::vector{"--save", "m", "--save-dtype", "f16"}}) {
    EXPECT_EQ(ExitCodeFor(ReadFlags(bad).status), ExitCode::kUsage) << bad.back();
  }
}

TEST(WorkerFlagsTest, HelpAndAPrintedConfigurationDoNotOfferWhatIsRefused) {
  for (const char* flag : {"--help", "--print-config"}) {
    const Read read = ReadFlags({flag});
    EXPECT_TRUE(read.status.ok()) << read.status;
    EXPECT_NE(read.print.find("init-seed"), std::string::npos);
    EXPECT_EQ(read.print.find("weight-decay"), std::string::npos) << flag;
  }
}

TEST(WorkerFlagsTest, ATlsFolderNamesTheFilesThatNoFlagNames) {
  const Read read = ReadFlags({"--tls-dir", "d", "--tls-key", "k.pem"});
  ASSERT_TRUE(read.status.ok()) << read.status;
  EXPECT_EQ(read.flags.session.tls_ca, "d/ca.crt");
  EXPECT_EQ(read.flags.session.tls_certificate, "d/worker.crt");
  EXPECT_EQ(read.flags.session.tls_key, "k.pem");
  EXPECT_EQ(read.flags.session.token_file, "d/token");
  EXPECT_EQ(ReadFlags({"--tls-dir", "d", "--insecure"}).flags.session.tls_ca, "");
}

TEST(WorkerFlagsTest, TimesRunIdAndLogAreReadIntoWhatTheProgramWorksWith) {
  const Read read = ReadFlags({"--wait-timeout", "2.5", "--linger-save", "0.5", "--run-id",
                               "00000000-0000-4000-8000-000000000001", "--log-level", "warning"});
  ASSERT_TRUE(read.status.ok()) << read.status;
  EXPECT_EQ(read.flags.session.wait_timeout, std::chrono::milliseconds(2500));
  EXPECT_EQ(read.flags.save_linger, std::chrono::milliseconds(500));
  EXPECT_TRUE(read.flags.session.run_id.has_value());
  EXPECT_EQ(read.flags.log.level, LogLevel::kWarning);
  EXPECT_EQ(ReadFlags({"--run-id", "x"}).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadFlags({"--log-level", "loud"}).status.code(), absl::StatusCode::kInvalidArgument);
}

TEST(WorkerFlagsTest, WhenAWorkerMeasuresIsOneOfThreeWords) {
  EXPECT_EQ(ReadFlags({}).flags.trainer.evaluate, Evaluate::kWhenAsked);
  EXPECT_EQ(ReadFlags({"--eval", "server"}).flags.trainer.evaluate, Evaluate::kWhenAsked);
  EXPECT_EQ(ReadFlags({"--eval", "off"}).flags.trainer.evaluate, Evaluate::kOff);
  const Read here = ReadFlags({"--eval", "here", "--eval-every", "7"});
  ASSERT_TRUE(here.status.ok()) << here.status;
  EXPECT_EQ(here.flags.trainer.evaluate, Evaluate::kOnItsOwnToo);
  EXPECT_EQ(here.flags.trainer.eval_every, 7u);
  EXPECT_EQ(ExitCodeFor(ReadFlags({"--eval", "sometimes"}).status), ExitCode::kUsage);
}

TEST(WorkerFlagsTest, AnIntervalThatIsTheServersToSayIsNotIgnored) {
  for (const char* eval : {"server", "off"}) {
    const Read read = ReadFlags({"--eval", eval, "--eval-every", "7"});
    EXPECT_EQ(ExitCodeFor(read.status), ExitCode::kUsage);
    EXPECT_EQ(read.status.message(),
              "--eval-every 7 belongs to --eval here; how often the server asks is "
              "signvote-server --eval-every");
    // A printed configuration names every flag.
    EXPECT_TRUE(ReadFlags({"--eval", eval, "--eval-every", "50"}).status.ok());
  }
}

TEST(WorkerFlagsTest, WhatIsMissingIsNamedBeforeAnyWorkIsDone) {
  const auto check = [](const Read& read) {
    return std::string(
        CheckWorkerFlags(read.flags, FileSystem::Posix(), Clock::System()).message());
  };
  EXPECT_EQ(check(ReadFlags({})), "--server is missing: give HOST:PORT");
  EXPECT_EQ(check(ReadFlags({"--server", "h:1", "--insecure"})),
            "--name is missing: plaintext has no certificate to take it from");
}

}  // namespace
}  // namespace signvote
