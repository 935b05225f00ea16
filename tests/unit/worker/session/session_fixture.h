#pragma once
// What the session's tests share: a small model, ballots, options.

#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "common/apply.h"
#include "common/checksum.h"
#include "common/mutex.h"
#include "common/rng.h"
#include "tests/unit/worker/session/fake_server.h"
#include "worker/session/session.h"

namespace signvote::testing {

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
  options.transfer_backoff = std::chrono::milliseconds(1);
  return options;
}

inline std::unique_ptr<Session> MustCreate(const SessionOptions& options) {
  auto session = Session::Create(options, Clock::System());
  EXPECT_TRUE(session.ok()) << session.status();
  return session.ok() ? *std::move(session) : nullptr;
}

inline ModelDescription ModelOf(const Layout& layout) {
  ModelDescription model;
  model.tensors.assign(layout.tensors().begin(), layout.tensors().end());
  return model;
}

// Join and Attach in one.
inline absl::StatusOr<RunInfo> JoinRun(Session* session, ReplicaMemory* memory) {
  absl::StatusOr<RunInfo> run = session->Join(ModelOf(TestLayout()));
  if (!run.ok()) return run;
  const absl::Status attached = session->Attach(memory);
  if (!attached.ok()) return attached;
  return run;
}

// Something that the other side says once.
class Signal {
 public:
  void Set() {
    {
      MutexLock lock(&mu_);
      set_ = true;
    }
    changed_.NotifyAll();
  }
  // False when it is not said.
  bool Await() { return AwaitFor(kLong); }
  bool AwaitFor(Duration most) {
    MutexLock lock(&mu_);
    return changed_.WaitUntil(&mu_, Clock::System(), Clock::System()->Now() + most,
                              [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return set_; });
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool set_ ABSL_GUARDED_BY(mu_) = false;
};

// The lines that a session logs.
class LogLines {
 public:
  SessionLog Sink() {
    return [this](LogLevel, std::string_view message, std::initializer_list<LogField> fields) {
      MutexLock lock(&mu_);
      std::string line(message);
      for (const LogField& field : fields) line += " " + std::string(field.key);
      lines_.push_back(std::move(line));
      changed_.NotifyAll();
    };
  }
  bool Await(const std::string& part) {
    MutexLock lock(&mu_);
    return changed_.WaitUntil(&mu_, Clock::System(), Clock::System()->Now() + kLong,
                              [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                                for (const std::string& line : lines_)
                                  if (line.find(part) != std::string::npos) return true;
                                return false;
                              });
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<std::string> lines_ ABSL_GUARDED_BY(mu_);
};

// A copy of these bits, as a session shares them.
inline std::shared_ptr<const uint8_t> Shared(const uint8_t* bits, size_t bytes) {
  const auto copy = std::make_shared<std::vector<uint8_t>>(bits, bits + bytes);
  return {copy, copy->data()};
}

inline std::shared_ptr<const uint8_t> ChunkOf(const std::vector<uint8_t>& bits, uint32_t k) {
  return Shared(bits.data() + kPlan.ByteOffset(ChunkIndex(k)), kPlan.Bytes(ChunkIndex(k)));
}

inline void SendBallot(Session* session, const std::vector<uint8_t>& bits, uint32_t from = 0,
                       uint32_t to = kChunks) {
  for (uint32_t k = from; k < to; ++k) {
    ASSERT_TRUE(session->SendChunk(ChunkIndex(k), ChunkOf(bits, k)).ok());
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
                                uint64_t count, uint32_t plane = 0) {
  v1::StateChunk chunk;
  chunk.set_plane(plane);
  chunk.set_round(round);
  chunk.set_first(first);
  chunk.set_count(count);
  chunk.set_payload(values.data() + first, count * 4);
  chunk.set_checksum(Xxh3(values.data() + first, count * 4));
  return chunk;
}

}  // namespace signvote::testing
