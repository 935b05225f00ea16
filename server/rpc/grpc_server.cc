#include "server/rpc/grpc_server.h"

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/host_port.h"
#include "common/log.h"
#include "common/net/endpoint.h"
#include "common/net/listener.h"
#include "common/status.h"
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

// Connections of operators and monitoring, beside the workers'.
constexpr uint64_t kOperators = 16;
// Links may be slow: a handshake takes a few round trips and some kilobytes.
constexpr int kHandshakeTimeoutMs = 20'000;
// What a connection's place lasts on average while more come than there are places: who comes waits
// for as long as its fellows divided by the places. Clients speak at once; a handshake may need the
// network several times.
constexpr Duration kQuietPatience = std::chrono::milliseconds(250);
constexpr Duration kGreetingPatience = std::chrono::milliseconds(500);
// Without any call for this long.
constexpr int kIdleMs = 300'000;

// Tells the listener of each call that begins; intercepts none.
class CallReporter final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit CallReporter(Listener* listener) : listener_(listener) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    if (const auto peer = EndpointOfPeer(info->server_context()->peer())) listener_->Settle(*peer);
    return nullptr;
  }

 private:
  Listener* const listener_;
};

class GrpcServerImpl final : public GrpcServer {
 public:
  ~GrpcServerImpl() override { Shutdown(Duration::zero()); }

  GrpcServerImpl(run::RunThread* run, FileSystem* fs, const GrpcServerOptions& options)
      : run_(run), fs_(fs), transfers_(run, &table_, options.transfers, options.find_socket) {}

  absl::Status Listen(const GrpcServerOptions& options, Rng rng, Clock* clock) {
    const Places places = PlacesFor(options.descriptors_max, options.descriptors_reserved,
                                    options.workers_max + kOperators);
    if (places.few) {
      LogWarning(
          "the limit of open descriptors is low for --workers-max; raise it (LimitNOFILE=, ulimit "
          "-n)",
          {{"limit", options.descriptors_max},
           {"wanted", places.descriptors_wanted},
           {"workers_max", options.workers_max}});
    }
    SIGNVOTE_ASSIGN_OR_RETURN(const HostPort address,
                              ParseHostPort("--listen", options.listen, PortZero::kAllowed));
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Bind({.address = address,
                        .unacknowledged_ms = kKeepaliveTimeoutMs,
                        .quiet = {.places = places.each, .patience = kQuietPatience},
                        .greeting = {.places = places.each, .patience = kGreetingPatience},
                        .quiet_max = std::chrono::milliseconds(kHandshakeTimeoutMs),
                        .descriptors_max = options.descriptors_max,
                        .descriptors_reserved = options.descriptors_reserved},
                       rng, clock);
    if (!listener.ok()) {
      return WithExitCode(
          absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen, ": ",
                                              listener.status().message(),
                                              "; choose another address with --listen")),
          ExitCode::kPortInUse);
    }
    listener_ = *std::move(listener);
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    training_ = MakeTrainingService(run_, &table_, &transfers_, fs_);
    admin_ = MakeAdminService(run_, options.tls != nullptr);
    grpc::ServerBuilder builder;
    credentials_ = options.tls != nullptr ? ReloadingCredentials(options.tls)
                                          : grpc::InsecureServerCredentials();
    acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials_);
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> reporters;
    reporters.push_back(std::make_unique<CallReporter>(listener_.get()));
    builder.experimental().SetInterceptorCreators(std::move(reporters));
    builder.RegisterService(training_.get());
    builder.RegisterService(admin_.get());
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.message_bytes_max + kEnvelopeBytes));
    builder.SetMaxSendMessageSize(-1);
    // Nothing of ours compresses, and what is small here may be large once it is not.
    for (const grpc_compression_algorithm algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
      builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
    }
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleMs);
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
    if (server_ == nullptr) return absl::InternalError("gRPC does not start its server");
    SetServing(false);
    listener_->Start([this](int fd) {
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
      connection.fd = fd;
      acceptor_->HandleNewConnection(&connection);
    });
    return absl::OkStatus();
  }

  int port() const override { return listener_->port(); }
  ListenerState connections() override { return listener_->state(); }
  void SetServing(bool serving) override {
    if (grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService()) {
      health->SetServingStatus(kTrainingService, serving);
    }
  }
  void Shutdown(Duration grace) override {
    if (server_ == nullptr || std::exchange(shut_down_, true)) return;
    listener_->Stop();
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
  bool shut_down_ = false;
  std::unique_ptr<Listener> listener_;  // told of calls until the server is gone
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::shared_ptr<grpc::ServerCredentials> credentials_;  // asked until the server is gone
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(GrpcServerOptions options,
                                                              run::RunThread* run, FileSystem* fs,
                                                              Rng rng, Clock* clock) {
  auto server = std::make_unique<GrpcServerImpl>(run, fs, options);
  if (absl::Status status = server->Listen(options, rng, clock); !status.ok()) return status;
  return server;
}

}  // namespace signvote::rpc
