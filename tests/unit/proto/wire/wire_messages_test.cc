// Reads the message examples of docs/wire_format.md and holds writer, reader and generated code to
// every byte of them.

#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/checksum.h"
#include "common/payload_plan.h"
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

std::vector<std::string> Words(const std::string& list) {
  std::vector<std::string> words;
  std::istringstream in(list);
  for (std::string word; std::getline(in, word, ',');) words.push_back(word);
  return words;
}
std::vector<double> Numbers(const std::string& list) {
  std::vector<double> numbers;
  for (const std::string& word : Words(list)) numbers.push_back(std::stod(word));
  return numbers;
}

// A field that an example leaves out is absent.
void ExpectCommit(const v1::Commit& commit, const std::map<std::string, std::string>& fields) {
  const auto given = [&](const char* key) {
    const auto at = fields.find(key);
    return at == fields.end() ? 0.0 : std::stod(at->second);
  };
  const std::map<std::string, v1::Commit::Kind> kinds = {{"step", v1::Commit::KIND_STEP},
                                                         {"rewind", v1::Commit::KIND_REWIND},
                                                         {"none", v1::Commit::KIND_NONE}};
  EXPECT_EQ(commit.kind(), kinds.at(fields.at("kind")));
  EXPECT_EQ(RunId::FromBytes(commit.run_id())->ToText(), fields.at("run"));
  EXPECT_EQ(static_cast<double>(commit.round()), given("round"));
  EXPECT_EQ(commit.stepsize(), static_cast<float>(given("stepsize")));
  EXPECT_EQ(commit.rho(), static_cast<float>(given("rho")));
  EXPECT_EQ(commit.has_decay_step(), fields.contains("decay_step"));
  EXPECT_EQ(commit.decay_step(), static_cast<float>(given("decay_step")));
  EXPECT_EQ(commit.run_done(), fields.contains("run_done"));
  EXPECT_EQ(static_cast<double>(commit.data_step()), given("data_step"));
  EXPECT_EQ(static_cast<double>(commit.next_data_step()), given("next_data_step"));
  EXPECT_EQ(static_cast<double>(commit.main_round()), given("main_round"));
  EXPECT_EQ(commit.reason(), fields.contains("reason") ? fields.at("reason") : "");
  if (!fields.contains("chunks")) {
    EXPECT_EQ(commit.counted_size(), 0);
    EXPECT_EQ(commit.payload_hash(), 0u);
    return;
  }
  EXPECT_THAT(commit.counted(), testing::ElementsAreArray(Numbers(fields.at("counted"))));
  std::vector<ChunkSum> sums;
  for (const std::string& hex : Words(fields.at("chunks"))) {
    const std::string chunk = FromHex(hex);
    sums.push_back({.counted = commit.counted(static_cast<int>(sums.size())),
                    .checksum = Xxh3(chunk.data(), chunk.size())});
  }
  EXPECT_EQ(commit.payload_hash(), PayloadHash(sums));
}

TEST(WireMessagesTest, EveryExampleOfThePageIsWhatWriterReaderAndGeneratedCodeSay) {
  const std::vector<Example> examples = Examples();
  ASSERT_GE(examples.size(), 12u);
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
                               .checksum = Xxh3(payload.data(), payload.size()),
                               .plane = example.fields.contains("plane")
                                            ? static_cast<uint32_t>(number("plane"))
                                            : kPlaneReplica};
      EXPECT_EQ(payload.size(), header.count * 4);
      EXPECT_EQ(ToHex(EncodeState(kind, header, Bytes(payload), nullptr)), example.hex);
      const auto view = DecodeState(kind, given);
      ASSERT_TRUE(view.ok() && view->has_value()) << view.status();
      EXPECT_EQ((*view)->header.first, header.first);
      EXPECT_EQ((*view)->header.checksum, header.checksum);
      EXPECT_EQ((*view)->header.plane, header.plane);
    } else if (example.kind == "ready") {
      v1::WorkerMessage message;
      ASSERT_TRUE(ParseMessage(given, &message).ok());
      EXPECT_EQ(message.ready().round(), number("round"));
      EXPECT_EQ(ToHex(EncodeMessage(message)), example.hex);
    } else if (example.kind == "commit") {
      v1::ServerMessage message;
      ASSERT_TRUE(ParseMessage(given, &message).ok());
      ExpectCommit(message.commit(), example.fields);
      EXPECT_EQ(ToHex(EncodeMessage(message)), example.hex);
    } else if (example.kind == "open") {
      v1::ServerMessage message;
      ASSERT_TRUE(ParseMessage(given, &message).ok());
      const v1::RoundOpen& open = message.round_open();
      EXPECT_EQ(open.round(), number("round"));
      EXPECT_EQ(open.attempt(), number("attempt"));
      EXPECT_EQ(open.data_step(), number("data_step"));
      EXPECT_EQ(open.share(), number("share"));
      EXPECT_EQ(open.role(), v1::RoundOpen::ROLE_MEMBER);
      EXPECT_THAT(open.wanted(), testing::ElementsAreArray(Numbers(example.fields.at("wanted"))));
      EXPECT_EQ(open.members(), number("members"));
      EXPECT_EQ(open.deadline_ms(), number("deadline_ms"));
      EXPECT_EQ(ToHex(EncodeMessage(message)), example.hex);
    } else if (example.kind == "scalars") {
      v1::WorkerMessage message;
      ASSERT_TRUE(ParseMessage(given, &message).ok());
      const v1::Scalars& scalars = message.scalars();
      EXPECT_EQ(scalars.round(), number("round"));
      EXPECT_EQ(scalars.loss(), std::stod(example.fields.at("loss")));
      EXPECT_EQ(scalars.g_l1(), std::stod(example.fields.at("g_l1")));
      EXPECT_EQ(scalars.g_l2_squared(), std::stod(example.fields.at("g_l2_squared")));
      EXPECT_THAT(scalars.wanted(),
                  testing::ElementsAreArray(Numbers(example.fields.at("wanted"))));
      EXPECT_EQ(scalars.samples(), number("samples"));
      EXPECT_EQ(ToHex(EncodeMessage(message)), example.hex);
    } else {
      ADD_FAILURE() << "unknown kind of example";
    }
  }
  for (const char* kind :
       {"ballot", "verdict", "state", "upload", "ready", "commit", "open", "scalars"}) {
    EXPECT_GE(kinds[kind], 1) << kind;
  }
}

}  // namespace
}  // namespace signvote::wire
