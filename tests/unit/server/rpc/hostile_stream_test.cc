// What one connection can make the server hold: streams, messages that never end, transfers that
// nobody reads.

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/process.h"
#include "tests/unit/server/rpc/training_service_fixture.h"

namespace signvote::rpc {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// An HTTP/2 connection that begins calls and never ends their first messages.
// Threads: thread-compatible.
class HalfMessages {
 public:
  HalfMessages(int port, const std::string& method, uint32_t message_bytes)
      : headers_(Headers(method)), message_bytes_(message_bytes) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    open_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0;
    Write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    Frame(kSettings, 0, 0, "");
  }
  ~HalfMessages() { ::close(fd_); }
  HalfMessages(const HalfMessages&) = delete;
  HalfMessages& operator=(const HalfMessages&) = delete;

  void Begin(uint32_t streams) {
    for (uint32_t i = 0; i < streams; ++i) {
      const uint32_t id = 2 * i + 1;
      Frame(kHeaders, kEndHeaders, id, headers_);
      streams_[id] = {.window = window_at_start_, .left = message_bytes_ - 1};
      std::string begin(5, '\0');
      for (int b = 0; b < 4; ++b)
        begin[static_cast<size_t>(4 - b)] = static_cast<char>(message_bytes_ >> (8 * b));
      Data(id, begin);
    }
  }
  // Sends what the server takes; returns once it has taken everything, or nothing for `patience`.
  void SendUntilItTakesNoMore(milliseconds patience) {
    while (open_ && SendWhatFits()) {
      pollfd waits{.fd = fd_, .events = POLLIN, .revents = 0};
      if (::poll(&waits, 1, static_cast<int>(patience.count())) <= 0) return;
      Read();
    }
  }

 private:
  enum : uint8_t {
    kDataFrame = 0,
    kHeaders = 1,
    kReset = 3,
    kSettings = 4,
    kPing = 6,
    kGoAway = 7,
    kWindow = 8
  };
  enum : uint8_t { kAck = 1, kEndHeaders = 4 };
  static constexpr size_t kFrameBytesMax = 16384;
  struct Stream {
    int64_t window = 0;
    uint64_t left = 0;
  };

  static std::string Headers(const std::string& method) {
    std::string out;
    const auto add = [&out](const std::string& name, const std::string& value) {
      out += '\0';  // a literal that nobody remembers
      out += static_cast<char>(name.size());
      out += name;
      out += static_cast<char>(value.size());
      out += value;
    };
    add(":method", "POST");
    add(":scheme", "http");
    add(":path", method);
    add(":authority", "localhost");
    add("te", "trailers");
    add("content-type", "application/grpc");
    return out;
  }
  static uint32_t Number(const std::string& bytes, size_t at, size_t count) {
    uint32_t value = 0;
    for (size_t i = 0; i < count; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
    return value;
  }

  void Write(const std::string& bytes) {
    for (size_t at = 0; open_ && at < bytes.size();) {
      const ssize_t n =
          ::send(fd_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) {
        at += static_cast<size_t>(n);
        continue;
      }
      pollfd waits{.fd = fd_, .events = POLLOUT, .revents = 0};
      if (errno != EAGAIN || ::poll(&waits, 1, 10'000) <= 0) open_ = false;
    }
  }
  void Frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
    std::string head(9, '\0');
    for (size_t i = 0; i < 3; ++i) head[i] = static_cast<char>(payload.size() >> (8 * (2 - i)));
    head[3] = static_cast<char>(type);
    head[4] = static_cast<char>(flags);
    for (size_t i = 0; i < 4; ++i) head[5 + i] = static_cast<char>(stream >> (8 * (3 - i)));
    Write(head + payload);
  }
  void Data(uint32_t id, const std::string& bytes) {
    Frame(kDataFrame, 0, id, bytes);
    window_ -= static_cast<int64_t>(bytes.size());
    streams_[id].window -= static_cast<int64_t>(bytes.size());
  }
  // False: everything is sent.
  bool SendWhatFits() {
    bool left = false;
    for (auto& [id, stream] : streams_) {
      while (open_ && stream.left > 0 && stream.window > 0 && window_ > 0) {
        const size_t size = static_cast<size_t>(
            std::min<int64_t>({static_cast<int64_t>(kFrameBytesMax),
                               static_cast<int64_t>(stream.left), stream.window, window_}));
        stream.left -= size;
        Data(id, std::string(size, 'x'));
      }
      left = left || stream.left > 0;
    }
    return left;
  }
  void Read() {
    char bytes[65536];
    const ssize_t n = ::recv(fd_, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n <= 0) {
      open_ = n < 0 && errno == EAGAIN;
      return;
    }
    in_.append(bytes, static_cast<size_t>(n));
    while (in_.size() >= 9 && in_.size() >= 9 + Number(in_, 0, 3)) {
      const size_t size = Number(in_, 0, 3);
      Take(static_cast<uint8_t>(in_[3]), static_cast<uint8_t>(in_[4]), Number(in_, 5, 4),
           in_.substr(9, size));
      in_.erase(0, 9 + size);
    }
  }
  void Take(uint8_t type, uint8_t flags, uint32_t id, const std::string& payload) {
    if (type == kWindow) {
      (id == 0 ? window_ : streams_[id].window) += Number(payload, 0, 4);
    } else if (type == kSettings && (flags & kAck) == 0) {
      for (size_t at = 0; at + 6 <= payload.size(); at += 6) {
        if (Number(payload, at, 2) != 4) continue;  // SETTINGS_INITIAL_WINDOW_SIZE
        const int64_t change = int64_t{Number(payload, at + 2, 4)} - window_at_start_;
        window_at_start_ += change;
        for (auto& [stream, state] : streams_) state.window += change;
      }
      Frame(kSettings, kAck, 0, "");
    } else if (type == kPing && (flags & kAck) == 0) {
      Frame(kPing, kAck, 0, payload);
    } else if (type == kReset) {
      streams_.erase(id);
    } else if (type == kGoAway) {
      open_ = false;
    }
  }

  const std::string headers_;
  const uint32_t message_bytes_;
  int fd_ = -1;
  bool open_ = false;
  std::string in_;
  int64_t window_ = 65535, window_at_start_ = 65535;
  std::map<uint32_t, Stream> streams_;
};

class HostileStreamTest : public TrainingServiceTest {};

// Goal: what gRPC holds of messages that are not whole is bounded for all connections together.
// Method: the calls that nothing else bounds, each with nearly the largest message. gRPC acts late
// (three to six times the limit were seen), and without a limit it takes everything.
// Not under a sanitizer, which keeps what was given back.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(HostileStreamTest, HalfMessagesTakeNoMemoryWithoutABound) {
  constexpr uint64_t kAllowed = uint64_t{64} << 20;
  constexpr uint32_t kMessage = uint32_t{8} << 20;
  constexpr uint32_t kStreams = 32;
  around_.memory_bytes_max = kAllowed;
  StartServer();
  const uint64_t before = ResidentBytes();
  std::vector<std::unique_ptr<HalfMessages>> connections;
  uint64_t most = 0;
  for (int i = 0; i < 4; ++i) {
    connections.push_back(
        std::make_unique<HalfMessages>(server_->port(), "/signvote.v1.Admin/GetStatus", kMessage));
    connections.back()->Begin(kStreams);
    connections.back()->SendUntilItTakesNoMore(milliseconds(1500));
    most = std::max(most, ResidentBytes());
  }
  EXPECT_LT(most, before + 12 * kAllowed)
      << "of " << ((uint64_t{4} * kStreams * kMessage) >> 20) << " MiB";
  connections.clear();
  EXPECT_TRUE(NewClient()->JoinRun("w")) << "there is room again";
}
#endif

TEST_F(HostileStreamTest, AConnectionHasOnlySoManyStreams) {
  constexpr size_t kStreamsMax = 256;
  around_.transfers.unclaimed_max = 1000;
  around_.transfers.claim_timeout = kLong;
  StartServer();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto stub = v1::Training::NewStub(
      grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
  struct Call {
    grpc::ClientContext context;
    v1::UploadStateReply reply;
    std::unique_ptr<grpc::ClientAsyncWriter<v1::UploadStateRequest>> writer;
  };
  grpc::CompletionQueue queue;
  std::vector<std::unique_ptr<Call>> calls;
  for (size_t i = 0; i < kStreamsMax + 50; ++i) {
    auto& call = calls.emplace_back(std::make_unique<Call>());
    call->writer = stub->AsyncUploadState(&call->context, &call->reply, &queue, call.get());
  }
  ASSERT_TRUE(Eventually([&] { return server_->transfers().open_calls() >= kStreamsMax; }));
  // An answer on another connection comes behind whatever the server was sent before.
  auto other = NewClient();
  ASSERT_TRUE(other->SendJoin(other->MakeJoin("w")));
  ASSERT_TRUE(other->ReadWelcome());
  EXPECT_EQ(server_->transfers().open_calls(), kStreamsMax);
  for (const auto& call : calls) call->context.TryCancel();
  for (size_t i = 0; i < calls.size(); ++i) {
    void* tag = nullptr;
    bool ok = false;
    ASSERT_TRUE(queue.Next(&tag, &ok));
  }
  EXPECT_TRUE(Eventually([&] { return server_->transfers().open_calls() == 0; }));
  calls.clear();
  queue.Shutdown();
}

}  // namespace
}  // namespace signvote::rpc
