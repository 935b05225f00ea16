#include "server/rpc/grpc_server.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "proto/wire/security.h"
#include "server/rpc/services.h"

namespace signvote::rpc {
namespace {

constexpr char kTrainingService[] = "signvote.v1.Training";
// A peer that answers no keepalive for this long is gone, even when its machine fell silent without
// closing anything.
constexpr int kKeepaliveEveryMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
// A reflection call has a thread of its own for as long as it is open.
constexpr int kSyncThreadsMax = 8;
// Of one connection. A worker has a session, and at times one transfer; several workers of one
// process may share a connection.
constexpr int kStreamsMax = 256;
// Headers and envelope beside a message's payload.
constexpr uint64_t kEnvelopeBytes = 1024;

// Why gRPC could not listen: it only logs the reason, so that the address is tried once more by
// hand.
std::string ListenError(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  const std::string port = colon == std::string::npos ? "" : address.substr(colon + 1);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return ::gai_strerror(error);
  }
  std::string reason = "the operating system refuses it";
  const int fd = ::socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, 0);
  if (fd >= 0) {
    const int yes = 1;
    (void)::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes,
                       sizeof(yes));  // as gRPC does; bind() tells the rest
    if (::bind(fd, found->ai_addr, found->ai_addrlen) != 0 || ::listen(fd, 1) != 0)
      reason = std::strerror(errno);
    ::close(fd);
  }
  ::freeaddrinfo(found);
  return reason;
}

class GrpcServerImpl final : public GrpcServer {
 public:
  ~GrpcServerImpl() override { Shutdown(Duration::zero()); }

  GrpcServerImpl(run::RunThread* run, FileSystem* fs, const TransferLimits& limits)
      : run_(run), fs_(fs), transfers_(run, &table_, limits) {}

  absl::Status Listen(const GrpcServerOptions& options) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    training_ = MakeTrainingService(run_, &table_, &transfers_, fs_);
    admin_ = MakeAdminService(run_, options.tls != nullptr);
    grpc::ServerBuilder builder;
    credentials_ = options.tls != nullptr ? ReloadingCredentials(options.tls)
                                          : grpc::InsecureServerCredentials();
    builder.AddListeningPort(options.listen, credentials_, &port_);
    builder.RegisterService(training_.get());
    builder.RegisterService(admin_.get());
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.message_bytes_max + kEnvelopeBytes));
    builder.SetMaxSendMessageSize(-1);
    // Nothing of ours compresses, and what is small here may be large once it is not.
    for (const grpc_compression_algorithm algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
      builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
    }
    // A second server on the same port is an error, not a second half of the workers.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsMax);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveEveryMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    // Workers ping too, and may compute for a long time between messages.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    // Only reflection is served by gRPC's synchronous threads.
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 1);
    grpc::ResourceQuota quota;
    quota.SetMaxThreads(kSyncThreadsMax);
    quota.Resize(options.memory_bytes_max);
    builder.SetResourceQuota(quota);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ <= 0) {
      server_.reset();
      return WithExitCode(
          absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen, ": ",
                                              ListenError(options.listen),
                                              "; choose another address with --listen")),
          ExitCode::kPortInUse);
    }
    SetServing(false);
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  void SetServing(bool serving) override {
    if (grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService()) {
      health->SetServingStatus(kTrainingService, serving);
    }
  }
  void Shutdown(Duration grace) override {
    if (server_ == nullptr || std::exchange(shut_down_, true)) return;
    const std::chrono::microseconds now(Clock::System()->UnixMicros());
    server_->Shutdown(std::chrono::system_clock::time_point(
        now + std::chrono::duration_cast<std::chrono::microseconds>(grace)));
    transfers_.Stop();
  }
  const Transfers& transfers() const override { return transfers_; }

 private:
  run::RunThread* const run_;
  FileSystem* const fs_;
  StreamTable table_;
  Transfers transfers_;
  std::unique_ptr<grpc::Service> training_, admin_;
  int port_ = 0;
  bool shut_down_ = false;
  std::shared_ptr<grpc::ServerCredentials> credentials_;  // asked until the server is gone
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(GrpcServerOptions options,
                                                              run::RunThread* run, FileSystem* fs) {
  auto server = std::make_unique<GrpcServerImpl>(run, fs, options.transfers);
  if (absl::Status status = server->Listen(options); !status.ok()) return status;
  return server;
}

}  // namespace signvote::rpc
