#include <utility>

#include "proto/wire/wire.h"
#include "server/rpc/services.h"
#include "server/rpc/session.h"
#include "server/rpc/state_transfer.h"
#include "signvote/v1/training.grpc.pb.h"

namespace signvote::rpc {
namespace {

using RawService =
    v1::Training::WithRawCallbackMethod_Session<v1::Training::WithRawCallbackMethod_FetchState<
        v1::Training::WithRawCallbackMethod_UploadState<v1::Training::Service>>>;

// A stream that ends at once.
class RefusedSession final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit RefusedSession(const absl::Status& status) { Finish(wire::ToGrpc(status)); }
  void OnDone() override { delete this; }
};

class TrainingService final : public RawService {
 public:
  TrainingService(run::RunThread* run, StreamTable* table, Transfers* transfers, FileSystem* fs)
      : run_(run), table_(table), transfers_(transfers), fs_(fs) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Session(
      grpc::CallbackServerContext* context) override {
    absl::StatusOr<std::string> ticket = fs_->RandomBytes(wire::kTicketBytes);
    if (!ticket.ok()) return new RefusedSession(ticket.status());
    return ServerSession::Start(context, run_, table_, *std::move(ticket)).get();
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* FetchState(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request) override {
    return StartFetch(transfers_, context, request);
  }
  grpc::ServerReadReactor<grpc::ByteBuffer>* UploadState(grpc::CallbackServerContext* context,
                                                         grpc::ByteBuffer* response) override {
    return StartUpload(transfers_, context, response);
  }

 private:
  run::RunThread* const run_;
  StreamTable* const table_;
  Transfers* const transfers_;
  FileSystem* const fs_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTrainingService(run::RunThread* run, StreamTable* table,
                                                   Transfers* transfers, FileSystem* fs) {
  return std::make_unique<TrainingService>(run, table, transfers, fs);
}

}  // namespace signvote::rpc
