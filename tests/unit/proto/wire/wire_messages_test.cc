// Reads the message examples of docs/wire_format.md and holds writer, reader and generated code to
// every byte of them.

#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "common/checksum.h"
#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"

namespace signvote::wire {
namespace {

std::string FromHex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    out.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return out;
}

std::string ToHex(const grpc::ByteBuffer& buffer) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string out;
  for (const grpc::Slice& slice : slices) {
    for (const uint8_t byte : slice) {
      out.push_back(kDigits[byte >> 4]);
      out.push_back(kDigits[byte & 15]);
    }
  }
  return out;
}

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

struct Example {
  std::string kind;
  std::map<std::string, std::string> fields;
  std::string hex;
};

std::vector<Example> Examples() {
  std::ifstream page(SIGNVOTE_SOURCE_DIR "/docs/wire_format.md");
  std::vector<Example> out;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.rfind("```", 0) == 0) {
      inside = line == "```messages";
      continue;
    }
    if (!inside) continue;
    const size_t equals = line.find(" = ");
    EXPECT_NE(equals, std::string::npos) << line;
    Example example;
    example.hex = line.substr(equals + 3);
    std::istringstream words(line.substr(0, equals));
    words >> example.kind;
    for (std::string word; words >> word;) {
      const size_t at = word.find('=');
      example.fields[word.substr(0, at)] = word.substr(at + 1);
    }
    out.push_back(std::move(example));
  }
  return out;
}

std::span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST(WireMessagesTest, EveryExampleOfThePageIsWhatWriterReaderAndGeneratedCodeSay) {
  const std::vector<Example> examples = Examples();
  ASSERT_GE(examples.size(), 5u);
  std::map<std::string, int> kinds;
  for (Example example : examples) {
    SCOPED_TRACE(example.kind + " = " + example.hex);
    ++kinds[example.kind];
    const auto number = [&](const char* key) { return std::stoull(example.fields.at(key)); };
    const grpc::ByteBuffer given = ToBuffer(FromHex(example.hex));
    if (example.kind == "ballot" || example.kind == "verdict") {
      const BulkKind kind =
          example.kind == "ballot" ? BulkKind::kBallotChunk : BulkKind::kVerdictChunk;
      const std::string payload = FromHex(example.fields.at("payload"));
      const VoteHeader header{.run_id = *RunId::FromText(example.fields.at("run")),
                              .epoch = Epoch(number("epoch")),
                              .round = Round(number("round")),
                              .attempt = Attempt(static_cast<uint32_t>(number("attempt"))),
                              .chunk = ChunkIndex(static_cast<uint32_t>(number("chunk"))),
                              .checksum = Xxh3(payload.data(), payload.size())};
      EXPECT_EQ(ToHex(EncodeVote(kind, header, Bytes(payload), nullptr)), example.hex);
      const auto view = DecodeVote(kind, given);
      ASSERT_TRUE(view.ok() && view->has_value()) << view.status();
      EXPECT_EQ((*view)->header.run_id, header.run_id);
      EXPECT_EQ((*view)->header.round, header.round);
      EXPECT_EQ((*view)->header.attempt, header.attempt);
      EXPECT_EQ((*view)->header.chunk, header.chunk);
      EXPECT_EQ((*view)->header.checksum, header.checksum);
      v1::WorkerMessage up;
      ASSERT_TRUE(ParseMessage(given, &up).ok());
      EXPECT_EQ(up.ballot_chunk().payload(), payload);
      EXPECT_EQ(up.ballot_chunk().round(), header.round.value());
    } else if (example.kind == "state" || example.kind == "upload") {
      const BulkKind kind =
          example.kind == "state" ? BulkKind::kStateChunk : BulkKind::kUploadChunk;
      const std::string payload = FromHex(example.fields.at("payload"));
      const StateHeader header{.round = Round(number("round")),
                               .first = number("first"),
                               .count = number("count"),
                               .checksum = Xxh3(payload.data(), payload.size())};
      EXPECT_EQ(payload.size(), header.count * 4);
      EXPECT_EQ(ToHex(EncodeState(kind, header, Bytes(payload), nullptr)), example.hex);
      const auto view = DecodeState(kind, given);
      ASSERT_TRUE(view.ok() && view->has_value()) << view.status();
      EXPECT_EQ((*view)->header.first, header.first);
      EXPECT_EQ((*view)->header.checksum, header.checksum);
    } else if (example.kind == "ready") {
      v1::WorkerMessage message;
      ASSERT_TRUE(ParseMessage(given, &message).ok());
      EXPECT_EQ(message.ready().round(), number("round"));
      EXPECT_EQ(ToHex(EncodeMessage(message)), example.hex);
    } else if (example.kind == "commit") {
      v1::ServerMessage message;
      ASSERT_TRUE(ParseMessage(given, &message).ok());
      const v1::Commit& commit = message.commit();
      EXPECT_EQ(RunId::FromBytes(commit.run_id())->ToText(), example.fields.at("run"));
      EXPECT_EQ(commit.round(), number("round"));
      EXPECT_EQ(commit.kind(), v1::Commit::KIND_STEP);
      EXPECT_EQ(commit.stepsize(), std::stof(example.fields.at("stepsize")));
      EXPECT_EQ(commit.rho(), 1.0f);
      EXPECT_EQ(commit.counted_size(), 2);
      const std::string verdict = FromHex(example.fields.at("verdict"));
      EXPECT_EQ(commit.verdict_hash(), Xxh3(verdict.data(), verdict.size()));
      EXPECT_EQ(ToHex(EncodeMessage(message)), example.hex);
    } else {
      ADD_FAILURE() << "unknown kind of example";
    }
  }
  for (const char* kind : {"ballot", "verdict", "state", "upload", "ready", "commit"}) {
    EXPECT_GE(kinds[kind], 1) << kind;
  }
}

}  // namespace
}  // namespace signvote::wire
