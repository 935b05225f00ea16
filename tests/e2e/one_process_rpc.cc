#include "tests/e2e/one_process_rpc.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/text_format.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <vector>

#include "signvote/v1/training.grpc.pb.h"

namespace signvote {

struct HealthServer::State {
  // answers UNIMPLEMENTED; a server without a service does not start
  v1::Training::Service training;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<grpc::GenericStub> stub;
};

HealthServer::HealthServer() : state_(std::make_unique<State>()) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&state_->training);
  state_->server = builder.BuildAndStart();
  if (state_->server == nullptr) return;
  state_->stub = std::make_unique<grpc::GenericStub>(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
}

HealthServer::~HealthServer() {
  state_->stub.reset();
  if (state_->server != nullptr) {
    state_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
  }
}

int HealthServer::Check() {
  if (state_->stub == nullptr) return -1;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  grpc::CompletionQueue queue;
  const grpc::ByteBuffer request(nullptr, 0);  // HealthCheckRequest of the whole server
  const auto call =
      state_->stub->PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, &queue);
  void* tag = nullptr;
  bool ok = false;
  const bool done = queue.Next(&tag, &ok);
  queue.Shutdown();
  if (!done || !ok || !status.ok()) return -1;
  std::vector<grpc::Slice> slices;
  if (!response.Dump(&slices).ok() || slices.size() != 1 || slices[0].size() != 2) return -1;
  return slices[0].begin()[0] == 0x08 ? slices[0].begin()[1] : -1;  // field 1, varint
}

int64_t SumThroughTextFormat(int entries) {
  google::protobuf::Struct written;
  for (int i = 0; i < entries; ++i) {
    (*written.mutable_fields())["key" + std::to_string(i)].set_number_value(i);
  }
  std::string text;
  google::protobuf::Struct read;
  if (!google::protobuf::TextFormat::PrintToString(written, &text)) return -1;
  if (!google::protobuf::TextFormat::ParseFromString(text, &read)) return -1;
  double sum = 0;
  for (const auto& [key, value] : read.fields()) sum += value.number_value();
  return static_cast<int64_t>(sum);
}

std::string NameThroughWire(const std::string& name) {
  v1::Join written, read;
  written.set_name(name);
  return read.ParseFromString(written.SerializeAsString()) ? read.name() : "";
}

}  // namespace signvote
