#include "server/rpc/inbox.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace signvote::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Input Pong(uint64_t nonce) { return {nullptr, PongIn{.nonce = nonce}}; }
uint64_t NonceOf(const Input& input) { return std::get<PongIn>(input.what).nonce; }

TEST(InboxTest, EverythingIsTakenAtOnceInOrder) {
  Inbox inbox;
  std::vector<Input> taken = {Pong(99)};
  inbox.TakeAll(Duration::zero(), &taken);
  EXPECT_TRUE(taken.empty()) << "what the caller had is gone";
  for (uint64_t n = 0; n < 3; ++n) ASSERT_TRUE(inbox.Push(Pong(n)));
  inbox.TakeAll(seconds(60), &taken);
  ASSERT_EQ(taken.size(), 3u);
  for (uint64_t n = 0; n < 3; ++n) EXPECT_EQ(NonceOf(taken[n]), n);
  inbox.TakeAll(Duration::zero(), &taken);
  EXPECT_TRUE(taken.empty());
}

TEST(InboxTest, AfterCloseWhatIsPushedIsDroppedAndWhatWasThereIsNot) {
  Inbox inbox;
  ASSERT_TRUE(inbox.Push(Pong(1)));
  inbox.Close();
  EXPECT_FALSE(inbox.Push(Pong(2)));
  std::vector<Input> taken;
  inbox.TakeAll(seconds(60), &taken);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(NonceOf(taken[0]), 1u);
}

// Goal: no wake-up is lost. Method: only the first of several waiting inputs wakes the consumer, so
// each producer's input must be seen whenever the consumer may be about to sleep; a lost one would
// cost a minute.
TEST(InboxTest, ManyProducersNeverLoseAWakeUpOrTheirOrder) {
  constexpr uint64_t kProducers = 4, kEach = 5000;
  Inbox inbox;
  std::vector<std::thread> producers;
  for (uint64_t p = 0; p < kProducers; ++p) {
    producers.emplace_back([&inbox, p] {
      for (uint64_t n = 0; n < kEach; ++n) {
        EXPECT_TRUE(inbox.Push(Pong(p * kEach + n)));
        if (n % 64 == 0) std::this_thread::yield();
      }
    });
  }
  std::vector<uint64_t> next(kProducers, 0);
  std::vector<Input> taken;
  uint64_t total = 0;
  const Time begin = Clock::System()->Now();
  while (total < kProducers * kEach && Clock::System()->Now() - begin < seconds(50)) {
    inbox.TakeAll(seconds(60), &taken);
    for (const Input& input : taken) {
      const uint64_t producer = NonceOf(input) / kEach;
      EXPECT_EQ(NonceOf(input) % kEach, next[producer]++);
    }
    total += taken.size();
  }
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(total, kProducers * kEach);
}

TEST(InboxTest, AWaitWithoutInputEndsAfterItsTime) {
  Inbox inbox;
  std::vector<Input> taken;
  const Time begin = Clock::System()->Now();
  Duration waited{};
  do {  // a wait may end early for no reason, never late
    inbox.TakeAll(milliseconds(20) - waited, &taken);
    EXPECT_TRUE(taken.empty());
    waited = Clock::System()->Now() - begin;
  } while (waited < milliseconds(20));
  EXPECT_LT(waited, seconds(10));
}

}  // namespace
}  // namespace signvote::rpc
