#pragma once
// XXH3-64 (xxHash), the only checksum of this project: frames, files, layouts, verdicts.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace signvote {

uint64_t Xxh3(std::span<const std::byte> data, uint64_t seed = 0);
inline uint64_t Xxh3(const void* data, size_t bytes, uint64_t seed = 0) {
  return Xxh3(std::span(static_cast<const std::byte*>(data), bytes), seed);
}

// The same over data that arrives in pieces. Threads: not thread-safe.
class Xxh3Stream {
 public:
  explicit Xxh3Stream(uint64_t seed = 0);
  ~Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;
  void Update(const void* data, size_t bytes);
  uint64_t Digest() const;
  void Reset();

 private:
  struct State;
  std::unique_ptr<State> state_;
  uint64_t seed_;
};

// The replica digest: an order-independent 64-bit digest of x. Each block of kReplicaDigestBlock
// coordinates (the last may be shorter) contributes Xxh3(its fp32 bytes, seed = its block index);
// the digest is their sum modulo 2^64, so any split of the work over threads, chunks or machines
// gives the same number.
inline constexpr uint64_t kReplicaDigestBlock = 4096;
// Digest of x[0, count), whose first coordinate is `first` in the model. REQUIRES: first %
// kReplicaDigestBlock == 0.
uint64_t ReplicaDigest(const float* x, uint64_t first, uint64_t count);

}  // namespace signvote
