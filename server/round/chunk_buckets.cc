#include "server/round/chunk_buckets.h"

namespace signvote::round {

ChunkBuckets::ChunkBuckets(uint32_t chunks, uint32_t count_max)
    : count_(chunks, 0),
      next_(chunks, kNone),
      prev_(chunks, kNone),
      head_(size_t{count_max} + 1, kNone) {
  for (uint32_t k = chunks; k > 0; --k) Link(k - 1);
}

}  // namespace signvote::round
