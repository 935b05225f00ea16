#include "ctl/admin_client.h"

#include <grpcpp/create_channel.h>

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/host_port.h"
#include "common/model_file.h"
#include "common/mutex.h"
#include "common/status.h"
#include "proto/wire/wire.h"
#include "signvote/v1/admin.grpc.pb.h"

namespace signvote::ctl {
namespace {

constexpr int kReceiveBytesMax = 16 << 20;

// gRPC takes deadlines on the wall clock; it converts them to its own monotonic one at once.
std::chrono::system_clock::time_point DeadlineIn(Duration timeout) {
  return std::chrono::system_clock::time_point(
             std::chrono::microseconds(Clock::System()->UnixMicros())) +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(timeout);
}

// Cancels a call that made no step for `timeout`: a stream has no deadline of its own that fits
// every model's size.
class Watchdog {
 public:
  Watchdog(grpc::ClientContext* context, Duration timeout) : context_(context), timeout_(timeout) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Watchdog() {
    {
      MutexLock lock(&mu_);
      stopped_ = true;
    }
    cv_.NotifyAll();
    thread_.join();
  }
  void Pet() {
    MutexLock lock(&mu_);
    ++steps_;
  }
  bool expired() const {
    MutexLock lock(&mu_);
    return expired_;
  }

 private:
  void Run() {
    MutexLock lock(&mu_);
    Clock* const clock = Clock::System();
    uint64_t seen = steps_;
    // For the call's end; the time-out begins anew with each step that the call took within it.
    while (!cv_.WaitUntil(&mu_, clock, clock->Now() + timeout_,
                          [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopped_; })) {
      if (steps_ == seen) {
        expired_ = true;
        context_->TryCancel();
        return;
      }
      seen = steps_;
    }
  }

  grpc::ClientContext* const context_;
  const Duration timeout_;
  std::thread thread_;
  mutable Mutex mu_;
  CondVar cv_;
  uint64_t steps_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  bool expired_ ABSL_GUARDED_BY(mu_) = false;
};

class GrpcAdminClient final : public AdminClient {
 public:
  GrpcAdminClient(AdminClientOptions options, std::shared_ptr<grpc::ChannelCredentials> credentials)
      : options_(std::move(options)), credentials_(std::move(credentials)) {
    Dial();
  }

  absl::StatusOr<v1::Status> GetStatus() override {
    v1::GetStatusRequest request;
    v1::Status reply;
    SIGNVOTE_RETURN_IF_ERROR(Call(&v1::Admin::Stub::GetStatus, request, &reply));
    return reply;
  }
  absl::StatusOr<v1::WatchReply> Watch(uint64_t events_after, Duration wait) override {
    v1::WatchRequest request;
    v1::WatchReply reply;
    request.set_events_after(events_after);
    request.set_wait_ms(
        static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::milliseconds>(wait).count()));
    SIGNVOTE_RETURN_IF_ERROR(Call(&v1::Admin::Stub::Watch, request, &reply, wait));
    return reply;
  }
  void Cancel() override {
    MutexLock lock(&mu_);
    cancelled_ = true;
    if (calling_ != nullptr) calling_->TryCancel();
  }
  absl::Status Pause() override {
    v1::PauseRequest request;
    v1::PauseReply reply;
    return Call(&v1::Admin::Stub::Pause, request, &reply);
  }
  absl::Status Resume() override {
    v1::ResumeRequest request;
    v1::ResumeReply reply;
    return Call(&v1::Admin::Stub::Resume, request, &reply);
  }
  absl::Status Drain(const std::string& worker) override {
    v1::DrainRequest request;
    request.set_worker(worker);
    v1::DrainReply reply;
    return Call(&v1::Admin::Stub::Drain, request, &reply);
  }
  absl::Status Evict(const std::string& worker) override {
    v1::EvictRequest request;
    request.set_worker(worker);
    v1::EvictReply reply;
    return Call(&v1::Admin::Stub::Evict, request, &reply);
  }

  absl::StatusOr<Exported> Export(FileSystem* fs, const std::string& path,
                                  const ModelFormat& format) override {
    // Before minutes of transfer; the config only the server has.
    SIGNVOTE_RETURN_IF_ERROR(RequireModelTarget(fs, path, /*config_json=*/""));
    grpc::ClientContext context;
    Watchdog watchdog(&context, options_.timeout);
    const std::unique_ptr<grpc::ClientReader<v1::ExportChunk>> reader =
        stub_->Export(&context, v1::ExportRequest());
    ExportReceiver receiver(fs, path, format);
    absl::Status local;
    v1::ExportChunk chunk;
    while (local.ok() && reader->Read(&chunk)) {
      watchdog.Pet();
      local = receiver.Take(chunk);
    }
    if (!local.ok()) context.TryCancel();
    const grpc::Status status = reader->Finish();
    if (!local.ok()) return local;
    if (watchdog.expired()) {
      return absl::DeadlineExceededError(absl::StrCat(options_.server, ": export stood still for ",
                                                      ToSeconds(options_.timeout),
                                                      " s; raise --timeout"));
    }
    SIGNVOTE_RETURN_IF_ERROR(Explain(status));
    return receiver.Finish();
  }

 private:
  void Dial() {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kReceiveBytesMax);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    // A connection of its own, without what an earlier one remembers.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = v1::Admin::NewStub(grpc::CreateCustomChannel(options_.server, credentials_, arguments));
  }

  template <typename Method, typename Request, typename Reply>
  absl::Status Call(Method method, const Request& request, Reply* reply,
                    Duration expected = Duration::zero()) {
    grpc::ClientContext context;
    context.set_deadline(DeadlineIn(expected + options_.timeout));
    {
      MutexLock lock(&mu_);
      if (cancelled_) return absl::CancelledError("cancelled");
      calling_ = &context;
    }
    const grpc::Status status = (stub_.get()->*method)(&context, request, reply);
    {
      MutexLock lock(&mu_);
      calling_ = nullptr;
    }
    const absl::Status explained = Explain(status);
    // A channel that failed waits up to two minutes before it tries again: who watches a server
    // that is started again takes a new one.
    if (absl::IsUnavailable(explained)) Dial();
    return explained;
  }

  // gRPC's words for "nobody there" do not say who was called nor what to do.
  absl::Status Explain(const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
        status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      return absl::UnavailableError(absl::StrCat(
          options_.server, " does not answer as ", options_.insecure ? "a plaintext" : "a TLS",
          " server: check --server, that signvote-server runs there, and that both sides use TLS "
          "or both --insecure (",
          status.error_message(), ")"));
    }
    return WithContext(wire::FromGrpc(status), options_.server);
  }

  const AdminClientOptions options_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;
  std::unique_ptr<v1::Admin::Stub> stub_;

  Mutex mu_;
  grpc::ClientContext* calling_ ABSL_GUARDED_BY(mu_) = nullptr;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdminClient>> AdminClient::Create(FileSystem* fs,
                                                                 const AdminClientOptions& options,
                                                                 int64_t now_unix_seconds) {
  if (options.server.empty()) {
    return absl::InvalidArgumentError(
        "no server given: use --server HOST:PORT or set SIGNVOTE_SERVER");
  }
  SIGNVOTE_RETURN_IF_ERROR(ParseHostPort("--server", options.server, PortZero::kRefused).status());
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  if (options.insecure) {
    credentials = grpc::InsecureChannelCredentials();
  } else {
    if (options.tls.ca.empty() || options.tls.certificate.empty() || options.tls.key.empty()) {
      return absl::InvalidArgumentError(
          "no certificates given: use --tls-dir DIR or set SIGNVOTE_TLS_DIR (a folder made by "
          "`signvote certs`), "
          "or --tls-ca, --tls-certificate and --tls-key, or --insecure");
    }
    SIGNVOTE_ASSIGN_OR_RETURN(const wire::TlsMaterial material,
                              wire::LoadTls(fs, options.tls, now_unix_seconds));
    credentials = wire::MtlsChannelCredentials(material);
  }
  return std::make_unique<GrpcAdminClient>(options, std::move(credentials));
}

}  // namespace signvote::ctl
