#pragma once
// Which window of a corpus is whose, and when. docs/data.md, "Windows, exactly".
//
// The training part is cut into windows that do not overlap, and a keyed permutation brings them in
// an order. Every share goes once round that order, from a place of its own, which is an epoch; then
// cut, order and key change. The places are those of van der Corput's sequence (0, 1/2, 1/4, 3/4,
// 1/8, ...), because nobody knows how many workers there will be: where 2^m shares go at one pace,
// they meet no window twice and together all of them once in an epoch's worth of data; where their
// number lies between, they meet at least 82 % of them (2·√2 − 2).

#include <cstdint>

#include "common/ids.h"

namespace signvote {

// Threads:   immutable.
// Cost:      O(1), some dozens of multiplications a window.
class WindowOrder {
 public:
  // Of windows of `length` tokens with their successors. REQUIRES: tokens > length > 0.
  WindowOrder(uint64_t tokens, uint64_t length);

  uint64_t windows() const { return windows_; }  // of an epoch, at least 1
  // The first token of the k-th window that `share` trains on; its last target is token
  // First() + length, which lies in the part.
  uint64_t First(uint64_t seed, Share share, uint64_t k) const;

 private:
  // A permutation of [0, windows_): a balanced Feistel network, walked until it is within.
  uint64_t Permuted(uint64_t key, uint64_t index) const;

  uint64_t length_;
  uint64_t windows_;
  uint64_t offsets_;    // places where the cut may begin
  uint32_t half_bits_;  // of an index, at least 1
};

}  // namespace signvote
