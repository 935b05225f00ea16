#include "common/checksum.h"

#include <xxhash.h>
#ifdef SIGNVOTE_XXHASH_DISPATCH
// Debian compiles the library for any amd64: its plain functions stay with SSE2. This header
// replaces them by ones that choose AVX2 or AVX-512 when the program runs.
#include <xxh_x86dispatch.h>
#endif

#include <algorithm>

#include "common/check.h"

namespace signvote {

uint64_t Xxh3(std::span<const std::byte> data, uint64_t seed) {
  return XXH3_64bits_withSeed(data.data(), data.size(), seed);
}

struct Xxh3Stream::State {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  // xxHash's own allocation: its state wants 64-byte alignment.
  std::unique_ptr<XXH3_state_t, Free> xxh{XXH3_createState()};
};

Xxh3Stream::Xxh3Stream(uint64_t seed) : state_(std::make_unique<State>()), seed_(seed) {
  SIGNVOTE_CHECK(state_->xxh != nullptr);
  Reset();
}

Xxh3Stream::~Xxh3Stream() = default;

void Xxh3Stream::Update(const void* data, size_t bytes) {
  if (bytes == 0) return;
  SIGNVOTE_CHECK(XXH3_64bits_update(state_->xxh.get(), data, bytes) == XXH_OK);
}

uint64_t Xxh3Stream::Digest() const { return XXH3_64bits_digest(state_->xxh.get()); }

void Xxh3Stream::Reset() {
  SIGNVOTE_CHECK(XXH3_64bits_reset_withSeed(state_->xxh.get(), seed_) == XXH_OK);
}

uint64_t ReplicaDigest(const float* x, uint64_t first, uint64_t count) {
  SIGNVOTE_CHECK(first % kReplicaDigestBlock == 0);
  uint64_t digest = 0;
  for (uint64_t i = 0; i < count; i += kReplicaDigestBlock) {
    const uint64_t block_count = std::min(kReplicaDigestBlock, count - i);
    digest += Xxh3(x + i, block_count * sizeof(float), (first + i) / kReplicaDigestBlock);
  }
  return digest;
}

}  // namespace signvote
