#include "server/exporter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/checkpoint.h"
#include "common/exit_codes.h"
#include "common/export_metadata.h"
#include "common/model_file.h"
#include "common/safetensors.h"
#include "tests/unit/server/rpc/training_service_fixture.h"

namespace signvote {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

// Each look at it takes a tenth of a second.
class PassingClock final : public Clock {
 public:
  Time Now() const override { return now_ = now_ + Duration(milliseconds(100)); }
  int64_t UnixMicros() const override { return 0; }
  void SleepFor(Duration d) override { now_ = now_ + d; }

 private:
  mutable Time now_;
};

// The run is a real one; the exporter's time is the test's, and passes while it sleeps.
class ExporterTest : public rpc::TrainingServiceTest {
 protected:
  void RunWithAModel() {
    run::RunOptions options = Options();
    options.main_rounds_max = 1000;
    options.digest_every = 0;
    options.stop_wait = milliseconds(1);
    StartServer(std::move(options));
    client_ = NewClient();
    ASSERT_TRUE(client_->JoinRun("w"));
    ASSERT_TRUE(Eventually([&] { return run_->committed().has_value(); }));
  }
  void End() {
    run_->RequestStop();
    ASSERT_TRUE(run_->WaitUntilEnded(rpc::kLong));
  }
  std::unique_ptr<Exporter> Make(ExportOptions options) {
    options.path = path_;
    return std::make_unique<Exporter>(FileSystem::Posix(), &clock_, run_.get(), std::move(options));
  }
  static bool Never() { return false; }
  // Of the test's clock; valid until the next one.
  StopBudget* Budget(std::function<bool()> stop_requested) {
    return &budget_.emplace(&clock_, seconds(15), std::move(stop_requested));
  }
  bool HoldsTheModel(const std::string& path) {
    const auto file = Checkpoint::Open(FileSystem::Posix(), path);
    if (!file.ok()) return false;
    std::vector<float> x(rpc::kCoordinates);
    return (*file)->CopyInto(rpc::TestLayout(), x).ok();
  }

  FakeClock clock_;
  std::optional<StopBudget> budget_;
  std::unique_ptr<rpc::WireClient> client_;
  std::string path_ = dir_ / "model.safetensors";
};

TEST_F(ExporterTest, ACopyThatIsAskedForIsWrittenBesideTheRun) {
  RunWithAModel();
  const auto exporter = Make({});
  exporter->Look(Exporter::Asked::kNo);
  exporter->Look(Exporter::Asked::kYes);
  EXPECT_TRUE(run_->HealthNow(rpc::kLong).ok());
  EXPECT_TRUE(Eventually([&] { return HoldsTheModel(dir_ / "model.round-00000000.safetensors"); }));
  End();
  EXPECT_TRUE(exporter->Final(Budget(Never), Never).ok());
  EXPECT_TRUE(HoldsTheModel(path_));
}

TEST_F(ExporterTest, CopiesAndTheModelAreWrittenInTheFormatThatIsAskedFor) {
  RunWithAModel();
  const auto exporter = Make({.format = {.dtype = TensorDtype::kBf16}});
  exporter->Look(Exporter::Asked::kYes);
  const std::string copy = dir_ / "model.round-00000000.safetensors";
  EXPECT_TRUE(Eventually([&] { return HoldsTheModel(copy); }));
  End();
  ASSERT_TRUE(exporter->Final(Budget(Never), Never).ok());
  for (const std::string& path : {path_, copy}) {
    const auto file = SafetensorsFile::Open(FileSystem::Posix(), path);
    ASSERT_TRUE(file.ok()) << file.status();
    for (const SafetensorsFile::Tensor& tensor : (*file)->tensors())
      EXPECT_EQ(tensor.dtype, TensorDtype::kBf16);
  }
}

TEST_F(ExporterTest, AnApplierThatIsFarBehindHasWhatTheBudgetOfAStopLeavesAndNoMore) {
  around_.applier_delay = std::chrono::hours(1);
  RunWithAModel();
  v1::ServerMessage message;
  ASSERT_TRUE(client_->ReadUntil(v1::ServerMessage::kRoundOpen, &message));
  ASSERT_TRUE(client_->Vote(std::vector<uint8_t>((rpc::kCoordinates + 7) / 8)));
  ASSERT_TRUE(Eventually([&] { return run_->committed() == Round(1); }));
  End();
  PassingClock clock;
  StopBudget budget(&clock, seconds(15), [] { return true; });
  const Time begin = clock.Now();
  EXPECT_TRUE(Make({})->Final(&budget, Never).ok());
  EXPECT_GT(clock.Now() - begin, Duration(seconds(10)));
  EXPECT_LE(clock.Now() - begin, Duration(seconds(15)));
  EXPECT_TRUE(HoldsTheModel(path_)) << "as of the round that it has come to";
}

TEST_F(ExporterTest, BeforeThereIsAModelNothingIsWrittenAndNothingHeld) {
  StartServer();
  const auto exporter = Make({});
  exporter->Look(Exporter::Asked::kYes);
  End();
  const Time begin = clock_.Now();
  EXPECT_EQ(exporter->Final(Budget(Never), Never).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(clock_.Now(), begin);
  EXPECT_TRUE(FileSystem::Posix()->ListFiles(dir_.path())->empty());
}

// A run that is stopped before it has a stepsize of its own: whoever goes on from its model goes on
// where it would have.
TEST_F(ExporterTest, AModelSaysTheStepsizeThatItsRunWentOnFrom) {
  const std::vector<float> x(rpc::kCoordinates, 0.25f);
  around_.init = dir_ / "init.safetensors";
  const auto metadata = ExportMetadata({.run_id = RunId::FromRandom(5, 6),
                                        .round = Round(300),
                                        .rule = "alias",
                                        .stepsize = 0.001f});
  ASSERT_TRUE(
      WriteModel(FileSystem::Posix(), around_.init, {}, rpc::TestLayout(), x, metadata, "").ok());
  run::RunOptions options = Options();
  options.rule = {.rule = "alias"};
  options.stop_wait = milliseconds(1);
  StartServer(std::move(options));
  client_ = NewClient();
  ASSERT_TRUE(client_->JoinRun("w"));
  ASSERT_TRUE(Eventually([&] { return run_->committed().has_value(); }));
  const auto exporter = Make({});
  exporter->Look(Exporter::Asked::kNo);
  exporter->Look(Exporter::Asked::kYes);
  const std::string copy = dir_ / "model.round-00000000.safetensors";
  EXPECT_TRUE(Eventually([&] { return HoldsTheModel(copy); }));
  End();
  EXPECT_TRUE(exporter->Final(Budget(Never), Never).ok());
  for (const std::string& path : {copy, path_}) {
    const auto file = Checkpoint::Open(FileSystem::Posix(), path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(*AliasStepsizeOf((*file)->metadata()), 0.001f);
    EXPECT_EQ((*file)->metadata().at("signvote.run_id"), run_->run_id().ToText());
    EXPECT_EQ((*file)->metadata().at("signvote.round"), "0");
  }
}

TEST_F(ExporterTest, AModelThatCannotBeWrittenIsHeldUntilItCan) {
  RunWithAModel();
  End();
  path_ = dir_ / "gone/model.safetensors";
  const Time begin = clock_.Now();
  const auto mend_later = [&] {
    if (clock_.Now() - begin > minutes(1)) std::filesystem::create_directory(dir_ / "gone");
    return false;
  };
  EXPECT_TRUE(Make({})->Final(Budget(Never), mend_later).ok());
  EXPECT_TRUE(HoldsTheModel(path_));
}

TEST_F(ExporterTest, WhoAsksNeedNotWaitForTheNextAttempt) {
  RunWithAModel();
  End();
  path_ = dir_ / "gone/model.safetensors";
  const Time begin = clock_.Now();
  const auto mend_now = [&] { return std::filesystem::create_directory(dir_ / "gone"); };
  EXPECT_TRUE(Make({})->Final(Budget(Never), mend_now).ok());
  EXPECT_EQ(clock_.Now(), begin);
}

TEST_F(ExporterTest, ItIsHeldForTheLingerAndEndsAsABadFile) {
  RunWithAModel();
  End();
  path_ = dir_ / "gone/model.safetensors";
  const Time begin = clock_.Now();
  const absl::Status status = Make({.linger = minutes(7)})->Final(Budget(Never), Never);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(path_));
  EXPECT_EQ(clock_.Now() - begin, Duration(minutes(7)));
}

TEST_F(ExporterTest, AStopGivesUpAModelThatIsHeldUnlessItWasTheOneThatEndedTheRun) {
  RunWithAModel();
  End();
  path_ = dir_ / "gone/model.safetensors";
  const Time begin = clock_.Now();
  const auto stop_later = [&] { return clock_.Now() - begin > minutes(1); };
  EXPECT_EQ(ExitCodeFor(Make({})->Final(Budget(stop_later), Never)), ExitCode::kBadInput);
  EXPECT_LT(clock_.Now() - begin, Duration(minutes(2)));
  const Time again = clock_.Now();
  const auto stopped = [] { return true; };
  EXPECT_EQ(ExitCodeFor(Make({})->Final(Budget(stopped), Never)), ExitCode::kBadInput);
  EXPECT_EQ(clock_.Now() - again, Duration(minutes(10)));
}

}  // namespace
}  // namespace signvote
