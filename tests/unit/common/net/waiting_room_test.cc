#include "common/net/waiting_room.h"

#include <algorithm>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace signvote {
namespace {

using std::chrono::milliseconds;

constexpr Duration kPatience = milliseconds(500);

WaitingRoom Room(size_t places, uint64_t seed = 1) {
  return WaitingRoom({.places = places, .patience = kPatience}, Rng(seed, 0));
}

TEST(WaitingRoomTest, WhoLeavesFreesAPlaceAndIsNeverTurnedAway) {
  WaitingRoom room = Room(3);
  for (uint64_t id = 0; id < 3; ++id) {
    EXPECT_FALSE(room.full());
    room.Enter(id);
  }
  EXPECT_TRUE(room.full());
  EXPECT_TRUE(room.Leave(0));
  EXPECT_FALSE(room.Leave(0));
  EXPECT_FALSE(room.full());
  std::vector<uint64_t> gone;
  while (const auto id = room.TurnAwayAtOnce()) gone.push_back(*id);
  std::sort(gone.begin(), gone.end());
  EXPECT_EQ(gone, (std::vector<uint64_t>{1, 2}));
  EXPECT_EQ(room.size(), 0u);
}

TEST(WaitingRoomTest, AtMostTheirNumberGoesInOnePatience) {
  constexpr size_t kPlaces = 100;
  WaitingRoom room = Room(kPlaces);
  uint64_t next = 0;
  while (!room.full()) room.Enter(next++);
  FakeClock clock;
  clock.Advance(std::chrono::hours(1));  // long quiet saves up no more than a burst
  size_t gone = 0;
  const Time end = clock.Now() + 10 * kPatience;
  for (; clock.Now() < end; clock.Advance(milliseconds(1))) {
    while (room.TurnAway(clock.Now()).has_value()) {
      ++gone;
      room.Enter(next++);
    }
    EXPECT_GT(room.MayTurnAwayAt(), clock.Now());
  }
  EXPECT_LE(gone, 10 * kPlaces + kPlaces * WaitingRoom::kBurst / kPatience + 1);
  EXPECT_GE(gone, 10 * kPlaces);
}

// A storm: each that goes is replaced at once. What share of those that come is still there when a
// given time has passed?
double SharePresentAfter(Duration age, uint64_t seed) {
  constexpr size_t kPlaces = 200;
  WaitingRoom room = Room(kPlaces, seed);
  FakeClock clock;
  uint64_t next = 0;
  while (!room.full()) room.Enter(next++);
  std::vector<Time> came(next, clock.Now());
  size_t watched = 0, early = 0;
  const Time warm = clock.Now() + 10 * kPatience;
  const Time end = clock.Now() + 60 * kPatience;
  for (; clock.Now() < end; clock.Advance(milliseconds(1))) {
    while (const auto id = room.TurnAway(clock.Now())) {
      if (came[*id] > warm) {
        ++watched;
        if (clock.Now() - came[*id] < age) ++early;
      }
      room.Enter(next++);
      came.push_back(clock.Now());
    }
  }
  return 1.0 - static_cast<double>(early) / static_cast<double>(watched);
}

TEST(WaitingRoomTest, ANewcomerIsLeftAloneAndWhoStallsGoes) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    EXPECT_GT(SharePresentAfter(kPatience / 4, seed), 0.985);
    EXPECT_GT(SharePresentAfter(kPatience / 2, seed), 0.9);
    EXPECT_LT(SharePresentAfter(2 * kPatience, seed), 0.1);
    EXPECT_GT(SharePresentAfter(kPatience, seed), 0.2) << "nobody far away goes for certain";
  }
}

TEST(WaitingRoomTest, TheSameSeedTurnsTheSameOnesAway) {
  const auto gone = [](uint64_t seed) {
    WaitingRoom room = Room(50, seed);
    for (uint64_t id = 0; id < 50; ++id) room.Enter(id);
    std::vector<uint64_t> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(*room.TurnAwayAtOnce());
    return ids;
  };
  EXPECT_EQ(gone(7), gone(7));
  EXPECT_NE(gone(7), gone(8));
}

TEST(WaitingRoomTest, EachIsLookedAtInItsTurn) {
  WaitingRoom room = Room(4);
  EXPECT_FALSE(room.LookAtNext().has_value());
  for (uint64_t id = 0; id < 4; ++id) room.Enter(id);
  std::set<uint64_t> seen;
  for (int i = 0; i < 4; ++i) seen.insert(*room.LookAtNext());
  EXPECT_EQ(seen.size(), 4u);
  while (room.size() > 0) (void)room.Leave(*room.LookAtNext());
}

}  // namespace
}  // namespace signvote
