#include <utility>

#include "server/rpc/services.h"
#include "server/rpc/session.h"
#include "server/rpc/state_transfer.h"
#include "signvote/v1/training.grpc.pb.h"

namespace signvote::rpc {
namespace {

using RawService =
    v1::Training::WithRawCallbackMethod_Session<v1::Training::WithRawCallbackMethod_FetchState<
        v1::Training::WithRawCallbackMethod_UploadState<v1::Training::Service>>>;

class TrainingService final : public RawService {
 public:
  explicit TrainingService(Coordinator* coordinator) : coordinator_(coordinator) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Session(
      grpc::CallbackServerContext* context) override {
    return ServerSession::Start(context, coordinator_->inbox(),
                                {.run_id = coordinator_->run_id(),
                                 .epoch = coordinator_->epoch(),
                                 .queue_bytes_max = coordinator_->session_buffer_bytes()})
        .get();
  }
  grpc::ServerWriteReactor<grpc::ByteBuffer>* FetchState(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request) override {
    return StartFetch(coordinator_->hub(), context, request, Done());
  }
  grpc::ServerReadReactor<grpc::ByteBuffer>* UploadState(grpc::CallbackServerContext* context,
                                                         grpc::ByteBuffer* response) override {
    return StartUpload(
        coordinator_->hub(), context, response,
        [coordinator = coordinator_](std::shared_ptr<ServerSession> session) {
          coordinator->Uploaded(std::move(session));
        },
        Done());
  }

 private:
  TransferDone Done() {
    return
        [coordinator = coordinator_](std::shared_ptr<ServerSession> session, TransferBytes bytes) {
          coordinator->AddTransfer(std::move(session), bytes);
        };
  }

  Coordinator* const coordinator_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTrainingService(Coordinator* coordinator) {
  return std::make_unique<TrainingService>(coordinator);
}

}  // namespace signvote::rpc
