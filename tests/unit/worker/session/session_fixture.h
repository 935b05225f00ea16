#pragma once
// What the session's tests share: a small model, ballots, options.

#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "common/apply.h"
#include "common/checksum.h"
#include "common/rng.h"
#include "tests/unit/worker/session/fake_server.h"
#include "worker/session/session.h"

namespace signvote::testing {

inline constexpr uint64_t kD = 5000;  // several chunks, the last one odd

inline Layout TestLayout(uint64_t d = kD) {
  std::vector<TensorSpec> tensors(2);
  tensors[0].name = "a";
  tensors[0].shape = {d - 1000};
  tensors[1].name = "b";
  tensors[1].shape = {10, 100};
  tensors[1].step_scale = 0.5f;
  tensors[1].weight_decay = 0.1f;
  return *Layout::Make(tensors);
}
inline const ChunkPlan kPlan(kD, 512);
inline const uint32_t kChunks = kPlan.chunks();
inline constexpr Duration kLong = std::chrono::seconds(60);

inline std::vector<uint8_t> RandomBits(uint64_t seed) {
  std::vector<uint8_t> bits(kPlan.TotalBytes());
  Rng rng(seed, 0);
  for (uint8_t& byte : bits) byte = static_cast<uint8_t>(rng.Next());
  return bits;
}

inline std::vector<float> StartValues(float scale = 1.0f) {
  std::vector<float> x(kD);
  for (size_t i = 0; i < x.size(); ++i) x[i] = scale * static_cast<float>(i % 17) - 3.0f;
  return x;
}

inline SessionOptions Options(const std::string& server) {
  SessionOptions options;
  options.server = server;
  options.name = "w1";
  options.insecure = true;
  // Longer than a busy machine takes; who waits for one of them to pass sets it.
  options.connect_timeout = options.server_timeout = kLong;
  options.wait_timeout = options.finish_timeout = kLong;
  return options;
}

inline std::unique_ptr<Session> MustCreate(const SessionOptions& options) {
  auto session = Session::Create(options, Clock::System());
  EXPECT_TRUE(session.ok()) << session.status();
  return session.ok() ? *std::move(session) : nullptr;
}

// Waits until the server's side gets there; false when it does not.
inline bool Becomes(const std::atomic<bool>& flag) {
  const Time deadline = Clock::System()->Now() + kLong;
  while (!flag && Clock::System()->Now() < deadline) usleep(1000);
  return flag;
}

inline void SendBallot(Session* session, const std::vector<uint8_t>& bits, uint32_t from = 0,
                       uint32_t to = kChunks) {
  for (uint32_t k = from; k < to; ++k) {
    ASSERT_TRUE(
        session->SendChunk(ChunkIndex(k), bits.data() + kPlan.ByteOffset(ChunkIndex(k))).ok());
  }
}

// One whole round of a well-behaved worker.
inline void Vote(Session* session, uint64_t round, const std::vector<uint8_t>& bits) {
  const auto ticket = session->NextRound();
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  ASSERT_TRUE(ticket->has_value());
  ASSERT_EQ((*ticket)->round.value(), round);
  SendBallot(session, bits);
  ASSERT_TRUE(session->SendScalars({.loss = 1.5, .g_l1 = 2, .g_l2_squared = 3, .samples = 8}).ok());
}

inline void ExpectStepped(const std::vector<float>& x, std::vector<float> from,
                          const std::vector<uint8_t>& bits, float stepsize) {
  ApplyStep(TestLayout(), stepsize, 0, kD, bits.data(), 0, from.data());
  EXPECT_EQ(x, from);
}

class SessionTest : public ::testing::Test {
 protected:
  SessionTest() : layout_(TestLayout()), x_(StartValues()), memory_(x_) {}
  const Layout layout_;
  std::vector<float> x_;
  HostReplicaMemory memory_;  // x_
};

inline v1::StateChunk StatePart(const std::vector<float>& values, uint64_t round, uint64_t first,
                                uint64_t count) {
  v1::StateChunk chunk;
  chunk.set_round(round);
  chunk.set_first(first);
  chunk.set_count(count);
  chunk.set_payload(values.data() + first, count * 4);
  chunk.set_checksum(Xxh3(values.data() + first, count * 4));
  return chunk;
}

}  // namespace signvote::testing
