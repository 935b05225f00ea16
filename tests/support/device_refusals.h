#pragma once
// What every device refuses of its callers, in words and without a change: written once, because
// each device checks for itself.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "common/status.h"
#include "worker/direction/worker_device.h"

namespace signvote::refusals {

inline void ExpectInvalid(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << Describe(status);
}
inline void ExpectTooEarly(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << Describe(status);
}

// `values`: memory of the device, 2,000 floats.
inline void ExpectRefusals(WorkerDevice* device, float* values) {
  constexpr uint64_t kD = 1500, kFar = UINT64_MAX;
  const Layout layout =
      *Layout::Make({{.name = "a", .shape = {1000}}, {.name = "b", .shape = {500}}});
  const Layout other = *Layout::Make({{.name = "a", .shape = {2000}}});
  const ChunkPlan plan(kD, 512);
  const std::vector<float*> x = PointersInto(layout, values);
  const std::vector<const float*> g(x.begin(), x.end());
  std::vector<float> host(kD), state(kD, 2.0f);
  std::vector<uint8_t> bits(plan.TotalBytes());

  // ---- the packer
  ExpectInvalid(device->MakePacker(&layout, ChunkPlan(2000, 512), {}).status());
  const auto made = device->MakePacker(&layout, plan, {.kind = DirectionKind::kSignum});
  ASSERT_TRUE(made.ok()) << Describe(made.status());
  BallotPacker& packer = **made;
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(state));
  ASSERT_TRUE(packer.RestoreState(0, 0, bytes).ok());
  const auto refused_range = [&](size_t plane, uint64_t first, std::span<std::byte> part) {
    ExpectInvalid(packer.SaveState(plane, first, part));
    ExpectInvalid(packer.RestoreState(plane, first, part));
  };
  refused_range(1, 0, bytes);
  refused_range(SIZE_MAX, 0, bytes);
  refused_range(0, 1, bytes);
  refused_range(0, kD + 1, {});
  refused_range(0, kFar, bytes.first(8));
  refused_range(0, 0, bytes.first(6));
  EXPECT_TRUE(packer.SaveState(0, kD, {}).ok()) << "nothing, at the end";
  std::vector<float> saved(kD);
  ASSERT_TRUE(packer.SaveState(0, 0, std::as_writable_bytes(std::span(saved))).ok());
  EXPECT_EQ(saved, state) << "what is refused changes nothing";
  const std::vector<const float*> none = {g[0], nullptr};
  const std::vector<Direction::ChunkInput> inputs = {
      {.g = std::span(g).first(1)},
      {.g = g, .u = std::span(g).first(1)},
      {.g = g, .u = none},
      {.g = g, .h = std::span(g).first(1)},
  };
  for (const Direction::ChunkInput& input : inputs) {
    ExpectInvalid(packer.Start(ChunkIndex(2), input, bits.data()));
  }
  ExpectInvalid(packer.Start(ChunkIndex(3), {.g = g}, bits.data()));
  ExpectInvalid(packer.Ready(ChunkIndex(3)).status());
  ExpectInvalid(packer.Finish(ChunkIndex(UINT32_MAX)).status());

  // ---- the replica
  ExpectInvalid(device->MakeReplica(&layout, std::span(x).first(1)).status());
  const auto memory = device->MakeReplica(&layout, x);
  ASSERT_TRUE(memory.ok()) << Describe(memory.status());
  ReplicaMemory& replica = **memory;
  const std::span<float> whole(host);
  for (const uint64_t first : {uint64_t{1}, kD + 1, kFar}) {
    ExpectInvalid(replica.Read(first, whole));
    ExpectInvalid(replica.Write(first, whole));
    ExpectInvalid(replica.ApplyStep(layout, 0.5f, first, kD, bits.data()));
  }
  const std::vector<float> scales(3, 1.0f);
  ExpectInvalid(replica.Apply(layout, {.gamma = 0.5f, .scales = scales}, 0, kD, bits.data()));
  ExpectInvalid(replica.ApplyStep(other, 0.5f, 0, 1, bits.data()));
  ExpectTooEarly(replica.ApplyRescaledStep(layout, 0.5f, 0.5f, 0, kD, bits.data()));
  ExpectTooEarly(replica.ReadX0(0, whole));
  ExpectTooEarly(replica.WriteX0(0, whole));
  ExpectTooEarly(replica.Rewind(0, kD));
  ExpectTooEarly(replica.SumsAboutX0(layout, g).status());
  ASSERT_TRUE(replica.KeepX0().ok());
  for (const uint64_t first : {uint64_t{1}, kD + 1, kFar}) {
    ExpectInvalid(replica.ReadX0(first, whole));
    ExpectInvalid(replica.WriteX0(first, whole));
    ExpectInvalid(replica.Rewind(first, kD));
  }
  ExpectInvalid(replica.SumsAboutX0(layout, std::span(g).first(1)).status());
  ExpectInvalid(replica.SumsAboutX0(other, std::span(g).first(1)).status());
  EXPECT_TRUE(replica.ReadX0(0, whole).ok()) << "and the device works as before";
}

}  // namespace signvote::refusals
