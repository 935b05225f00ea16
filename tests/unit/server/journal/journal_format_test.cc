// Goal:   the bytes of a segment are those of docs/journal_format.md, and what stands in a segment is
//         read as its damage table says.
#include "server/journal/journal_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/checksum.h"
#include "common/status.h"
#include "server/journal/segment_reader.h"
#include "server/journal/segment_writer.h"
#include "signvote/v1/journal.pb.h"
#include "tests/sim/sim_disk.h"
#include "tests/support/page_vectors.h"

namespace signvote::journal {
namespace {

using ::testing::HasSubstr;

std::string ToHex(const std::string& bytes) {
  static const char* digits = "0123456789abcdef";
  std::string out;
  for (const char c : bytes) {
    out += digits[static_cast<uint8_t>(c) >> 4];
    out += digits[static_cast<uint8_t>(c) & 15];
  }
  return out;
}

std::string FromHex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return out;
}

template <typename T>
std::string BytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

std::span<const std::byte> Span(const std::string& bytes) {
  return std::as_bytes(std::span(bytes.data(), bytes.size()));
}

RecordType TypeOf(const std::string& word) {
  for (uint8_t type = 1; type <= 6; ++type)
    if (Words(static_cast<RecordType>(type)) == word) return static_cast<RecordType>(type);
  ADD_FAILURE() << word;
  return RecordType::kHead;
}

TEST(JournalFormatTest, ThePagesExamplesAreItsBytes) {
  const auto vectors = PageVectors(SIGNVOTE_SOURCE_DIR "/docs/journal_format.md");
  std::string segment;
  uint64_t seed = 0;
  int records = 0;
  for (const PageVector& v : vectors) {
    if (v.kind == "segment") {
      const RunId run = *RunId::FromText(v.arguments.at("run"));
      seed = SegmentSeed(run, v.number("sequence"));
      segment =
          BytesOf(MakeSegmentHeader(run, v.number("sequence"), Epoch(v.number("epoch")),
                                    Round(v.number("first_round")), v.number("previous_end")));
      EXPECT_EQ(ToHex(segment), v.result) << v.line;
    } else if (v.kind == "record") {
      const std::string payload = FromHex(v.arguments.at("payload"));
      std::string bytes = BytesOf(
          MakeRecordHeader(TypeOf(v.arguments.at("type")), v.number("round"), v.number("synced"),
                           payload.size(), Xxh3(Span(payload), seed), seed));
      bytes += payload;
      bytes.resize(Aligned(bytes.size()));
      EXPECT_EQ(ToHex(bytes), v.result) << v.line;
      segment += bytes;
      ++records;
    }
  }
  ASSERT_GE(records, 2);
  // And what they make together is a segment.
  auto reader = SegmentReader::Open("example", Span(segment), std::nullopt);
  ASSERT_TRUE(reader.ok()) << Describe(reader.status());
  for (int i = 0; i < records; ++i) {
    const auto record = reader->Next();
    ASSERT_TRUE(record.ok() && record->has_value());
    if ((*record)->type == RecordType::kName) {
      v1::JournalName name;
      ASSERT_TRUE(name.ParseFromArray((*record)->payload.data(),
                                      static_cast<int>((*record)->payload.size())));
      EXPECT_EQ(name.name().name(), "w0");
      EXPECT_EQ(name.next_worker_id(), 1u);
    }
  }
  EXPECT_FALSE((*reader->Next()).has_value());
  EXPECT_EQ(reader->end().offset, segment.size());
}

TEST(JournalFormatTest, NamesAreReadAsTheyAreWritten) {
  EXPECT_EQ(SegmentOf(SegmentName(17)), 17u);
  EXPECT_EQ(SpareOf(SpareName(3)), 3u);
  EXPECT_EQ(SnapshotStateOf(SnapshotStateName(Round(128))), Round(128));
  EXPECT_EQ(SnapshotOf(SnapshotX0Name(Round(128)) + ".new"), Round(128));
  EXPECT_EQ(SegmentOf("segment-17.journal"), std::nullopt);
  EXPECT_EQ(SegmentOf(SegmentName(17) + ".cut"), std::nullopt);
  EXPECT_EQ(SnapshotStateOf(SnapshotXName(Round(1))), std::nullopt);
}

// A segment of some records, of which the first `synced` were synced one by one and the rest was not.
class SegmentTest : public ::testing::Test {
 protected:
  static constexpr int kRecords = 6;

  std::string Write(int synced) {
    sim::SimDisk disk(1);
    const RunId run = RunId::FromRandom(1, 2);
    auto writer = SegmentWriter::Start(*disk.Create("s", 4096),
                                       MakeSegmentHeader(run, 1, Epoch(1), Round(0), 0));
    offsets_.clear();
    for (int i = 0; i < kRecords; ++i) {
      offsets_.push_back((*writer)->bytes());
      EXPECT_TRUE((*writer)
                      ->Append(RecordType::kName, Round(static_cast<uint64_t>(i)),
                               std::string(static_cast<size_t>(30 + 11 * i), 'x'))
                      .ok());
      if (i < synced) {
        EXPECT_TRUE((*writer)->Sync().ok());
      }
    }
    offsets_.push_back((*writer)->bytes());
    return disk.Bytes("s");
  }

  struct Outcome {
    absl::Status status;
    int records = 0;
    SegmentReader::End end;
  };
  static Outcome Read(const std::string& bytes, std::optional<uint64_t> end = std::nullopt) {
    Outcome out;
    auto reader = SegmentReader::Open("s", Span(bytes), end);
    if (!reader.ok()) {
      out.status = reader.status();
      return out;
    }
    while (true) {
      const auto record = reader->Next();
      out.status = record.status();
      if (!record.ok() || !record->has_value()) break;
      ++out.records;
    }
    out.end = reader->end();
    return out;
  }

  std::vector<uint64_t> offsets_;
};

TEST_F(SegmentTest, ZerosAndRecordsOfAnotherSegmentAreTheEnd) {
  std::string bytes = Write(kRecords);
  Outcome read = Read(bytes);
  EXPECT_TRUE(read.status.ok());
  EXPECT_EQ(read.records, kRecords);
  EXPECT_EQ(read.end.offset, offsets_[kRecords]);
  EXPECT_FALSE(read.end.torn);
  // Used again: the header is another segment's, what follows is not.
  const auto header =
      MakeSegmentHeader(RunId::FromRandom(1, 2), 2, Epoch(1), Round(9), offsets_[kRecords]);
  bytes.replace(0, sizeof(header), BytesOf(header));
  read = Read(bytes);
  EXPECT_TRUE(read.status.ok());
  EXPECT_EQ(read.records, 0);
  EXPECT_FALSE(read.end.torn);
}

TEST_F(SegmentTest, EveryCutWithinARecordIsATornTailAndEveryOneBetweenTwoAnEnd) {
  const std::string bytes = Write(kRecords);
  for (uint64_t cut = sizeof(SegmentHeader); cut <= offsets_[kRecords]; ++cut) {
    const Outcome read = Read(bytes.substr(0, cut));
    ASSERT_TRUE(read.status.ok()) << cut << Describe(read.status);
    int whole = 0;
    while (whole < kRecords && offsets_[static_cast<size_t>(whole) + 1] <= cut) ++whole;
    EXPECT_EQ(read.records, whole) << cut;
    EXPECT_EQ(read.end.offset, offsets_[static_cast<size_t>(whole)]) << cut;
    if (cut == offsets_[kRecords]) continue;
    // Where the next segment says how far it went, what is there is read and the rest is damage.
    const Outcome of_more = Read(bytes.substr(0, cut), offsets_[kRecords]);
    EXPECT_TRUE(absl::IsDataLoss(of_more.status)) << cut;
    EXPECT_THAT(std::string(of_more.status.message()),
                HasSubstr("at byte " + std::to_string(offsets_[static_cast<size_t>(whole)])));
    EXPECT_EQ(of_more.records, whole) << cut;
  }
}

TEST_F(SegmentTest, AFlippedBitBeforeDurableRecordsIsDamageAndInTheLastOnesATornTail) {
  const std::string bytes = Write(4);  // records 4 and 5 went with one sync that never came
  for (uint64_t at = sizeof(SegmentHeader); at < offsets_[kRecords]; ++at) {
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 4);
    int hit = 0;
    while (offsets_[static_cast<size_t>(hit) + 1] <= at) ++hit;
    const Outcome read = Read(flipped);
    const bool padding = read.status.ok() && read.records == kRecords;
    if (padding) continue;  // nothing is said of it
    EXPECT_EQ(read.records, hit) << at;
    if (hit < 4) {
      EXPECT_TRUE(absl::IsDataLoss(read.status)) << at;
      EXPECT_THAT(std::string(read.status.message()),
                  HasSubstr("at byte " + std::to_string(offsets_[static_cast<size_t>(hit)])));
    } else {
      EXPECT_TRUE(read.status.ok()) << at;
      EXPECT_EQ(read.end.offset, offsets_[static_cast<size_t>(hit)]);
    }
    // Where the next segment says that all of it was durable it is damage everywhere.
    EXPECT_TRUE(absl::IsDataLoss(Read(flipped, offsets_[kRecords]).status)) << at;
  }
}

TEST_F(SegmentTest, AFlippedBitInTheHeaderIsRefused) {
  const std::string bytes = Write(2);
  for (size_t at = 0; at < sizeof(SegmentHeader); ++at) {
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 1);
    EXPECT_FALSE(Read(flipped).status.ok()) << at;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Read(bytes.substr(0, 71)).status));
}

TEST_F(SegmentTest, AnotherVersionAndAnUnknownRecordAreToldApartFromDamage) {
  const RunId run = RunId::FromRandom(1, 2);
  SegmentHeader header = MakeSegmentHeader(run, 1, Epoch(1), Round(0), 0);
  header.version = 2;
  header.checksum = Xxh3(&header, offsetof(SegmentHeader, checksum));
  EXPECT_TRUE(absl::IsUnimplemented(Read(BytesOf(header)).status));
  const uint64_t seed = SegmentSeed(run, 1);
  for (const uint8_t flags : {uint8_t{0}, kSafeToSkip}) {
    RecordHeader record =
        MakeRecordHeader(RecordType::kName, 0, 72, 0, Xxh3(nullptr, 0, seed), seed);
    record.type = 99;
    record.flags = flags;
    record.checksum = Xxh3(&record, offsetof(RecordHeader, checksum), seed);
    const std::string bytes =
        BytesOf(MakeSegmentHeader(run, 1, Epoch(1), Round(0), 0)) + BytesOf(record);
    const Outcome read = Read(bytes);
    EXPECT_EQ(read.status.code(),
              flags == 0 ? absl::StatusCode::kUnimplemented : absl::StatusCode::kOk);
    EXPECT_EQ(read.records, 0);
  }
}

TEST(SegmentWriterTest, AfterAFailureNothingIsWrittenAnyMore) {
  sim::SimDisk disk(2);
  auto writer = SegmentWriter::Start(
      *disk.Create("s", 64), MakeSegmentHeader(RunId::FromRandom(1, 2), 1, Epoch(1), Round(0), 0));
  ASSERT_TRUE((*writer)->Append(RecordType::kName, Round(0), "a").ok());
  disk.Set({.sync_fails = 1});
  const absl::Status failed = (*writer)->Sync();
  EXPECT_FALSE(failed.ok());
  disk.Set({});
  EXPECT_EQ((*writer)->Sync(), failed);
  EXPECT_EQ((*writer)->Append(RecordType::kName, Round(0), "b"), failed);
}

}  // namespace
}  // namespace signvote::journal
