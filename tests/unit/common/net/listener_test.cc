#include "common/net/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/mutex.h"
#include "common/net/unique_fd.h"
#include "common/process.h"
#include "common/status.h"

namespace signvote {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr Duration kLong = seconds(30);  // only a hang takes so long

// What connections are handed on to: keeps their descriptors.
class Host {
 public:
  void Take(int fd) {
    MutexLock lock(&mu_);
    taken_.emplace_back(fd);
    changed_.NotifyAll();
    (void)changed_.WaitUntil(
        &mu_, Clock::System(), Clock::System()->Now() + kLong,
        [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return taken_.size() < busy_with_; });
  }
  // The listener's thread waits with the `count`th connection that it hands on, until this grows.
  void SetBusyWith(size_t count) {
    MutexLock lock(&mu_);
    busy_with_ = count;
    changed_.NotifyAll();
  }
  bool WaitForTaken(size_t count) {
    MutexLock lock(&mu_);
    return changed_.WaitUntil(
        &mu_, Clock::System(), Clock::System()->Now() + kLong,
        [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return taken_.size() >= count; });
  }
  size_t taken() {
    MutexLock lock(&mu_);
    return taken_.size();
  }
  void CloseAll() {
    MutexLock lock(&mu_);
    taken_.clear();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<UniqueFd> taken_ ABSL_GUARDED_BY(mu_);
  size_t busy_with_ ABSL_GUARDED_BY(mu_) = SIZE_MAX;
};

class Client {
 public:
  explicit Client(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0;
  }
  bool connected() const { return connected_; }
  bool Say(const char* text) {
    return ::send(fd_.get(), text, std::strlen(text), MSG_NOSIGNAL) > 0;
  }
  // Whether the other end hangs up within `wait`.
  bool HungUpWithin(Duration wait) const {
    pollfd look{fd_.get(), POLLRDHUP, 0};
    return ::poll(&look, 1, static_cast<int>(wait / milliseconds(1))) == 1;
  }
  Endpoint Address() const {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    (void)::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &size);
    return EndpointOf(address).value_or(Endpoint{});
  }

 private:
  UniqueFd fd_;
  bool connected_ = false;
};

class ListenerTest : public ::testing::Test {
 protected:
  void Open(ListenerOptions options) {
    options.address = {"127.0.0.1", 0};
    if (options.descriptors_max == 1024) options.descriptors_max = DescriptorLimit();
    auto listener = Listener::Bind(options, Rng(1, 2), Clock::System());
    ASSERT_TRUE(listener.ok()) << Describe(listener.status());
    listener_ = *std::move(listener);
    listener_->Start([this](int fd) { host_.Take(fd); });
  }
  static ListenerOptions Few(size_t places) {
    return {.quiet = {.places = places, .patience = milliseconds(50)},
            .greeting = {.places = places, .patience = milliseconds(50)}};
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    const Time deadline = Clock::System()->Now() + kLong;
    while (!condition()) {
      if (Clock::System()->Now() > deadline) return false;
      Clock::System()->SleepFor(milliseconds(2));
    }
    return true;
  }
  size_t HungUp(const std::deque<Client>& clients) {
    size_t count = 0;
    for (const Client& client : clients) count += client.HungUpWithin({}) ? 1 : 0;
    return count;
  }

  Host host_;
  std::unique_ptr<Listener> listener_;
};

TEST_F(ListenerTest, AConnectionIsHandedOnWithItsFirstByteAndNotBefore) {
  Open(Few(8));
  Client quiet(listener_->port()), speaker(listener_->port());
  ASSERT_TRUE(quiet.connected() && speaker.connected());
  EXPECT_TRUE(Eventually([this] { return listener_->state().waiting == 2; }));
  EXPECT_EQ(host_.taken(), 0u);
  ASSERT_TRUE(speaker.Say("x"));
  EXPECT_TRUE(host_.WaitForTaken(1));
  // While it is handed on it may count in both rooms.
  EXPECT_TRUE(Eventually([this] { return listener_->state().waiting == 2; }));
  listener_->Settle(speaker.Address());
  EXPECT_TRUE(Eventually([this] { return listener_->state().waiting == 1; }));
  EXPECT_EQ(host_.taken(), 1u);
}

TEST_F(ListenerTest, WhatSpeaksAtOnceIsHandedOnThoughNothingElseHappens) {
  // It has spoken before it is accepted, so that no event tells of its first byte.
  ListenerOptions options = Few(8);
  options.address = {"127.0.0.1", 0};
  options.descriptors_max = DescriptorLimit();
  auto listener = Listener::Bind(options, Rng(1, 2), Clock::System());
  ASSERT_TRUE(listener.ok());
  Client client((*listener)->port());
  ASSERT_TRUE(client.Say("x"));
  (*listener)->Start([this](int fd) { host_.Take(fd); });
  EXPECT_TRUE(host_.WaitForTaken(1));
}

TEST_F(ListenerTest, AmongMoreSilentOnesThanPlacesSomeGoAndASpeakerIsHandedOn) {
  Open(Few(4));
  std::deque<Client> silent;
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(silent.emplace_back(listener_->port()).connected());
  EXPECT_TRUE(Eventually([&] { return HungUp(silent) == 36; }));
  // The peer may see its end before the listener has counted it.
  EXPECT_TRUE(Eventually([this] {
    const ListenerState is = listener_->state();
    return is.waiting == 4 && is.turned_away == 36 && is.crowded;
  }));
  EXPECT_FALSE(listener_->state().out_of_descriptors);
  Client speaker(listener_->port());
  ASSERT_TRUE(speaker.Say("x"));
  EXPECT_TRUE(host_.WaitForTaken(1));
  EXPECT_FALSE(speaker.HungUpWithin({}));
}

TEST_F(ListenerTest, AmongStalledHandshakesSomeAreShutDownAndSettledOnesNever) {
  Open(Few(4));
  std::deque<Client> settled;
  for (int i = 0; i < 4; ++i) {
    Client& client = settled.emplace_back(listener_->port());
    ASSERT_TRUE(client.Say("x"));
    ASSERT_TRUE(host_.WaitForTaken(static_cast<size_t>(i) + 1));
    listener_->Settle(client.Address());
  }
  std::deque<Client> stalled;
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(stalled.emplace_back(listener_->port()).Say("x"));
  ASSERT_TRUE(host_.WaitForTaken(44));
  EXPECT_TRUE(Eventually([&] { return HungUp(stalled) == 36; }));
  EXPECT_EQ(HungUp(settled), 0u);
  EXPECT_TRUE(Eventually([this] { return listener_->state().turned_away == 36; }));
}

TEST_F(ListenerTest, APlaceThatIsSettledGoesToTheNextWithoutAnybodysLoss) {
  ListenerOptions options = Few(1);
  options.greeting.patience = std::chrono::hours(1);
  Open(options);
  Client first(listener_->port());
  ASSERT_TRUE(first.Say("x"));
  ASSERT_TRUE(host_.WaitForTaken(1));
  // The room's first turning away is free of charge, the next one an hour off.
  Client second(listener_->port());
  ASSERT_TRUE(second.Say("x"));
  ASSERT_TRUE(host_.WaitForTaken(2));
  EXPECT_TRUE(first.HungUpWithin(kLong));
  Client third(listener_->port());
  ASSERT_TRUE(third.Say("x"));
  EXPECT_TRUE(Eventually([this] { return listener_->state().waiting == 2; }));
  EXPECT_EQ(host_.taken(), 2u);
  listener_->Settle(second.Address());
  EXPECT_TRUE(host_.WaitForTaken(3));
  EXPECT_FALSE(second.HungUpWithin({}));
}

TEST_F(ListenerTest, WhatItsHostClosesFreesItsPlace) {
  Open(Few(4));
  std::deque<Client> clients;
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(clients.emplace_back(listener_->port()).Say("x"));
  ASSERT_TRUE(host_.WaitForTaken(4));
  host_.CloseAll();
  EXPECT_TRUE(Eventually([this] { return listener_->state().waiting == 0; }));
  ASSERT_TRUE(clients.emplace_back(listener_->port()).Say("x"));
  EXPECT_TRUE(host_.WaitForTaken(1));
  EXPECT_EQ(listener_->state().turned_away, 0u);
}

TEST_F(ListenerTest, WhoSpokeAMomentAgoDoesNotGoForTheNextQuietOne) {
  ListenerOptions options = Few(8);
  options.quiet.places = 4;
  Open(options);
  std::deque<Client> slow, quiet;
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(slow.emplace_back(listener_->port()).connected());
  Client first(listener_->port()), second(listener_->port());
  ASSERT_TRUE(Eventually([this] { return listener_->state().waiting == 4; }));
  host_.SetBusyWith(1);
  ASSERT_TRUE(first.Say("x"));
  ASSERT_TRUE(host_.WaitForTaken(1));
  // What the listener's thread hears of next: one has spoken, and others stand at the door. Before it comes
  // to these, the slow ones speak.
  ASSERT_TRUE(second.Say("x"));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(quiet.emplace_back(listener_->port()).connected());
  host_.SetBusyWith(2);
  ASSERT_TRUE(host_.WaitForTaken(2));
  for (Client& client : slow) ASSERT_TRUE(client.Say("x"));
  host_.SetBusyWith(SIZE_MAX);
  EXPECT_TRUE(host_.WaitForTaken(4));
  for (const Client& client : slow) EXPECT_FALSE(client.HungUpWithin({}));
  EXPECT_EQ(listener_->state().turned_away, 0u);
}

TEST_F(ListenerTest, ADescriptorThatStandsForAnotherSocketIsLeftAlone) {
  // The host closes a connection, and its number comes to be another socket's.
  Open(Few(1));
  Client stalled(listener_->port());
  ASSERT_TRUE(stalled.Say("x"));
  ASSERT_TRUE(host_.WaitForTaken(1));
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const UniqueFd one(ends[0]), other(ends[1]);
  host_.CloseAll();
  // As many copies as it takes to cover every number that was free.
  std::vector<UniqueFd> copies;
  for (int i = 0; i < 16; ++i) copies.emplace_back(::fcntl(one.get(), F_DUPFD_CLOEXEC, 0));
  std::deque<Client> more;
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(more.emplace_back(listener_->port()).Say("x"));
  ASSERT_TRUE(host_.WaitForTaken(8));
  EXPECT_EQ(::send(one.get(), "x", 1, MSG_NOSIGNAL), 1) << "another socket was shut down";
}

TEST_F(ListenerTest, SilenceIsHungUpOnInTheEnd) {
  ListenerOptions options = Few(8);
  options.quiet_max = milliseconds(100);
  Open(options);
  Client client(listener_->port());
  EXPECT_TRUE(client.HungUpWithin(kLong));
  EXPECT_TRUE(Eventually([this] { return listener_->state().waiting == 0; }));
  EXPECT_EQ(listener_->state().turned_away, 0u);
  EXPECT_FALSE(listener_->state().crowded);
}

TEST_F(ListenerTest, TheReserveOfDescriptorsIsLeftAlone) {
  ListenerOptions options = Few(64);
  options.descriptors_max = OpenDescriptors() + 60;
  options.descriptors_reserved = 40;
  Open(options);
  // Clients take descriptors of this process too: of two that a connection costs one is the listener's.
  std::deque<Client> clients;
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(clients.emplace_back(listener_->port()).connected());
  EXPECT_TRUE(Eventually([this] { return listener_->state().out_of_descriptors; }));
  EXPECT_TRUE(Eventually([&] { return HungUp(clients) > 0; }));
  EXPECT_TRUE(Eventually([this] { return listener_->state().turned_away > 0; }));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Not under a sanitizer, which wants descriptors for its own looks at memory. Runs in a process of its
// own, whose limit it lowers; tells by its exit status.
int RunOutOfDescriptorsAndRecover() {
  ListenerOptions options{.address = {"127.0.0.1", 0}};
  auto listener = Listener::Bind(options, Rng(1, 2), Clock::System());
  if (!listener.ok()) return 2;
  Host host;
  Client client((*listener)->port());
  if (!client.connected() || !client.Say("x")) return 3;
  rlimit before{};
  (void)::getrlimit(RLIMIT_NOFILE, &before);
  const rlimit soft{3, before.rlim_max};  // those below are taken: input, output, errors
  if (::setrlimit(RLIMIT_NOFILE, &soft) != 0) return 4;
  (*listener)->Start([&host](int fd) { host.Take(fd); });
  const double cpu = ProcessCpuSeconds();
  const Time deadline = Clock::System()->Now() + kLong;
  while (!(*listener)->state().out_of_descriptors) {
    if (Clock::System()->Now() > deadline) return 5;
    Clock::System()->SleepFor(milliseconds(5));
  }
  Clock::System()->SleepFor(milliseconds(500));
  if (ProcessCpuSeconds() - cpu > 0.25) return 6;  // it spins
  if (host.taken() != 0) return 7;
  if (::setrlimit(RLIMIT_NOFILE, &before) != 0) return 8;
  return host.WaitForTaken(1) ? 0 : 9;
}

TEST(ListenerDeathTest, WithoutADescriptorItNeitherSpinsNorGivesUp) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(std::_Exit(RunOutOfDescriptorsAndRecover()), ::testing::ExitedWithCode(0), "");
}
#endif

TEST(ListenerBindTest, ATakenPortIsRefusedWithTheSystemsReason) {
  ListenerOptions options{.address = {"127.0.0.1", 0}};
  auto first = Listener::Bind(options, Rng(1, 2), Clock::System());
  ASSERT_TRUE(first.ok()) << Describe(first.status());
  EXPECT_GT((*first)->port(), 0);
  options.address.port = (*first)->port();
  const auto second = Listener::Bind(options, Rng(1, 2), Clock::System());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("Address already in use"));
}

TEST(ListenerBindTest, AnyAddressIsReachedByBothFamilies) {
  for (const char* host : {"0.0.0.0", "::", "localhost"}) {
    auto listener = Listener::Bind({.address = {host, 0}, .descriptors_max = DescriptorLimit()},
                                   Rng(1, 2), Clock::System());
    ASSERT_TRUE(listener.ok()) << host << ": " << Describe(listener.status());
    EXPECT_TRUE(Client((*listener)->port()).connected()) << host;
  }
}

TEST(PlacesTest, WhatSessionsDoNotNeedGoesToTheRooms) {
  const Places small = PlacesFor(1024, 64, 64);
  EXPECT_FALSE(small.few);
  EXPECT_GE(small.each, 256u);
  EXPECT_LE(2 * small.each + 64 + 64, 1024u);
  EXPECT_EQ(PlacesFor(1'000'000, 64, 64).each, 1024u);
}

// Beside the reserve, what the program has open and those that wait for a place or leave one.
TEST(PlacesTest, RoomsTakeNotAllThatAFewDescriptorsLeave) {
  for (uint64_t descriptors = 256; descriptors < 470; ++descriptors) {
    const Places few = PlacesFor(descriptors, 64, 64);
    EXPECT_TRUE(few.few || descriptors >= few.descriptors_wanted);
    EXPECT_GE(few.each, 8u);
    EXPECT_LE(2 * few.each + 64 + 64 + 64 + 32, descriptors) << "32 sessions have room";
  }
}

TEST(PlacesTest, TooFewDescriptorsForTheSessionsAreTold) {
  const Places few = PlacesFor(1024, 64, 1000);
  EXPECT_TRUE(few.few);
  EXPECT_GT(few.each, 0u);
  EXPECT_FALSE(PlacesFor(few.descriptors_wanted, 64, 1000).few);
}

}  // namespace
}  // namespace signvote
