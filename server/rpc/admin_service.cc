#include <algorithm>
#include <functional>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "proto/wire/wire.h"
#include "server/rpc/probe.h"
#include "server/rpc/services.h"
#include "signvote/v1/admin.grpc.pb.h"

namespace signvote::rpc {
namespace {

constexpr size_t kExportChunkBytes = size_t{1} << 20;

bool IsLoopback(std::string_view address) {
  return address.starts_with("ipv4:127.") || address.starts_with("ipv6:%5B::1%5D:") ||
         address.starts_with("ipv6:[::1]:") || address.starts_with("unix:");
}

absl::Status CheckCaller(const grpc::CallbackServerContext& context, bool tls) {
  const wire::Peer peer = wire::PeerOf(context);
  if (tls) {
    if (peer.authenticated && peer.HasRole(wire::Role::kAdmin)) return absl::OkStatus();
    return absl::PermissionDeniedError(
        "admin calls need a certificate of the admin role (signvote:role:admin); see "
        "docs/operations.md");
  }
  if (IsLoopback(peer.address)) return absl::OkStatus();
  return absl::PermissionDeniedError(
      "without TLS admin calls are taken from the server's own machine only");
}

// Streams a copy of the replica as a safetensors file: the header, then the values as they lie in
// memory. The copy is made by one thread and sent by others: mu_ hands it over.
class ExportReactor final : public grpc::ServerWriteReactor<v1::ExportChunk> {
 public:
  // `done` runs when gRPC has let go of the call and the copy is freed.
  explicit ExportReactor(std::function<void()> done) : done_(std::move(done)) {}
  // Once the copy is there. Called once, by any thread.
  void Begin(absl::StatusOr<Coordinator::Exported> exported, const RunId& run_id) {
    if (!exported.ok()) return Finish(wire::ToGrpc(exported.status()));
    {
      MutexLock lock(&mu_);
      exported_ = *std::move(exported);
      header_ = SafetensorsHeader(exported_.layout, ExportMetadata(run_id, exported_.round));
    }
    WriteNext();
  }
  void Refuse(const absl::Status& status) { Finish(wire::ToGrpc(status)); }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(wire::ToGrpc(absl::CancelledError("the connection broke")));
    WriteNext();
  }
  void OnCancel() override {}  // the write in progress fails and ends the call
  void OnDone() override {
    const std::function<void()> done = done_;
    delete this;
    done();
  }

 private:
  void WriteNext() {
    const v1::ExportChunk* chunk = nullptr;
    {
      MutexLock lock(&mu_);
      const uint64_t values_bytes = exported_.x.size() * sizeof(float);
      const uint64_t total = header_.size() + values_bytes;
      if (sent_ < total) {
        chunk_.Clear();
        if (sent_ == 0) chunk_.set_config_json(exported_.config_json);
        if (sent_ < header_.size()) {
          chunk_.set_data(header_);
        } else {
          const uint64_t at = sent_ - header_.size();
          const auto* values = reinterpret_cast<const char*>(exported_.x.data());
          chunk_.set_data(values + at, std::min<uint64_t>(kExportChunkBytes, values_bytes - at));
        }
        chunk_.set_round(exported_.round.value());
        chunk_.set_total_bytes(total);
        sent_ += chunk_.data().size();
        chunk = &chunk_;
      }
    }
    if (chunk == nullptr) return Finish(grpc::Status::OK);
    StartWrite(chunk);
  }

  const std::function<void()> done_;

  Mutex mu_;
  Coordinator::Exported exported_ ABSL_GUARDED_BY(mu_);
  std::string header_ ABSL_GUARDED_BY(mu_);
  uint64_t sent_ ABSL_GUARDED_BY(mu_) = 0;
  v1::ExportChunk chunk_ ABSL_GUARDED_BY(mu_);  // gRPC reads it until OnWriteDone
};

class AdminService final : public v1::Admin::CallbackService {
 public:
  AdminService(Coordinator* coordinator, bool tls) : coordinator_(coordinator), tls_(tls) {}
  ~AdminService() override {
    if (exporter_.joinable()) exporter_.join();
  }

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest*, v1::Status* reply) override {
    return OnEngineThread(context, [this, reply] {
      *reply = coordinator_->SnapshotNow().status;
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* Watch(grpc::CallbackServerContext* context,
                                  const v1::WatchRequest* request, v1::WatchReply* reply) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (const absl::Status status = CheckCaller(*context, tls_); !status.ok()) {
      reactor->Finish(wire::ToGrpc(status));
      return reactor;
    }
    const bool posted =
        coordinator_->Post([this, reactor, reply, events_after = request->events_after(),
                            wait = Duration(std::chrono::milliseconds(request->wait_ms()))] {
          coordinator_->Watch(events_after, wait,
                              [reactor, reply](absl::StatusOr<v1::WatchReply> answer) {
                                if (answer.ok()) *reply = *std::move(answer);
                                reactor->Finish(wire::ToGrpc(answer.status()));
                              });
        });
    if (!posted) reactor->Finish(wire::ToGrpc(absl::UnavailableError("the server stops")));
    return reactor;
  }
  grpc::ServerUnaryReactor* Pause(grpc::CallbackServerContext* context, const v1::PauseRequest*,
                                  v1::PauseReply*) override {
    return OnEngineThread(context, [this] { return coordinator_->Pause(); });
  }
  grpc::ServerUnaryReactor* Resume(grpc::CallbackServerContext* context, const v1::ResumeRequest*,
                                   v1::ResumeReply*) override {
    return OnEngineThread(context, [this] { return coordinator_->Resume(); });
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request, v1::DrainReply*) override {
    return OnEngineThread(
        context, [this, worker = request->worker()] { return coordinator_->Drain(worker); });
  }
  grpc::ServerUnaryReactor* Evict(grpc::CallbackServerContext* context,
                                  const v1::EvictRequest* request, v1::EvictReply*) override {
    return OnEngineThread(
        context, [this, worker = request->worker()] { return coordinator_->Evict(worker); });
  }
  grpc::ServerWriteReactor<v1::ExportChunk>* Export(grpc::CallbackServerContext* context,
                                                    const v1::ExportRequest*) override {
    absl::Status status = CheckCaller(*context, tls_);
    MutexLock lock(&mu_);
    if (status.ok() && exporting_)
      status = absl::UnavailableError("another export is not finished yet; try again later");
    if (!status.ok()) {
      auto* refused = new ExportReactor([] {});
      refused->Refuse(status);
      return refused;
    }
    // One at a time: each holds a copy of the whole model for as long as its reader takes.
    exporting_ = true;
    auto* reactor = new ExportReactor([this] {
      MutexLock done(&mu_);
      exporting_ = false;
    });
    if (exporter_.joinable()) exporter_.join();  // its call is over: exporting_ was false
    // The copy takes a while and may wait for the applier: not on gRPC's threads.
    exporter_ = std::thread(
        [this, reactor] { reactor->Begin(coordinator_->CopyReplica(), coordinator_->run_id()); });
    return reactor;
  }

 private:
  template <typename Call>
  grpc::ServerUnaryReactor* OnEngineThread(grpc::CallbackServerContext* context, Call call) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (const absl::Status status = CheckCaller(*context, tls_); !status.ok()) {
      reactor->Finish(wire::ToGrpc(status));
      return reactor;
    }
    const bool posted = coordinator_->Post(
        [reactor, call = std::move(call)] { reactor->Finish(wire::ToGrpc(call())); });
    if (!posted) reactor->Finish(wire::ToGrpc(absl::UnavailableError("the server stops")));
    return reactor;
  }

  Coordinator* const coordinator_;
  const bool tls_;

  Mutex mu_;
  bool exporting_ ABSL_GUARDED_BY(mu_) = false;
  std::thread exporter_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(Coordinator* coordinator, bool tls) {
  return std::make_unique<AdminService>(coordinator, tls);
}

}  // namespace signvote::rpc
