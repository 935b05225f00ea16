#include "server/run/upload_lease.h"

#include <gtest/gtest.h>

#include <chrono>

namespace signvote::run {
namespace {

using std::chrono::seconds;

constexpr Time At(int64_t s) { return Time{} + seconds(s); }
constexpr UploadLease::Options kOptions{.timeout = seconds(60), .bytes_per_second_min = 100};

TEST(UploadLease, AnUploaderThatTricklesLosesItAfterOneWindow) {
  UploadLease lease(kOptions);
  EXPECT_FALSE(lease.Expired(At(1'000)));
  lease.Grant(PeerId(3), 1'000'000, At(0));
  EXPECT_EQ(lease.holder(), PeerId(3));
  EXPECT_EQ(lease.wanted_bytes(), 6'000u);
  for (int64_t s = 1; s <= 60; ++s) {
    lease.Progress(static_cast<uint64_t>(4 * s), At(s));
    EXPECT_FALSE(lease.Expired(At(s)));
  }
  EXPECT_TRUE(lease.Expired(At(61)));
  // Too late is too late.
  lease.Progress(900'000, At(61));
  EXPECT_TRUE(lease.Expired(At(61)));
}

TEST(UploadLease, EnoughBytesOpenTheNextWindow) {
  UploadLease lease(kOptions);
  lease.Grant(PeerId(3), 1'000'000, At(0));
  lease.Progress(5'999, At(59));
  EXPECT_TRUE(lease.Expired(At(61)));
  lease.Progress(6'000, At(60));
  EXPECT_FALSE(lease.Expired(At(120)));
  EXPECT_TRUE(lease.Expired(At(121)));
  // Less than was said before takes nothing back, and counts for nothing.
  lease.Progress(100, At(119));
  lease.Progress(11'999, At(119));
  EXPECT_TRUE(lease.Expired(At(121)));
}

TEST(UploadLease, TheLastWindowWantsOnlyWhatIsLeft) {
  UploadLease lease(kOptions);
  lease.Grant(PeerId(3), 7'000, At(0));
  lease.Progress(6'500, At(30));
  EXPECT_EQ(lease.wanted_bytes(), 500u);
  lease.Progress(7'000, At(90));
  EXPECT_FALSE(lease.Expired(At(150)));
}

TEST(UploadLease, AShortWindowWantsAtLeastOneByte) {
  UploadLease lease({.timeout = std::chrono::milliseconds(1), .bytes_per_second_min = 1});
  lease.Grant(PeerId(3), 10, At(0));
  EXPECT_EQ(lease.wanted_bytes(), 1u);
  lease.Progress(0, At(0) + Duration(10));
  EXPECT_TRUE(lease.Expired(At(0) + std::chrono::milliseconds(2)));
}

TEST(UploadLease, WhoeverComesNextStartsFromNothing) {
  UploadLease lease(kOptions);
  lease.Grant(PeerId(3), 1'000'000, At(0));
  lease.Progress(800'000, At(10));
  lease.Revoke();
  EXPECT_FALSE(lease.holder().has_value());
  EXPECT_FALSE(lease.Expired(At(1'000)));
  lease.Grant(PeerId(4), 1'000'000, At(100));
  lease.Progress(5'000, At(159));
  EXPECT_TRUE(lease.Expired(At(161)));
}

}  // namespace
}  // namespace signvote::run
