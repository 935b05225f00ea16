#include <algorithm>
#include <functional>
#include <string_view>
#include <utility>

#include "common/export_metadata.h"
#include "common/mutex.h"
#include "common/process.h"
#include "common/safetensors.h"
#include "common/status.h"
#include "proto/wire/wire.h"
#include "server/rpc/background.h"
#include "server/rpc/identity.h"
#include "server/rpc/services.h"
#include "server/run/books_proto.h"
#include "signvote/v1/admin.grpc.pb.h"

namespace signvote::rpc {
namespace {

constexpr size_t kExportChunkBytes = size_t{1} << 20;
// The applier is at one commit at a time; a copy begins behind it.
constexpr Duration kCopyPatience = std::chrono::seconds(30);

bool IsLoopback(std::string_view address) {
  return address.starts_with("ipv4:127.") || address.starts_with("ipv6:%5B::1%5D:") ||
         address.starts_with("ipv6:[::1]:") || address.starts_with("unix:");
}

absl::Status CheckCaller(const grpc::CallbackServerContext& context, bool tls) {
  const run::PeerIdentity peer = IdentityOf(context);
  if (tls) {
    if (peer.authenticated && peer.admin_role) return absl::OkStatus();
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
//
// Ownership: keeps itself alive until gRPC and whoever makes the copy have let go of it.
class ExportCall final : public grpc::ServerWriteReactor<v1::ExportChunk>,
                         public std::enable_shared_from_this<ExportCall> {
 public:
  // `done` runs when gRPC has let go of the call and the copy is freed.
  static std::shared_ptr<ExportCall> Start(std::function<void()> done) {
    std::shared_ptr<ExportCall> call(new ExportCall(std::move(done)));
    MutexLock lock(&call->mu_);
    call->self_ = call;
    return call;
  }
  // Once the copy is there. Called once, by any thread.
  void Begin(absl::StatusOr<run::RunThread::Exported> exported) {
    if (!exported.ok()) return End(exported.status());
    {
      MutexLock lock(&mu_);
      if (finished_) return;
      exported_ = *std::move(exported);
      header_ = SafetensorsHeader(exported_.layout.tensors(), TensorDtype::kF32,
                                  ExportMetadata(exported_.origin));
      begun_ = true;
    }
    WriteNext();
  }
  void End(const absl::Status& status) {
    {
      MutexLock lock(&mu_);
      if (std::exchange(finished_, true)) return;
    }
    Finish(wire::ToGrpc(status));
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return End(absl::CancelledError("the connection broke"));
    WriteNext();
  }
  void OnCancel() override {
    {
      MutexLock lock(&mu_);
      if (begun_) return;  // the write in progress fails and ends the call
    }
    End(absl::CancelledError("the connection broke"));
  }
  void OnDone() override {
    std::shared_ptr<ExportCall> self;
    {
      MutexLock lock(&mu_);
      self = std::move(self_);
      exported_ = {};
    }
    done_();
  }

 private:
  explicit ExportCall(std::function<void()> done) : done_(std::move(done)) {}

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
        chunk_.set_round(exported_.origin.round.value());
        chunk_.set_total_bytes(total);
        sent_ += chunk_.data().size();
        chunk = &chunk_;
      }
    }
    if (chunk == nullptr) return End(absl::OkStatus());
    StartWrite(chunk);
  }

  const std::function<void()> done_;

  Mutex mu_;
  std::shared_ptr<ExportCall> self_ ABSL_GUARDED_BY(mu_);  // until OnDone()
  bool begun_ ABSL_GUARDED_BY(mu_) = false, finished_ ABSL_GUARDED_BY(mu_) = false;
  run::RunThread::Exported exported_ ABSL_GUARDED_BY(mu_);
  std::string header_ ABSL_GUARDED_BY(mu_);
  uint64_t sent_ ABSL_GUARDED_BY(mu_) = 0;
  v1::ExportChunk chunk_ ABSL_GUARDED_BY(mu_);  // gRPC reads it until OnWriteDone
};

class AdminService final : public v1::Admin::CallbackService {
 public:
  AdminService(run::RunThread* run, bool tls) : run_(run), tls_(tls) {}

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest*, v1::Status* reply) override {
    return OnRunThread(context, [reply](run::Run& run, Time now) {
      *reply = Complete(run.Snapshot(now));
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
    const bool posted = run_->Call([reactor, reply, events_after = request->events_after(),
                                    wait = Duration(std::chrono::milliseconds(request->wait_ms()))](
                                       run::Run& run, Time now) {
      run.Watch(now, events_after, wait, [reactor, reply](absl::StatusOr<run::WatchView> answer) {
        if (answer.ok()) {
          FillIn(&answer->status);
          *reply = run::ToProto(*answer);
        }
        reactor->Finish(wire::ToGrpc(answer.status()));
      });
    });
    if (!posted) reactor->Finish(wire::ToGrpc(absl::UnavailableError("the server stops")));
    return reactor;
  }
  grpc::ServerUnaryReactor* Pause(grpc::CallbackServerContext* context, const v1::PauseRequest*,
                                  v1::PauseReply*) override {
    return OnRunThread(context, [](run::Run& run, Time now) { return run.Pause(now); });
  }
  grpc::ServerUnaryReactor* Resume(grpc::CallbackServerContext* context, const v1::ResumeRequest*,
                                   v1::ResumeReply*) override {
    return OnRunThread(context, [](run::Run& run, Time now) { return run.Resume(now); });
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request, v1::DrainReply*) override {
    return OnRunThread(context, [worker = request->worker()](run::Run& run, Time now) {
      return run.Drain(now, worker);
    });
  }
  grpc::ServerUnaryReactor* Evict(grpc::CallbackServerContext* context,
                                  const v1::EvictRequest* request, v1::EvictReply*) override {
    return OnRunThread(context, [worker = request->worker()](run::Run& run, Time now) {
      return run.Evict(now, worker);
    });
  }
  grpc::ServerWriteReactor<v1::ExportChunk>* Export(grpc::CallbackServerContext* context,
                                                    const v1::ExportRequest*) override {
    absl::Status status = CheckCaller(*context, tls_);
    {
      MutexLock lock(&mu_);
      if (status.ok() && exporting_)
        status = absl::UnavailableError("another export is not finished yet; try again later");
      // One at a time: each holds a copy of the whole model for as long as its reader takes.
      if (status.ok()) exporting_ = true;
    }
    if (!status.ok()) {
      const auto refused = ExportCall::Start([] {});
      refused->End(status);
      return refused.get();
    }
    const auto call = ExportCall::Start([this] {
      MutexLock done(&mu_);
      exporting_ = false;
    });
    // The copy takes a while and may wait for the applier: not on gRPC's threads.
    copies_.Run([run = run_, call] {
      call->Begin(run->CopyReplica(run::RunThread::CopyOf::kCommitted, kCopyPatience));
    });
    return call.get();
  }

 private:
  // What only the process knows.
  static void FillIn(run::StatusPage* page) { page->resident_bytes = ResidentBytes(); }
  static v1::Status Complete(run::StatusPage page) {
    FillIn(&page);
    return run::ToProto(page);
  }

  template <typename Call>
  grpc::ServerUnaryReactor* OnRunThread(grpc::CallbackServerContext* context, Call call) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (const absl::Status status = CheckCaller(*context, tls_); !status.ok()) {
      reactor->Finish(wire::ToGrpc(status));
      return reactor;
    }
    const bool posted = run_->Call([reactor, call = std::move(call)](run::Run& run, Time now) {
      reactor->Finish(wire::ToGrpc(call(run, now)));
    });
    if (!posted) reactor->Finish(wire::ToGrpc(absl::UnavailableError("the server stops")));
    return reactor;
  }

  run::RunThread* const run_;
  const bool tls_;

  Background copies_;

  Mutex mu_;
  bool exporting_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(run::RunThread* run, bool tls) {
  return std::make_unique<AdminService>(run, tls);
}

}  // namespace signvote::rpc
