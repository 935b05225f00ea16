// A client that breaks the rules on purpose: it speaks the protocol by hand, without
// worker/session, and prints what the server answered as one last line of standard output:
//
//   STATUS <CODE_NAME> <message>          the status that ended the call under test
//
// Exit status: 0 when the scenario got as far as that line, 1 otherwise.

#include <grpcpp/create_channel.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/support/sync_stream.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "common/layout.h"
#include "common/status.h"
#include "ctl/certs.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.grpc.pb.h"

namespace signvote {
namespace {

struct Flags {
  std::string scenario, server, name = "raw", token_file, tensor = "x";
  std::string tls_ca, tls_certificate, tls_key, target_name;
  bool insecure = false;
  uint64_t coordinates = 100'000;
  uint64_t bytes = 1 << 20;
  uint32_t version = wire::kProtocolVersion;
  uint64_t rounds = 3;
  double timeout_seconds = 20;
  std::string config_json, identity_text;
  std::string certs_directory, worker;
  int64_t certs_now = 0;
};

using Stream = grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

std::string ReadText(const std::string& path) {
  const auto text = FileSystem::Posix()->ReadFile(path, 1 << 20);
  return text.ok() ? *text : "";
}

class RawClient {
 public:
  explicit RawClient(const Flags& flags) : flags_(flags) {
    std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
    if (!flags.insecure) {
      // Not LoadTls(): it would refuse what the server is to be tested with.
      grpc::SslCredentialsOptions options;
      options.pem_root_certs = ReadText(flags.tls_ca);
      options.pem_cert_chain = ReadText(flags.tls_certificate);
      options.pem_private_key = ReadText(flags.tls_key);
      credentials = grpc::SslCredentials(options);
    }
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    if (!flags.target_name.empty()) arguments.SetSslTargetNameOverride(flags.target_name);
    channel_ = grpc::CreateCustomChannel(flags.server, credentials, arguments);
  }

  void Arm(grpc::ClientContext* context) const {
    context->set_deadline(
        std::chrono::system_clock::now() +
        std::chrono::milliseconds(static_cast<int64_t>(1e3 * flags_.timeout_seconds)));
  }
  std::unique_ptr<Stream> Open(grpc::ClientContext* context) {
    Arm(context);
    const grpc::internal::RpcMethod method("/signvote.v1.Training/Session",
                                           grpc::internal::RpcMethod::BIDI_STREAMING, channel_);
    return std::unique_ptr<Stream>(
        grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
            channel_.get(), method, context));
  }
  // One unary call with bytes in and bytes out.
  grpc::Status Unary(const char* path, const std::string& request, std::string* reply) {
    grpc::ClientContext context;
    Arm(&context);
    const grpc::internal::RpcMethod method(path, grpc::internal::RpcMethod::NORMAL_RPC, channel_);
    const grpc::Slice slice(request);
    const grpc::ByteBuffer in(&slice, 1);
    grpc::ByteBuffer out;
    const grpc::Status status =
        grpc::internal::BlockingUnaryCallImpl<grpc::ByteBuffer, grpc::ByteBuffer>(
            channel_.get(), method, &context, in, &out)
            .status();
    if (status.ok()) *reply = Text(out);
    return status;
  }
  static std::string Text(const grpc::ByteBuffer& buffer) {
    std::vector<grpc::Slice> slices;
    std::string text;
    if (!buffer.Dump(&slices).ok()) return text;
    for (const grpc::Slice& slice : slices) {
      text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    return text;
  }

  v1::WorkerMessage Join() const {
    v1::WorkerMessage message;
    v1::Join* join = message.mutable_join();
    join->set_protocol_min(flags_.version);
    join->set_protocol_max(flags_.version);
    join->set_software_version("raw");
    join->set_name(flags_.name);
    std::string token = ReadText(flags_.token_file);
    while (!token.empty() && token.back() == '\n') token.pop_back();
    join->set_token(token);
    v1::TensorShape* tensor = join->add_tensors();
    tensor->set_name(flags_.tensor);
    tensor->add_shape(flags_.coordinates);
    join->set_model_config_json(flags_.config_json);
    join->set_identity_text(flags_.identity_text);
    return message;
  }

  static bool Send(Stream* stream, const google::protobuf::MessageLite& message) {
    return stream->Write(wire::EncodeMessage(message));
  }

  // Reads up to a message that `want` is true for, answering pings on the way. False: the stream
  // ended.
  template <typename Want>
  bool ReadUntil(Stream* stream, v1::ServerMessage* message, Want want) {
    grpc::ByteBuffer buffer;
    while (stream->Read(&buffer)) {
      if (!message->ParseFromString(Text(buffer))) return false;
      if (message->has_ping()) {
        v1::WorkerMessage pong;
        pong.mutable_pong()->set_nonce(message->ping().nonce());
        Send(stream, pong);
      }
      if (want(*message)) return true;
    }
    return false;
  }

  // Joins, up to the Welcome. False: the stream ended before.
  bool BeWelcomed(Stream* stream, v1::ServerMessage* welcome) {
    return Send(stream, Join()) &&
           ReadUntil(stream, welcome, [](const v1::ServerMessage& m) { return m.has_welcome(); });
  }

  // Joins up to the point where a round may be opened for this worker. False: the stream ended
  // first.
  bool BecomeReady(Stream* stream) {
    v1::ServerMessage message;
    if (!BeWelcomed(stream, &message)) {
      return false;
    }
    welcome_ = message.welcome();
    uint64_t round = 0;
    if (welcome_.state() == v1::Welcome::STATE_FETCH) {
      const auto stub = v1::Training::NewStub(channel_);
      grpc::ClientContext context;
      Arm(&context);
      v1::FetchStateRequest request;
      request.set_ticket(welcome_.ticket());
      const auto reader = stub->FetchState(&context, request);
      v1::StateChunk chunk;
      bool first = true;
      while (reader->Read(&chunk)) {
        if (chunk.plane() != wire::kPlaneReplica) continue;  // x0 stands at round 0 for ever
        round = first ? chunk.round() : std::min(round, chunk.round());
        first = false;
      }
      if (const grpc::Status status = reader->Finish(); !status.ok()) {
        std::fprintf(stderr, "FetchState: %s\n", status.error_message().c_str());
        return false;
      }
    } else if (welcome_.state() == v1::Welcome::STATE_UPLOAD && !Upload(flags_.coordinates).ok()) {
      return false;
    }
    v1::WorkerMessage ready;
    ready.mutable_ready()->set_round(round);
    return Send(stream, ready);
  }

  grpc::Status Upload(uint64_t coordinates) {
    const auto stub = v1::Training::NewStub(channel_);
    grpc::ClientContext context;
    Arm(&context);
    v1::UploadStateReply reply;
    const auto writer = stub->UploadState(&context, &reply);
    v1::UploadStateRequest request;
    request.set_ticket(welcome_.ticket());
    writer->Write(request);
    for (uint64_t first = 0; first < coordinates; first += wire::kStateChunkCoordinates) {
      const uint64_t count = std::min(wire::kStateChunkCoordinates, coordinates - first);
      const std::string payload(count * sizeof(float), '\0');
      v1::StateChunk* chunk = request.mutable_chunk();
      chunk->set_first(first);
      chunk->set_count(count);
      chunk->set_checksum(Xxh3(payload.data(), payload.size()));
      chunk->set_payload(payload);
      if (!writer->Write(request)) break;
    }
    writer->WritesDone();
    return writer->Finish();
  }

  // Waits for the next round that opens.
  bool NextRound(Stream* stream) {
    v1::ServerMessage message;
    if (!ReadUntil(stream, &message, [](const v1::ServerMessage& m) { return m.has_round_open(); }))
      return false;
    open_ = message.round_open();
    return true;
  }

  ChunkPlan Plan() const { return ChunkPlan(flags_.coordinates, welcome_.chunk_coordinates()); }

  // A correct chunk of a ballot that says +1 everywhere.
  v1::WorkerMessage Chunk(uint32_t k) const {
    const ChunkPlan plan = Plan();
    std::string bits(plan.Bytes(ChunkIndex(k)), '\xff');
    if (const uint64_t rest = plan.Count(ChunkIndex(k)) % 8; rest != 0)
      bits.back() = static_cast<char>((1u << rest) - 1);
    v1::WorkerMessage message;
    v1::BallotChunk* chunk = message.mutable_ballot_chunk();
    chunk->set_run_id(welcome_.run_id());
    chunk->set_epoch(welcome_.epoch());
    chunk->set_round(open_.round());
    chunk->set_attempt(open_.attempt());
    chunk->set_chunk(k);
    chunk->set_payload(bits);
    chunk->set_checksum(Xxh3(bits.data(), bits.size()));
    return message;
  }
  v1::WorkerMessage Scalars() const {
    v1::WorkerMessage message;
    v1::Scalars* scalars = message.mutable_scalars();
    scalars->set_round(open_.round());
    scalars->set_attempt(open_.attempt());
    scalars->set_loss(1);
    scalars->set_g_l1(1);
    scalars->set_g_l2_squared(1);
    scalars->set_samples(1);
    return message;
  }
  // The rest of the stream is of no interest; the status that ends it is.
  grpc::Status Drain(Stream* stream) {
    v1::ServerMessage message;
    ReadUntil(stream, &message, [](const v1::ServerMessage&) { return false; });
    return stream->Finish();
  }

  const v1::Welcome& welcome() const { return welcome_; }
  const v1::RoundOpen& open() const { return open_; }
  const Flags& flags() const { return flags_; }
  std::shared_ptr<grpc::Channel> channel() const { return channel_; }

 private:
  const Flags flags_;
  std::shared_ptr<grpc::Channel> channel_;
  v1::Welcome welcome_;
  v1::RoundOpen open_;
};

using Scenario = grpc::Status (*)(RawClient*);

// Joins and returns the status that ends the stream (after `rounds` votes and a Leave, when all is
// well).
grpc::Status Vote(RawClient* client) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  if (!client->BecomeReady(stream.get())) return stream->Finish();
  for (uint64_t voted = 0; voted < client->flags().rounds && client->NextRound(stream.get());
       ++voted) {
    for (uint32_t k = 0; k < client->Plan().chunks(); ++k)
      client->Send(stream.get(), client->Chunk(k));
    client->Send(stream.get(), client->Scalars());
  }
  v1::WorkerMessage leave;
  leave.mutable_leave()->set_reason("voted enough");
  client->Send(stream.get(), leave);
  return client->Drain(stream.get());
}

// Every chunk three times, and the last round's once more; then as usual. The server counts, and
// goes on.
grpc::Status Replay(RawClient* client) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  if (!client->BecomeReady(stream.get())) return stream->Finish();
  std::vector<v1::WorkerMessage> last;
  for (uint64_t voted = 0; voted < client->flags().rounds && client->NextRound(stream.get());
       ++voted) {
    for (const v1::WorkerMessage& message : last) client->Send(stream.get(), message);
    last.clear();
    for (uint32_t k = 0; k < client->Plan().chunks(); ++k) {
      last.push_back(client->Chunk(k));
      for (int copy = 0; copy < 3; ++copy) client->Send(stream.get(), last.back());
    }
    client->Send(stream.get(), client->Scalars());
  }
  v1::WorkerMessage leave;
  leave.mutable_leave()->set_reason("replayed enough");
  client->Send(stream.get(), leave);
  return client->Drain(stream.get());
}

// Becomes a member, then sends one message that `damage` made of a correct chunk 0.
template <typename Damage>
grpc::Status SendDamaged(RawClient* client, Damage damage) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  if (!client->BecomeReady(stream.get()) || !client->NextRound(stream.get()))
    return stream->Finish();
  v1::WorkerMessage message = client->Chunk(0);
  damage(client, message.mutable_ballot_chunk());
  client->Send(stream.get(), message);
  return client->Drain(stream.get());
}

void Reseal(v1::BallotChunk* chunk) {
  chunk->set_checksum(Xxh3(chunk->payload().data(), chunk->payload().size()));
}

grpc::Status BadChecksum(RawClient* client) {
  return SendDamaged(
      client, [](RawClient*, v1::BallotChunk* chunk) { (*chunk->mutable_payload())[0] ^= 1; });
}
grpc::Status BadLength(RawClient* client) {
  return SendDamaged(client, [](RawClient*, v1::BallotChunk* chunk) {
    chunk->mutable_payload()->pop_back();
    Reseal(chunk);
  });
}
grpc::Status BadIndex(RawClient* client) {
  return SendDamaged(
      client, [](RawClient* c, v1::BallotChunk* chunk) { chunk->set_chunk(c->Plan().chunks()); });
}
grpc::Status BadRun(RawClient* client) {
  return SendDamaged(
      client, [](RawClient*, v1::BallotChunk* chunk) { (*chunk->mutable_run_id())[0] ^= 1; });
}
grpc::Status FutureRound(RawClient* client) {
  return SendDamaged(
      client, [](RawClient*, v1::BallotChunk* chunk) { chunk->set_round(chunk->round() + 1000); });
}
// REQUIRES: a number of coordinates that is not a multiple of 8, in one chunk.
grpc::Status BadPadding(RawClient* client) {
  return SendDamaged(client, [](RawClient*, v1::BallotChunk* chunk) {
    chunk->mutable_payload()->back() = '\xff';
    Reseal(chunk);
  });
}
grpc::Status Oversized(RawClient* client) {
  return SendDamaged(client, [](RawClient* c, v1::BallotChunk* chunk) {
    chunk->set_payload(std::string(c->flags().bytes, '\xff'));
    Reseal(chunk);
  });
}

// A message that ends in the middle of a chunk's payload.
grpc::Status Truncated(RawClient* client) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  if (!client->BecomeReady(stream.get()) || !client->NextRound(stream.get()))
    return stream->Finish();
  const std::string whole = client->Chunk(0).SerializeAsString();
  const grpc::Slice half(whole.substr(0, whole.size() / 2));
  stream->Write(grpc::ByteBuffer(&half, 1));
  return client->Drain(stream.get());
}

// Half a ballot, then the stream is cut without a word. The status is the client's own.
grpc::Status Cut(RawClient* client) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  if (!client->BecomeReady(stream.get()) || !client->NextRound(stream.get()))
    return stream->Finish();
  client->Send(stream.get(), client->Chunk(0));
  context.TryCancel();
  return stream->Finish();
}

// Half the initial parameters. REQUIRES: to be the first worker of a fresh run.
grpc::Status ShortUpload(RawClient* client) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  v1::ServerMessage message;
  if (!client->BeWelcomed(stream.get(), &message)) {
    return stream->Finish();
  }
  if (message.welcome().state() != v1::Welcome::STATE_UPLOAD)
    return {grpc::StatusCode::UNKNOWN, "not the uploader"};
  const auto stub = v1::Training::NewStub(client->channel());
  grpc::ClientContext upload_context;
  client->Arm(&upload_context);
  v1::UploadStateReply reply;
  const auto writer = stub->UploadState(&upload_context, &reply);
  v1::UploadStateRequest request;
  request.set_ticket(message.welcome().ticket());
  writer->Write(request);
  const uint64_t count = std::min(wire::kStateChunkCoordinates, client->flags().coordinates / 2);
  const std::string payload(count * sizeof(float), '\0');
  v1::StateChunk* chunk = request.mutable_chunk();
  chunk->set_count(count);
  chunk->set_checksum(Xxh3(payload.data(), payload.size()));
  chunk->set_payload(payload);
  writer->Write(request);
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  context.TryCancel();
  (void)stream->Finish();  // ours: cancelled
  return status;
}

grpc::Status FetchWithoutTicket(RawClient* client) {
  const auto stub = v1::Training::NewStub(client->channel());
  grpc::ClientContext context;
  client->Arm(&context);
  v1::FetchStateRequest request;
  request.set_ticket(std::string(wire::kTicketBytes, '\x5a'));
  const auto reader = stub->FetchState(&context, request);
  v1::StateChunk chunk;
  while (reader->Read(&chunk))
    std::printf("got %llu coordinates\n", static_cast<unsigned long long>(chunk.count()));
  return reader->Finish();
}

// Two sessions of one name. The first answers pings (`answer`) or is deaf; the second one's status
// is returned. A second session that is let in leaves at once (OK).
grpc::Status TwoSessions(RawClient* client, bool answer) {
  grpc::ClientContext first_context;
  const auto first = client->Open(&first_context);
  v1::ServerMessage message;
  if (!client->BeWelcomed(first.get(), &message)) {
    return first->Finish();
  }
  std::thread reader;
  if (answer) {
    reader = std::thread([&] {
      v1::ServerMessage ignored;
      client->ReadUntil(first.get(), &ignored, [](const v1::ServerMessage&) { return false; });
    });
  }
  grpc::Status status;
  {
    grpc::ClientContext second_context;
    const auto second = client->Open(&second_context);
    v1::ServerMessage ignored;
    if (client->BeWelcomed(second.get(), &ignored)) {
      v1::WorkerMessage leave;
      leave.mutable_leave()->set_reason("let in");
      client->Send(second.get(), leave);
    }
    status = client->Drain(second.get());
  }
  first_context.TryCancel();
  if (reader.joinable()) reader.join();
  (void)first->Finish();  // ours: cancelled
  return status;
}
grpc::Status SecondSession(RawClient* client) { return TwoSessions(client, true); }
grpc::Status Takeover(RawClient* client) { return TwoSessions(client, false); }

// Joins, begins to fetch the state, reads one chunk of it and leaves, --rounds times over one
// connection; no fetch is read on or given up. Prints one line per repetition.
grpc::Status LeaveWhileFetching(RawClient* client) {
  struct Fetch {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::StateChunk>> reader;
  };
  const auto stub = v1::Training::NewStub(client->channel());
  std::vector<std::unique_ptr<Fetch>> fetches;
  grpc::Status status;
  for (uint64_t repetition = 0; repetition < client->flags().rounds && status.ok(); ++repetition) {
    grpc::ClientContext context;
    const auto stream = client->Open(&context);
    v1::ServerMessage message;
    if (!client->BeWelcomed(stream.get(), &message)) {
      status = stream->Finish();
      break;
    }
    Fetch& fetch = *fetches.emplace_back(std::make_unique<Fetch>());
    v1::FetchStateRequest request;
    request.set_ticket(message.welcome().ticket());
    fetch.reader = stub->FetchState(&fetch.context, request);
    v1::StateChunk chunk;
    const bool got = fetch.reader->Read(&chunk);
    v1::WorkerMessage leave;
    leave.mutable_leave()->set_reason("seen enough");
    client->Send(stream.get(), leave);
    status = client->Drain(stream.get());
    std::printf("LEFT %llu %s\n", static_cast<unsigned long long>(repetition),
                got ? "with a fetch under way" : "without a chunk");
    std::fflush(stdout);
  }
  for (const std::unique_ptr<Fetch>& fetch : fetches) {
    fetch->context.TryCancel();
    (void)fetch->reader->Finish();  // ours: cancelled, unless the server ended it with the session
  }
  return status;
}

// Joins and begins to fetch the state, of which it reads the first chunk and no more, until the server
// ends the session. Prints a line once the chunk is there.
grpc::Status HoldFetch(RawClient* client) {
  grpc::ClientContext context, fetching;
  const auto stream = client->Open(&context);
  v1::ServerMessage message;
  if (!client->BeWelcomed(stream.get(), &message)) {
    return stream->Finish();
  }
  const auto stub = v1::Training::NewStub(client->channel());
  v1::FetchStateRequest request;
  request.set_ticket(message.welcome().ticket());
  const auto reader = stub->FetchState(&fetching, request);
  v1::StateChunk chunk;
  std::printf(reader->Read(&chunk) ? "HOLDS a fetch\n" : "NO fetch\n");
  std::fflush(stdout);
  const grpc::Status status = client->Drain(stream.get());
  fetching.TryCancel();
  (void)reader->Finish();  // ours: cancelled, unless the server ended it with the session
  return status;
}

// Ready again and again, --rounds times, instead of once.
grpc::Status ReadyLoop(RawClient* client) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  if (!client->BecomeReady(stream.get())) return stream->Finish();
  v1::WorkerMessage ready;
  ready.mutable_ready()->set_round(0);
  for (uint64_t i = 0; i < client->flags().rounds; ++i) {
    if (!client->Send(stream.get(), ready)) break;
  }
  return client->Drain(stream.get());
}

// Votes as is right, and says that computing and applying took as long as 64 bits can say.
grpc::Status HugeTimes(RawClient* client) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  if (!client->BecomeReady(stream.get())) return stream->Finish();
  for (uint64_t voted = 0; voted < client->flags().rounds && client->NextRound(stream.get());
       ++voted) {
    for (uint32_t k = 0; k < client->Plan().chunks(); ++k)
      client->Send(stream.get(), client->Chunk(k));
    v1::WorkerMessage scalars = client->Scalars();
    scalars.mutable_scalars()->set_compute_us(~uint64_t{0});
    scalars.mutable_scalars()->set_apply_us(~uint64_t{0});
    client->Send(stream.get(), scalars);
  }
  v1::WorkerMessage leave;
  leave.mutable_leave()->set_reason("lied enough");
  client->Send(stream.get(), leave);
  return client->Drain(stream.get());
}

grpc::Status NoJoin(RawClient* client) {
  grpc::ClientContext context;
  const auto stream = client->Open(&context);
  v1::WorkerMessage ready;
  ready.mutable_ready()->set_round(0);
  client->Send(stream.get(), ready);
  return client->Drain(stream.get());
}

// grpc.health.v1.Health/Check of the whole server: field 1 = SERVING (1).
grpc::Status Health(RawClient* client) {
  std::string reply;
  const grpc::Status status = client->Unary("/grpc.health.v1.Health/Check", "", &reply);
  if (status.ok())
    std::printf("HEALTH %s\n", reply == std::string("\x08\x01") ? "SERVING" : "NOT_SERVING");
  return status;
}

// grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo, list_services = "": prints the
// reply's bytes that are text; the services' names are among them.
grpc::Status Reflection(RawClient* client) {
  grpc::ClientContext context;
  client->Arm(&context);
  const grpc::internal::RpcMethod method(
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      grpc::internal::RpcMethod::BIDI_STREAMING, client->channel());
  const std::unique_ptr<Stream> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          client->channel().get(), method, &context));
  const grpc::Slice list_services(std::string("\x3a\x00", 2));
  stream->Write(grpc::ByteBuffer(&list_services, 1));
  stream->WritesDone();
  grpc::ByteBuffer buffer;
  while (stream->Read(&buffer)) {
    std::string text = RawClient::Text(buffer);
    for (char& c : text) c = c >= ' ' && c <= '~' ? c : ' ';
    std::printf("SERVICES %s\n", text.c_str());
  }
  return stream->Finish();
}

const std::map<std::string, Scenario> kScenarios = {
    {"vote", Vote},
    {"replay", Replay},
    {"bad-checksum", BadChecksum},
    {"bad-length", BadLength},
    {"bad-index", BadIndex},
    {"bad-run", BadRun},
    {"bad-padding", BadPadding},
    {"future-round", FutureRound},
    {"oversized", Oversized},
    {"truncated", Truncated},
    {"cut", Cut},
    {"short-upload", ShortUpload},
    {"fetch-without-ticket", FetchWithoutTicket},
    {"second-session", SecondSession},
    {"takeover", Takeover},
    {"leave-while-fetching", LeaveWhileFetching},
    {"hold-fetch", HoldFetch},
    {"ready-loop", ReadyLoop},
    {"huge-times", HugeTimes},
    {"no-join", NoJoin},
    {"health", Health},
    {"reflection", Reflection},
};

// Certificates of another time, which `signvote certs` does not make: for tests of expiry.
int MakeDatedCerts(const Flags& flags) {
  const auto report = ctl::MakeCerts(FileSystem::Posix(), {.directory = flags.certs_directory,
                                                           .server_names = {},
                                                           .workers = {flags.worker},
                                                           .days = 1,
                                                           .now_unix_seconds = flags.certs_now});
  if (!report.ok()) std::fprintf(stderr, "%s\n", Describe(report.status()).c_str());
  return report.ok() ? 0 : 1;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Breaks the protocol's rules, one scenario at a time.", "raw_client");
  app.add_option("--scenario", flags.scenario);
  app.add_option("--server", flags.server);
  app.add_option("--name", flags.name);
  app.add_option("--token-file", flags.token_file);
  app.add_option("--tls-ca", flags.tls_ca);
  app.add_option("--tls-certificate", flags.tls_certificate);
  app.add_option("--tls-key", flags.tls_key);
  app.add_flag("--insecure", flags.insecure);
  app.add_option("--coordinates", flags.coordinates);
  app.add_option("--tensor", flags.tensor);
  app.add_option("--config", flags.config_json, "text of the Join's config.json");
  app.add_option("--identity-text", flags.identity_text);
  app.add_option("--bytes", flags.bytes, "payload of an oversized chunk");
  app.add_option("--protocol", flags.version, "protocol version to offer");
  app.add_option("--rounds", flags.rounds, "rounds to vote in before leaving, or repetitions");
  app.add_option("--timeout", flags.timeout_seconds, "seconds, of each call");
  app.add_option("--make-certs", flags.certs_directory, "make certificates in this folder instead");
  app.add_option("--certs-now", flags.certs_now,
                 "Unix seconds at which they are made; valid for one day");
  app.add_option("--worker", flags.worker, "worker to make them for");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (!flags.certs_directory.empty()) return MakeDatedCerts(flags);
  const auto scenario = kScenarios.find(flags.scenario);
  if (scenario == kScenarios.end()) {
    std::fprintf(stderr, "no scenario named \"%s\"\n", flags.scenario.c_str());
    return 2;
  }
  RawClient client(flags);
  const absl::Status status = wire::FromGrpc(scenario->second(&client));
  std::printf("STATUS %s %s\n", absl::StatusCodeToString(status.code()).c_str(),
              std::string(status.message()).c_str());
  return 0;
}

}  // namespace
}  // namespace signvote

int main(int argc, char** argv) { return signvote::Main(argc, argv); }
