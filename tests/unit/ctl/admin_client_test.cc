// Goal: the client's own judgement of what a server answers. Method: a server in this process that
// answers wrongly.
#include "ctl/admin_client.h"

#include <gmock/gmock.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>
#include <vector>

#include "common/checkpoint.h"
#include "common/exit_codes.h"
#include "common/mutex.h"
#include "common/safetensors.h"
#include "signvote/v1/admin.grpc.pb.h"

namespace signvote::ctl {
namespace {

class FakeAdmin final : public v1::Admin::Service {
 public:
  using OnExport =
      std::function<grpc::Status(grpc::ServerContext*, grpc::ServerWriter<v1::ExportChunk>*)>;
  void set_on_export(OnExport on_export) {
    MutexLock lock(&mu_);
    on_export_ = std::move(on_export);
  }
  std::string drained() const {
    MutexLock lock(&mu_);
    return drained_;
  }

 private:
  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                         v1::Status* reply) override {
    reply->set_round(42);
    return grpc::Status::OK;
  }
  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest* request,
                     v1::WatchReply* reply) override {
    reply->mutable_status()->set_round(request->events_after());
    reply->mutable_status()->set_main_rounds(request->wait_ms());
    while (request->wait_ms() > 0 && !context->IsCancelled())
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return grpc::Status::OK;
  }
  grpc::Status Drain(grpc::ServerContext*, const v1::DrainRequest* request,
                     v1::DrainReply*) override {
    if (request->worker() != "alpha")
      return {grpc::StatusCode::NOT_FOUND, "no worker named beta is connected"};
    MutexLock lock(&mu_);
    drained_ = request->worker();
    return grpc::Status::OK;
  }
  grpc::Status Export(grpc::ServerContext* context, const v1::ExportRequest*,
                      grpc::ServerWriter<v1::ExportChunk>* writer) override {
    OnExport on_export;
    {
      MutexLock lock(&mu_);
      on_export = on_export_;
    }
    return on_export(context, writer);
  }

  mutable Mutex mu_;
  OnExport on_export_ ABSL_GUARDED_BY(mu_);
  std::string drained_ ABSL_GUARDED_BY(mu_);
};

class AdminClientTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "admin_client_test.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  void TearDown() override {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    std::filesystem::remove_all(root_);
  }

  std::unique_ptr<AdminClient> Client(Duration timeout = std::chrono::seconds(60)) {
    auto client = AdminClient::Create(
        FileSystem::Posix(), {.server = address_, .insecure = true, .tls = {}, .timeout = timeout},
        0);
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
  static v1::ExportChunk Chunk(const std::string& data, uint64_t total, uint64_t round = 9) {
    v1::ExportChunk chunk;
    chunk.set_data(data);
    chunk.set_total_bytes(total);
    chunk.set_round(round);
    return chunk;
  }
  // A model of two tensors as a server sends it.
  static Layout Model() {
    return *Layout::Make({{.name = "w", .shape = {2}}, {.name = "b", .shape = {3}}});
  }
  static std::string ModelBytes() {
    const std::vector<float> x = {1, 2, 3, 4, 5};
    std::string bytes = SafetensorsHeader(Model().tensors(), TensorDtype::kF32,
                                          {{"format", "pt"}, {"signvote.round", "9"}});
    return bytes.append(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(float));
  }
  // Answers an export with these bytes, so many in a part.
  void SendInParts(const std::string& bytes, size_t part_bytes, const std::string& config = "") {
    service_.set_on_export([bytes, part_bytes, config](
                               grpc::ServerContext*, grpc::ServerWriter<v1::ExportChunk>* writer) {
      for (size_t at = 0; at < bytes.size(); at += part_bytes) {
        v1::ExportChunk chunk = Chunk(bytes.substr(at, part_bytes), bytes.size());
        if (at == 0) chunk.set_config_json(config);
        writer->Write(chunk);
      }
      return grpc::Status::OK;
    });
  }
  absl::StatusOr<Exported> Export(const ModelFormat& format = {}) {
    return Client()->Export(FileSystem::Posix(), root_ + "/model.safetensors", format);
  }
  std::vector<float> Values(const std::string& path) {
    const auto model = Checkpoint::Open(FileSystem::Posix(), path);
    if (!model.ok()) return {};
    std::vector<float> x(5);
    EXPECT_TRUE((*model)->CopyInto(Model(), x).ok());
    return x;
  }
  std::string Read(const std::string& name) {
    std::ifstream in(root_ + "/" + name, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

  FakeAdmin service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_, root_;
};

TEST_F(AdminClientTest, AnswersAndRefusalsArriveWithTheirCodes) {
  const auto client = Client();
  const auto status = client->GetStatus();
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->round(), 42u);
  EXPECT_TRUE(client->Drain("alpha").ok());
  EXPECT_EQ(service_.drained(), "alpha");
  const absl::Status refused = client->Drain("beta");
  EXPECT_EQ(refused.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("beta"));
  EXPECT_EQ(client->Pause().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(AdminClientTest, AWatchIsCancelledFromAnotherThreadAndStaysSo) {
  const auto client = Client();
  const auto reply = client->Watch(7, Duration::zero());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->status().round(), 7u);
  EXPECT_EQ(reply->status().main_rounds(), 0u);
  std::thread cancel([&client] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    client->Cancel();
  });
  EXPECT_EQ(client->Watch(0, std::chrono::seconds(60)).status().code(),
            absl::StatusCode::kCancelled);
  cancel.join();
  EXPECT_EQ(client->GetStatus().status().code(), absl::StatusCode::kCancelled);
}

TEST_F(AdminClientTest, AWatchThatIsNotAnsweredEndsAfterItsTimeAndTheTimeout) {
  const auto client = Client(std::chrono::milliseconds(100));
  const Time begin = Clock::System()->Now();
  EXPECT_EQ(client->Watch(0, std::chrono::milliseconds(200)).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_GE(Clock::System()->Now() - begin, std::chrono::milliseconds(300));
}

TEST_F(AdminClientTest, NobodyThereIsUnavailableAndNamesTheServer) {
  auto client = AdminClient::Create(
      FileSystem::Posix(),
      {.server = "127.0.0.1:1", .insecure = true, .tls = {}, .timeout = std::chrono::seconds(60)},
      0);
  ASSERT_TRUE(client.ok());
  const absl::Status status = (*client)->GetStatus().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("127.0.0.1:1"));
}

TEST_F(AdminClientTest, NothingIsDialledWithoutServerOrCertificates) {
  EXPECT_EQ(AdminClient::Create(FileSystem::Posix(), {}, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AdminClient::Create(FileSystem::Posix(), {.server = "host:1"}, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(AdminClientTest, ExportWritesModelAndConfigHoweverTheStreamIsCut) {
  const std::string bytes = ModelBytes();
  for (const size_t part_bytes : {size_t{1}, size_t{7}, size_t{63}, bytes.size()}) {
    SendInParts(bytes, part_bytes, "{\"a\":1}");
    const auto exported = Export();
    ASSERT_TRUE(exported.ok()) << exported.status();
    EXPECT_EQ(exported->round, 9u);
    EXPECT_EQ(exported->model.bytes, 20u);
    EXPECT_EQ(exported->model.path, root_ + "/model.safetensors");
    EXPECT_TRUE(exported->has_config);
    EXPECT_EQ(Read("model.safetensors"), bytes);
    EXPECT_EQ(Read("config.json"), "{\"a\":1}");
    std::filesystem::remove(root_ + "/model.safetensors");
  }
}

TEST_F(AdminClientTest, AnExportIsWrittenInTheFormatThatIsAskedFor) {
  SendInParts(ModelBytes(), 10, R"({"torch_dtype": "float32"})");
  const auto exported = Export({.dtype = TensorDtype::kBf16, .shard_bytes = 6});
  ASSERT_TRUE(exported.ok()) << exported.status();
  EXPECT_EQ(exported->model.files, 2u);
  EXPECT_EQ(exported->model.bytes, 10u);
  EXPECT_EQ(exported->model.path, root_ + "/model.safetensors.index.json");
  EXPECT_EQ(Values(root_), (std::vector<float>{1, 2, 3, 4, 5}));
  EXPECT_THAT(Read("config.json"), testing::HasSubstr("bfloat16"));
  const auto shard =
      SafetensorsFile::Open(FileSystem::Posix(), root_ + "/model-00002-of-00002.safetensors");
  ASSERT_TRUE(shard.ok()) << shard.status();
  EXPECT_EQ((*shard)->metadata().at("signvote.round"), "9");
}

TEST_F(AdminClientTest, AnIncompleteExportLeavesTheOldFileAlone) {
  std::ofstream(root_ + "/model.safetensors") << "old";
  const std::string bytes = ModelBytes();
  const auto attempt = [&] { return Export().status().code(); };
  const auto send = [&](const std::vector<v1::ExportChunk>& chunks, grpc::Status status) {
    service_.set_on_export(
        [chunks, status](grpc::ServerContext*, grpc::ServerWriter<v1::ExportChunk>* writer) {
          for (const v1::ExportChunk& chunk : chunks) writer->Write(chunk);
          return status;
        });
  };
  const std::string first = bytes.substr(0, bytes.size() - 6), rest = bytes.substr(first.size());
  const auto total = bytes.size();

  send({}, grpc::Status::OK);
  EXPECT_EQ(attempt(), absl::StatusCode::kDataLoss);
  send({Chunk(first, total)}, grpc::Status::OK);
  EXPECT_EQ(attempt(), absl::StatusCode::kDataLoss);
  send({Chunk(first, total), Chunk(rest, total, 10)}, grpc::Status::OK);
  EXPECT_EQ(attempt(), absl::StatusCode::kDataLoss);
  send({Chunk(first, total), Chunk(rest + "x", total)}, grpc::Status::OK);
  EXPECT_EQ(attempt(), absl::StatusCode::kDataLoss);
  send({Chunk(first, total)},
       grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "no parameters yet"));
  EXPECT_EQ(attempt(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Read("model.safetensors"), "old");
  EXPECT_FALSE(std::filesystem::exists(root_ + "/config.json"));
  EXPECT_EQ(FileSystem::Posix()->ListFiles(root_)->size(), 1u);
}

TEST_F(AdminClientTest, WhatIsNoModelOfFp32IsNotWritten) {
  const std::string narrow =
      SafetensorsHeader(Model().tensors(), TensorDtype::kBf16, {}) + std::string(10, '\0');
  const std::string empty = SafetensorsHeader({}, TensorDtype::kF32, {});
  for (const std::string& bytes :
       {std::string("abc"), std::string(100, '\xff'), narrow, empty,
        ModelBytes() + std::string(4, '\0'), ModelBytes().substr(0, 40)}) {
    SendInParts(bytes, 9);
    EXPECT_EQ(Export().status().code(), absl::StatusCode::kDataLoss) << bytes.size();
  }
  EXPECT_TRUE(FileSystem::Posix()->ListFiles(root_)->empty());
}

TEST_F(AdminClientTest, AnExportThatStandsStillEnds) {
  service_.set_on_export(
      [](grpc::ServerContext* context, grpc::ServerWriter<v1::ExportChunk>* writer) {
        writer->Write(Chunk(ModelBytes().substr(0, 100), 500));
        while (!context->IsCancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
        return grpc::Status::CANCELLED;
      });
  const auto exported = Client(std::chrono::milliseconds(300))
                            ->Export(FileSystem::Posix(), root_ + "/model.safetensors", {});
  EXPECT_EQ(exported.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/model.safetensors"));
}

}  // namespace
}  // namespace signvote::ctl
