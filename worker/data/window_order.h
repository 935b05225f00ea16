#pragma once
// Which window of a corpus is whose, and when. docs/data.md, "Windows, exactly"; why it is so:
// docs/decisions/0024-windows-by-turns.md.
//
// The training part is cut into windows that do not overlap, and a keyed permutation gives each a
// place. A share's order is all places once, which is an epoch; then cut, permutation and key change.
// Nobody knows how many workers there will be, so the orders are such that for every number n shares
// 0 ... n-1, taking their turns, have each place once before any has one twice:
//   - share s begins with a part of its own, W/(s+1) of the W places: of each share before it those
//     which that one would come to next with s shares, and does not with s+1;
//   - then it goes round the places from one of its own (0, 1/2, 1/4, 3/4, 1/8, ...: van der Corput's
//     sequence), and where it meets a place of its own part goes on from where that one was swapped to.
// What follows the first W turns cannot be so for every n; it has been had by few.

#include <cstdint>
#include <optional>

#include "common/ids.h"

namespace signvote {

// Threads:   immutable.
// Cost:      O(log share) steps of some divisions a window, on average over the windows.
class WindowOrder {
 public:
  // Of windows of `length` tokens with their successors. REQUIRES: tokens > length > 0.
  WindowOrder(uint64_t tokens, uint64_t length);

  uint64_t windows() const { return windows_; }  // of an epoch, at least 1
  // The first token of the k-th window that `share` trains on; its last target is token
  // First() + length, which lies in the part.
  uint64_t First(uint64_t seed, Share share, uint64_t k) const;

 private:
  // The k-th of a share's own part.
  struct Own {
    uint64_t share = 0;
    uint64_t k = 0;
  };
  // What the shares before one leave to it: whole rows of one place from each, then a row without
  // shares [skip_from, skip_to).
  struct Rows {
    uint64_t whole = 0;
    uint64_t skip_from = 0;
    uint64_t skip_to = 0;
  };

  // How many of the first windows() turns of so many shares are this one's. REQUIRES: share < shares.
  uint64_t Turns(uint64_t shares, uint64_t share) const;
  // REQUIRES: share > 0.
  Rows LeftTo(uint64_t share) const;
  // Whose the k-th of the own part of share `share` > 0 is with one share less; and back.
  Own Giver(uint64_t share, uint64_t k) const;
  uint64_t IndexOf(uint64_t share, const Own& given) const;
  // REQUIRES: own.k < Turns(own.share + 1, own.share).
  uint64_t OwnPlace(Own own) const;
  // Where in the share's own part the place lies; nullopt: in another's.
  std::optional<uint64_t> FindOwn(uint64_t share, uint64_t place) const;
  // The k-th place of a share's order. REQUIRES: k < windows_.
  uint64_t Place(Share share, uint64_t k) const;
  // A permutation of [0, windows_): a balanced Feistel network, walked until it is within.
  uint64_t Permuted(uint64_t key, uint64_t index) const;

  uint64_t length_;
  uint64_t windows_;
  uint64_t offsets_;    // places where the cut may begin
  uint32_t half_bits_;  // of an index, at least 1
};

}  // namespace signvote
