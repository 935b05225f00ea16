#include "server/replica/master_replica.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "common/apply.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/rng.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

Layout TwoTensors(uint64_t first, uint64_t second) {
  return *Layout::Make({{.name = "a", .shape = {first}, .weight_decay = 0.01f},
                        {.name = "b", .shape = {second}, .step_scale = 0.5f}});
}

std::shared_ptr<CommitRecord> RandomCommit(uint64_t round, uint64_t coordinates, uint64_t seed) {
  auto record = std::make_shared<CommitRecord>();
  record->round = Round(round);
  record->gamma = 0.01f;
  const std::shared_ptr<uint8_t> bits(new uint8_t[BytesForBits(coordinates)],
                                      std::default_delete<uint8_t[]>());
  for (size_t i = 0; i < BytesForBits(coordinates); ++i)
    bits.get()[i] = static_cast<uint8_t>((seed + i) * 167 + 13);
  record->verdict = bits;
  return record;
}

TEST(MasterReplicaTest, AppliesEachPieceAsOneApplyOverTheWholeModelWould) {
  const uint64_t d = 2 * MasterReplica::kPieceCoordinates + 777;
  const std::unique_ptr<MasterReplica> owner =
      std::move(*MasterReplica::Create(TwoTensors(300'000, d - 300'000)));
  MasterReplica& replica = *owner;
  ASSERT_EQ(replica.pieces(), 3u);
  std::vector<float> expected(d);
  for (uint64_t i = 0; i < d; ++i)
    expected[i] = replica.x()[i] = static_cast<float>(i % 1000) * 0.001f;
  uint64_t digest = 0;
  for (uint64_t r = 0; r < 3; ++r) {
    const auto record = RandomCommit(r, d, r);
    record->digest_due = r == 2;
    digest = replica.Apply(*record);
    EXPECT_EQ(digest != 0, r == 2);
    ApplyStep(replica.layout(), record->gamma, 0, d, record->verdict.get(), 0, expected.data());
  }
  EXPECT_EQ(std::memcmp(expected.data(), replica.x().data(), d * sizeof(float)), 0);
  EXPECT_EQ(digest, ReplicaDigest(expected.data(), 0, d));
  EXPECT_EQ(digest, replica.Digest());
}

TEST(MasterReplicaTest, APieceTellsTheRoundAtWhichItStands) {
  const std::unique_ptr<MasterReplica> owner =
      std::move(*MasterReplica::Create(TwoTensors(10, 20)));
  MasterReplica& replica = *owner;
  std::vector<float> piece(30);
  EXPECT_EQ(replica.CopyPiece(0, piece.data()), Round(0));
  (void)replica.Apply(*RandomCommit(0, 30, 1));
  EXPECT_EQ(replica.CopyPiece(0, piece.data()), Round(1));
  EXPECT_EQ(std::memcmp(piece.data(), replica.x().data(), sizeof(float) * 30), 0);
}

TEST(MasterReplicaTest, ExportWritesTheModelAndItsConfigBesideIt) {
  TempDir dir;
  const Layout layout = TwoTensors(3, 2);
  const std::vector<float> x = {1, 2, 3, 4, 5};
  FileSystem* fs = FileSystem::Posix();
  ASSERT_TRUE(ExportReplica(fs, dir / "model.safetensors", layout, x, {{"signvote.round", "7"}},
                            "{\"a\":1}")
                  .ok());
  const auto file = SafetensorsFile::Open(fs, dir / "model.safetensors");
  ASSERT_TRUE(file.ok()) << Describe(file.status());
  std::vector<float> back(5);
  ASSERT_TRUE((*file)->CopyInto(layout, back).ok());
  EXPECT_EQ(back, x);
  EXPECT_EQ((*file)->metadata().at("signvote.round"), "7");
  EXPECT_EQ(*fs->ReadFile(dir / "config.json", 100), "{\"a\":1}");
}

}  // namespace
}  // namespace signvote
