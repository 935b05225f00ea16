#include "common/net/listener.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/net/greeters.h"
#include "common/net/listening_sockets.h"
#include "common/net/unique_fd.h"
#include "common/status.h"

namespace signvote {
namespace {

using Id = WaitingRoom::Id;

// Between two attempts while there is no descriptor for the next connection: nothing tells when one
// becomes free.
constexpr Duration kPause = std::chrono::milliseconds(10);
// Accepted in one go, before those that have spoken are looked at again.
constexpr int kAcceptsAtOnce = 64;
constexpr int kEventsAtOnce = 128;
// Connections that have spoken and wait for a place among those that greet. While so many wait the
// next ones stay outside, in the order in which they came.
constexpr size_t kSpeakingMax = 64;
// What the program itself has open beside connections: files, polls, pipes.
constexpr uint64_t kOwnDescriptors = 64;
constexpr size_t kPlacesMin = 64;
constexpr size_t kPlacesFew = 8;  // where there are not even descriptors for these
constexpr size_t kPlacesMax = 1024;

// Tokens of epoll that are no connection's. Connections count from kFirstId.
constexpr uint64_t kWakeToken = 0;
constexpr uint64_t kFirstId = 1 << 16;  // below: 1 + index of a listening socket

// A peer that is turned away gets a reset: nothing of the connection stays in the kernel.
void ResetOnClose(int fd) {
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  (void)::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

enum class Word { kNone, kSaid, kGone };
Word FirstWord(int fd) {
  char byte = 0;
  const ssize_t got = ::recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (got > 0) return Word::kSaid;
  return got < 0 && (errno == EAGAIN || errno == EINTR) ? Word::kNone : Word::kGone;
}

bool SomebodyWaits(int listening) {
  pollfd look{listening, POLLIN, 0};
  return ::poll(&look, 1, 0) > 0;
}

bool HungUp(int fd) {
  pollfd look{fd, POLLRDHUP, 0};
  return ::poll(&look, 1, 0) > 0 && (look.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

struct Quiet {
  UniqueFd fd;
  Time since;
};

class ListenerImpl final : public Listener {
 public:
  ListenerImpl(const ListenerOptions& options, ListeningSockets listening, UniqueFd poll,
               UniqueFd wake, uint64_t seed, Clock* clock)
      : options_(options),
        clock_(clock),
        listening_(std::move(listening)),
        poll_(std::move(poll)),
        wake_(std::move(wake)),
        may_accept_(listening_.sockets.size(), false),
        quiet_room_(options.quiet, Rng(seed, 0)),
        greeters_(options.greeting, Rng(seed, 1)) {}

  ~ListenerImpl() override { Stop(); }

  absl::Status Watch() {
    if (!Add(wake_.get(), EPOLLIN, kWakeToken)) return absl::UnavailableError(std::strerror(errno));
    for (size_t i = 0; i < listening_.sockets.size(); ++i) {
      if (!Add(listening_.sockets[i].get(), EPOLLIN | EPOLLET, 1 + i)) {
        return absl::UnavailableError(std::strerror(errno));
      }
    }
    return absl::OkStatus();
  }

  uint16_t port() const override { return listening_.port; }

  void Start(HandOn hand_on) override {
    hand_on_ = std::move(hand_on);
    thread_ = std::jthread([this](const std::stop_token& stop) { Serve(stop); });
  }

  void Stop() override {
    if (thread_.joinable()) {
      thread_.request_stop();
      Wake();
      thread_.join();
    }
    speaking_.clear();
    quiet_.clear();
    listening_.sockets.clear();
    MutexLock lock(&mu_);
    quiet_count_ = 0;
  }

  void Settle(const Endpoint& peer) override {
    if (greeters_.Settle(peer)) Wake();
  }

  ListenerState state() override {
    const size_t greeting = greeters_.Count();
    MutexLock lock(&mu_);
    return StateLocked(clock_->Now(), greeting);
  }

 private:
  static bool IsRecent(const std::optional<Time>& at, Time now) {
    return at.has_value() && now - *at < kRecently;
  }

  ListenerState StateLocked(Time now, size_t greeting) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return {.waiting = quiet_count_ + greeting,
            .turned_away = quiet_turned_away_ + greeters_.turned_away(),
            .crowded = IsRecent(crowded_at_, now),
            .out_of_descriptors = IsRecent(out_at_, now)};
  }

  bool Add(int fd, uint32_t events, uint64_t token) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = token;
    return ::epoll_ctl(poll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }

  void Wake() {
    const uint64_t one = 1;
    const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
    (void)written;  // can only fail when the event is already set as often as it counts
  }

  void Serve(const std::stop_token& stop) {
    epoll_event events[kEventsAtOnce];
    while (!stop.stop_requested()) {
      const int count = ::epoll_wait(poll_.get(), events, kEventsAtOnce, WaitMs(clock_->Now()));
      const Time now = clock_->Now();
      for (int i = 0; i < count; ++i) {
        const uint64_t token = events[i].data.u64;
        if (token == kWakeToken) {
          uint64_t ignored = 0;
          const ssize_t got = ::read(wake_.get(), &ignored, sizeof(ignored));
          (void)got;  // what it wakes for is looked at below in any case
        } else if (token < kFirstId) {
          may_accept_[token - 1] = true;
        } else {
          Hear(token);
        }
      }
      HangUpOnSilence(now);
      HandOnThoseWhoSpoke(now);
      wait_until_ = Accept(now);
      HandOnThoseWhoSpoke(now);  // what had something to say when it was accepted
      TellChanges(now);
    }
  }

  // How long nothing happens by itself.
  int WaitMs(Time now) {
    std::optional<Time> next;
    if (speaking_.size() < kSpeakingMax) next = wait_until_;
    const auto not_after = [&next](Time at) { next = next.has_value() ? std::min(*next, at) : at; };
    if (!quiet_.empty()) not_after(quiet_.begin()->second.since + options_.quiet_max);
    if (place_at_.has_value()) not_after(*place_at_);
    if (told_until_.has_value()) not_after(*told_until_);
    if (!next.has_value()) return -1;
    // Rounded up: a wait of less than a millisecond must not spin.
    const int64_t ms = (*next - now).count() / 1'000'000 + 1;
    return static_cast<int>(std::clamp<int64_t>(*next <= now ? 0 : ms, 0, INT_MAX));
  }

  void SetQuiet() {
    MutexLock lock(&mu_);
    quiet_count_ = quiet_.size() + speaking_.size();
  }

  // The peer has sent something, or has gone.
  void Hear(Id id) {
    const auto it = quiet_.find(id);
    if (it == quiet_.end()) return;  // turned away a moment ago
    const Word word = FirstWord(it->second.fd.get());
    if (word == Word::kNone) return;
    if (word == Word::kSaid) {
      (void)::epoll_ctl(poll_.get(), EPOLL_CTL_DEL, it->second.fd.get(), nullptr);
      speaking_.push_back(std::move(it->second.fd));
    }
    Forget(it);
  }

  void Forget(std::map<Id, Quiet>::iterator it) {
    (void)quiet_room_.Leave(it->first);
    quiet_.erase(it);
    SetQuiet();
  }

  void HangUpOnSilence(Time now) {
    while (!quiet_.empty() && now - quiet_.begin()->second.since >= options_.quiet_max) {
      Forget(quiet_.begin());
    }
  }

  void HandOnThoseWhoSpoke(Time now) {
    place_at_.reset();
    while (!speaking_.empty()) {
      if (HungUp(speaking_.front().get())) {
        speaking_.pop_front();
        continue;
      }
      place_at_ = greeters_.Enter(speaking_.front().get(), now);
      if (place_at_.has_value()) break;
      const int fd = speaking_.front().Release();
      speaking_.pop_front();
      hand_on_(fd);
    }
    SetQuiet();
    if (const uint64_t so_far = greeters_.turned_away(); so_far != greeters_turned_away_) {
      greeters_turned_away_ = so_far;
      MutexLock lock(&mu_);
      crowded_at_ = now;
    }
  }

  // Returns when to go on where somebody may still wait outside, once fewer than kSpeakingMax wait
  // inside.
  std::optional<Time> Accept(Time now) {
    int left = kAcceptsAtOnce;
    for (size_t i = 0; i < may_accept_.size(); ++i) {
      while (may_accept_[i]) {
        if (now < pause_until_) return pause_until_;
        if (speaking_.size() >= kSpeakingMax) return now;
        if (quiet_room_.full() && now < quiet_room_.MayTurnAwayAt()) {
          return quiet_room_.MayTurnAwayAt();
        }
        if (left-- == 0) return now;
        UniqueFd fd(
            ::accept4(listening_.sockets[i].get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (!fd.valid()) {
          NotAccepted(i, now);
          continue;
        }
        if (static_cast<uint64_t>(fd.get()) + options_.descriptors_reserved >=
            options_.descriptors_max) {
          // The lowest free number is given, so all below are taken.
          pause_until_ = now + kPause;
          if (!MakeRoomInReserve(now)) {
            CountTurnedAway();
            continue;  // closed
          }
        }
        Enter(std::move(fd), now);
      }
    }
    return std::nullopt;
  }

  void NotAccepted(size_t i, Time now) {
    switch (errno) {
      case EAGAIN:
        may_accept_[i] = false;
        return;
      case EMFILE:
      case ENFILE:
      case ENOBUFS:
      case ENOMEM:
        // Said before the queue is looked at.
        if (!SomebodyWaits(listening_.sockets[i].get())) {
          may_accept_[i] = false;
          return;
        }
        pause_until_ = now + kPause;
        (void)MakeRoomInReserve(now);
        return;
      default:  // of that one connection, which is gone: accept(2)
        return;
    }
  }

  // False: nobody here can go.
  bool MakeRoomInReserve(Time now) {
    const std::optional<Id> id = quiet_room_.TurnAwayAtOnce();
    if (id.has_value()) TurnQuietAway(id, now);
    MutexLock lock(&mu_);
    out_at_ = now;
    return id.has_value();
  }

  void CountTurnedAway() {
    MutexLock lock(&mu_);
    ++quiet_turned_away_;
  }

  void TurnQuietAway(std::optional<Id> id, Time now) {
    if (!id.has_value()) return;
    const auto it = quiet_.find(*id);
    SIGNVOTE_CHECK(it != quiet_.end());
    ResetOnClose(it->second.fd.get());
    quiet_.erase(it);
    CountTurnedAway();
    MutexLock lock(&mu_);
    crowded_at_ = now;
  }

  // A connection whose peer has spoken by now takes no place of the quiet.
  void Enter(UniqueFd fd, Time now) {
    const Word word = FirstWord(fd.get());
    if (word == Word::kGone) return;
    if (word == Word::kSaid) {
      speaking_.push_back(std::move(fd));
      return;
    }
    if (quiet_room_.full()) {
      const std::optional<Id> goes = quiet_room_.TurnAway(now);
      // It may have spoken since it was looked at last.
      if (goes.has_value()) Hear(*goes);
      if (goes.has_value() && quiet_.contains(*goes)) TurnQuietAway(goes, now);
    }
    const Id id = next_id_++;
    // Once only: a byte is enough, and the end of what has sent none is hung up on by time.
    if (!Add(fd.get(), EPOLLIN | EPOLLRDHUP | EPOLLET, id)) return;  // no memory: closed
    quiet_room_.Enter(id);
    quiet_.emplace(id, Quiet{std::move(fd), now});
    SetQuiet();
  }

  // A state is told once, when it begins and when it is over.
  void TellChanges(Time now) {
    ListenerState is;
    {
      MutexLock lock(&mu_);
      is = StateLocked(now, 0);
      told_until_.reset();
      if (is.crowded) told_until_ = *crowded_at_ + kRecently;
      if (is.out_of_descriptors && (!told_until_ || *out_at_ + kRecently < *told_until_)) {
        told_until_ = *out_at_ + kRecently;
      }
    }
    if (is.out_of_descriptors && !told_.out_of_descriptors) {
      LogError(
          "no descriptor is left for another connection; raise the limit (LimitNOFILE=, ulimit -n)",
          {{"limit", options_.descriptors_max}, {"reserved", options_.descriptors_reserved}});
    } else if (is.crowded && !told_.crowded) {
      LogWarning(
          "more connections without a handshake than there is room for: some are turned away",
          {{"waiting", state().waiting}, {"port", int64_t{listening_.port}}});
    } else if (!is.crowded && !is.out_of_descriptors &&
               (told_.crowded || told_.out_of_descriptors)) {
      LogInfo("there is room for new connections again", {{"turned_away", is.turned_away}});
    }
    told_ = is;
  }

  // Constant after construction, but for Stop().
  const ListenerOptions options_;
  Clock* const clock_;
  ListeningSockets listening_;
  const UniqueFd poll_, wake_;
  HandOn hand_on_;

  // The thread's own.
  std::vector<bool> may_accept_;  // by listening socket: somebody may wait outside
  WaitingRoom quiet_room_;
  std::map<Id, Quiet> quiet_;      // those of quiet_room_, the earliest first
  std::deque<UniqueFd> speaking_;  // not handed on yet: no place; they count as quiet
  Id next_id_ = kFirstId;
  uint64_t greeters_turned_away_ = 0;
  Time pause_until_{INT64_MIN};
  std::optional<Time> wait_until_;  // for Accept()
  std::optional<Time> place_at_;    // for those who spoke
  std::optional<Time> told_until_;
  ListenerState told_;

  Greeters greeters_;  // synchronises itself
  Mutex mu_;
  uint64_t quiet_count_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t quiet_turned_away_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<Time> crowded_at_ ABSL_GUARDED_BY(mu_), out_at_ ABSL_GUARDED_BY(mu_);

  std::jthread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Bind(const ListenerOptions& options, Rng rng,
                                                         Clock* clock) {
  SIGNVOTE_ASSIGN_OR_RETURN(ListeningSockets listening,
                            ListenOn(options.address, options.unacknowledged_ms));
  UniqueFd poll(::epoll_create1(EPOLL_CLOEXEC));
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!poll.valid() || !wake.valid()) return absl::UnavailableError(std::strerror(errno));
  auto listener = std::make_unique<ListenerImpl>(options, std::move(listening), std::move(poll),
                                                 std::move(wake), rng.Next(), clock);
  SIGNVOTE_RETURN_IF_ERROR(listener->Watch());
  return listener;
}

Places PlacesFor(uint64_t descriptors_max, uint64_t descriptors_reserved, uint64_t sessions_max) {
  const uint64_t others =
      descriptors_reserved + kOwnDescriptors + kSpeakingMax + Greeters::kLeavingMax;
  const uint64_t taken = others + sessions_max;
  const uint64_t wanted = taken + 2 * kPlacesMin;
  if (descriptors_max >= wanted) {
    return {.each = std::min<uint64_t>((descriptors_max - taken) / 2, kPlacesMax),
            .descriptors_wanted = wanted};
  }
  // Half of what there is for the sessions.
  const uint64_t left = descriptors_max > others ? descriptors_max - others : 0;
  return {.each = std::clamp<uint64_t>(left / 4, kPlacesFew, kPlacesMin),
          .few = true,
          .descriptors_wanted = wanted};
}

}  // namespace signvote
