#include "server/vote/buffer_pool.h"

#include <cstdlib>
#include <vector>

#include "common/check.h"
#include "common/mutex.h"
#include "server/tally/tally.h"

namespace signvote {
namespace {

constexpr size_t kLineBytes = 64;
constexpr size_t kStaggers = 16;
// Smaller ones are in the first-level cache anyway.
constexpr size_t kStaggerFromBytes = 32 << 10;

}  // namespace

struct BufferPool::Shared {
  explicit Shared(size_t kept) : kept_max(kept) {}
  ~Shared() {
    for (uint8_t* base : free) std::free(base);
  }
  // Returns the start of an allocation of `size` bytes.
  uint8_t* Take(size_t size, size_t* stagger) {
    {
      MutexLock lock(&mu);
      *stagger = next_stagger++ % kStaggers;
      if (!free.empty()) {
        uint8_t* base = free.back();
        free.pop_back();
        return base;
      }
      ++allocated;
    }
    void* base = std::aligned_alloc(kLineBytes, size);
    SIGNVOTE_CHECK(base != nullptr);  // Linux overcommits: a null here is an address space used up
    return static_cast<uint8_t*>(base);
  }
  void Give(uint8_t* base) {
    {
      MutexLock lock(&mu);
      if (free.size() < kept_max) {
        free.push_back(base);
        return;
      }
      --allocated;
    }
    std::free(base);
  }

  const size_t kept_max;
  Mutex mu;
  std::vector<uint8_t*> free ABSL_GUARDED_BY(mu);
  size_t next_stagger ABSL_GUARDED_BY(mu) = 0;
  size_t allocated ABSL_GUARDED_BY(mu) = 0;
};

BufferPool::BufferPool(size_t bytes, size_t kept_max)
    : bytes_(bytes), shared_(std::make_shared<Shared>(kept_max)) {
  SIGNVOTE_CHECK(bytes > 0);
}

std::shared_ptr<uint8_t> BufferPool::Acquire() {
  const size_t length = (bytes_ + kLineBytes - 1) / kLineBytes * kLineBytes;
  const size_t line_step = length >= kStaggerFromBytes ? StaggeredStride(length) - length : 0;
  size_t stagger = 0;
  uint8_t* base = shared_->Take(length + (kStaggers - 1) * line_step, &stagger);
  return {base + stagger * line_step, [shared = shared_, base](uint8_t*) { shared->Give(base); }};
}

size_t BufferPool::allocated() const {
  MutexLock lock(&shared_->mu);
  return shared_->allocated;
}

}  // namespace signvote
