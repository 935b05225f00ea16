#include "worker/vote/ballot_buffers.h"

#include <utility>

#include "common/mutex.h"

namespace signvote {

class BallotBuffers::Shelf {
 public:
  Shelf(size_t bytes, std::shared_ptr<std::pmr::memory_resource> memory)
      : bytes_(bytes), memory_(std::move(memory)) {}
  ~Shelf() {
    if (kept_ != nullptr) memory_->deallocate(kept_, bytes_);
  }
  Shelf(const Shelf&) = delete;
  Shelf& operator=(const Shelf&) = delete;

  uint8_t* Get() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(&mu_);
      if (kept_ != nullptr) return std::exchange(kept_, nullptr);
    }
    return static_cast<uint8_t*>(memory_->allocate(bytes_));
  }
  void Put(uint8_t* buffer) ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(&mu_);
      if (kept_ == nullptr) std::swap(kept_, buffer);
    }
    if (buffer != nullptr) memory_->deallocate(buffer, bytes_);
  }

 private:
  const size_t bytes_;
  const std::shared_ptr<std::pmr::memory_resource> memory_;

  Mutex mu_;  // what was done with a buffer comes before what its next user does
  uint8_t* kept_ ABSL_GUARDED_BY(mu_) = nullptr;
};

BallotBuffers::BallotBuffers(size_t bytes, std::shared_ptr<std::pmr::memory_resource> memory)
    : shelf_(std::make_shared<Shelf>(bytes, std::move(memory))) {}

std::shared_ptr<uint8_t> BallotBuffers::Take() {
  return {shelf_->Get(), [shelf = shelf_](uint8_t* buffer) { shelf->Put(buffer); }};
}

}  // namespace signvote
