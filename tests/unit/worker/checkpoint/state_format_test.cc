// Goal:   a worker's state comes back bit for bit, the page's example is what is written, and no flipped,
//         missing or added byte passes.
#include "worker/checkpoint/state_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "common/checksum.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/page_vectors.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using testing::HasSubstr;

std::span<const std::byte> Span(const std::string& bytes) {
  return std::as_bytes(std::span(bytes.data(), bytes.size()));
}

Section SectionOf(SectionKind kind, uint32_t element_bytes, const std::vector<uint8_t>& bytes) {
  Section section{.kind = kind, .element_bytes = element_bytes, .elements = 0, .memory = {}};
  EXPECT_TRUE(section.Take(bytes.size() / element_bytes).ok());
  std::memcpy(section.bytes().data(), bytes.data(), bytes.size());
  return section;
}

// The page's example.
WorkerState Example() {
  WorkerState state{.run_id = *RunId::FromText("00112233-4455-4677-8899-aabbccddeeff"),
                    .worker = "w1",
                    .round = Round(7),
                    .share = Share(1),
                    .main_round = 6,
                    .layout_digest = 0x1122334455667788,
                    .coordinates = 2,
                    .replica_digest = 0x99aabbccddeeff00,
                    .direction = {.kind = DirectionKind::kSignum},
                    .sections = {}};
  state.sections.push_back(
      SectionOf(SectionKind::kMomentum, 4, {0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf}));  // 1, -0.5
  state.sections.push_back(SectionOf(SectionKind::kVerdict, 1, {0x01}));
  return state;
}

// Every kind of section, and an odd number of coordinates.
WorkerState Large() {
  WorkerState state = Example();
  state.coordinates = 5;
  state.direction = {.kind = DirectionKind::kAdam,
                     .beta2 = 0.999,
                     .envelope = Envelope::kCoordinate,
                     .state_dtype = StateDtype::kBf16};
  state.lost = AbstainReason::kNonFiniteGradient;
  state.clip = 0.25;
  state.sections.clear();
  for (const StatePlane& plane : PlanesOf(state.direction)) {
    std::vector<uint8_t> bytes(plane.elements(5) * plane.element_bytes);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(3 * i + 1);
    state.sections.push_back(SectionOf(signvote::SectionOf(plane.kind),
                                       static_cast<uint32_t>(plane.element_bytes), bytes));
  }
  for (const SectionKind kind :
       {SectionKind::kPreviousReplica, SectionKind::kLastGradient, SectionKind::kContinuation}) {
    state.sections.push_back(SectionOf(kind, 4, std::vector<uint8_t>(20, 0xff)));  // NaN as bits
  }
  state.sections.push_back(SectionOf(SectionKind::kVerdict, 1, {0x15}));
  return state;
}

TEST(WorkerStateFormatTest, ThePagesExampleIsWhatIsWrittenAndIsRead) {
  size_t seen = 0;
  for (const PageVector& vector : PageVectors(SIGNVOTE_SOURCE_DIR "/docs/worker_state_format.md")) {
    ASSERT_EQ(vector.kind, "state") << vector.line;
    const std::string bytes = absl::HexStringToBytes(vector.result);
    EXPECT_EQ(absl::BytesToHexString(EncodeWorkerState(Example())), vector.result);
    const auto state = DecodeWorkerState(Span(bytes));
    ASSERT_TRUE(state.ok()) << Describe(state.status());
    EXPECT_EQ(state->run_id.ToText(), vector.arguments.at("run"));
    EXPECT_EQ(state->worker, vector.arguments.at("worker"));
    EXPECT_EQ(state->round.value(), vector.number("round"));
    EXPECT_EQ(state->share.value(), vector.number("share"));
    EXPECT_EQ(state->main_round, vector.number("main_round"));
    EXPECT_EQ(state->coordinates, vector.number("coordinates"));
    EXPECT_EQ(DirectionName(state->direction.kind), vector.arguments.at("direction"));
    float m[2];
    std::memcpy(m, state->plane(0).bytes().data(), sizeof(m));
    EXPECT_EQ(m[0], 1.0f);
    EXPECT_EQ(m[1], -0.5f);
    EXPECT_EQ(state->Find(SectionKind::kVerdict)->bytes()[0], std::byte{1});
    ++seen;
  }
  EXPECT_EQ(seen, 1u);
}

TEST(WorkerStateFormatTest, ComesBackBitForBit) {
  for (const WorkerState& state : {Example(), Large()}) {
    const std::string bytes = EncodeWorkerState(state);
    const auto back = DecodeWorkerState(Span(bytes));
    ASSERT_TRUE(back.ok()) << Describe(back.status());
    EXPECT_EQ(EncodeWorkerState(*back), bytes);
    EXPECT_EQ(back->lost, state.lost);
    EXPECT_EQ(back->clip, state.clip);
    EXPECT_TRUE(back->direction == state.direction);
    ASSERT_EQ(back->sections.size(), state.sections.size());
    for (size_t k = 0; k < PlanesOf(state.direction).size(); ++k)
      EXPECT_EQ(&back->plane(k),
                back->Find(signvote::SectionOf(PlanesOf(state.direction)[k].kind)));
  }
}

TEST(WorkerStateFormatTest, EveryFlippedBitIsSeen) {
  const std::string bytes = EncodeWorkerState(Large());
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      const auto state = DecodeWorkerState(Span(flipped));
      ASSERT_FALSE(state.ok()) << "byte " << at << " bit " << bit;
      EXPECT_EQ(ExitCodeFor(state.status()), ExitCode::kBadInput);
      EXPECT_TRUE(absl::IsDataLoss(state.status()) ||
                  (at < 8 && absl::IsInvalidArgument(state.status())))
          << "byte " << at << ": " << state.status();
    }
  }
}

TEST(WorkerStateFormatTest, EveryCutAndWhateverFollowsIsSeen) {
  const std::string bytes = EncodeWorkerState(Large());
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(DecodeWorkerState(Span(bytes.substr(0, size))).ok()) << size;
  const auto more = DecodeWorkerState(Span(bytes + std::string(8, '\0')));
  EXPECT_TRUE(absl::IsDataLoss(more.status())) << more.status();
}

// With checksums that are right, as no disk writes it.
TEST(WorkerStateFormatTest, WhatNoWorkerHasIsDamage) {
  const auto refused = [](const char* what, const auto& change) {
    WorkerState state = Large();
    change(&state);
    const auto read = DecodeWorkerState(Span(EncodeWorkerState(state)));
    EXPECT_TRUE(absl::IsDataLoss(read.status())) << what << ": " << read.status();
  };
  refused("no name", [](WorkerState* s) { s->worker = ""; });
  refused("a name that is none", [](WorkerState* s) { s->worker = "-"; });
  refused("a clip of nothing", [](WorkerState* s) { s->clip = 0; });
  refused("a clip that is none",
          [](WorkerState* s) { s->clip = std::numeric_limits<double>::quiet_NaN(); });
  refused("no coordinates", [](WorkerState* s) { s->coordinates = 0; });
  refused("another number of them", [](WorkerState* s) { s->coordinates = 6; });
  refused("a direction that is none",
          [](WorkerState* s) { s->direction.kind = static_cast<DirectionKind>(17); });
  refused("a decay that is none", [](WorkerState* s) { s->direction.beta = 1.5; });
  refused("a plane that the direction has not", [](WorkerState* s) {
    s->sections.push_back(SectionOf(SectionKind::kResidual, 4, std::vector<uint8_t>(20)));
  });
  refused("a plane that is missing",
          [](WorkerState* s) { s->sections.erase(s->sections.begin()); });
  refused("a section twice", [](WorkerState* s) { s->sections.push_back(s->sections.back()); });
}

TEST(WorkerStateFormatTest, AnotherVersionIsNamed) {
  std::string bytes = EncodeWorkerState(Example());
  bytes[8] = 2;
  const uint64_t checksum = Xxh3(bytes.data(), 208);
  std::memcpy(bytes.data() + 208, &checksum, sizeof(checksum));
  const auto state = DecodeWorkerState(Span(bytes));
  EXPECT_TRUE(absl::IsUnimplemented(state.status())) << state.status();
  EXPECT_THAT(std::string(state.status().message()), HasSubstr("version 2"));
}

TEST(WorkerStateFormatTest, AFileIsReplacedWholeAndItsErrorsNameIt) {
  const TempDir dir;
  FileSystem* const fs = FileSystem::Posix();
  EXPECT_TRUE(absl::IsNotFound(ReadWorkerState(fs, dir / "w1.state").status()));
  ASSERT_TRUE(WriteWorkerState(fs, dir / "w1.state", Large()).ok());
  ASSERT_TRUE(WriteWorkerState(fs, dir / "w1.state", Example()).ok());
  const auto state = ReadWorkerState(fs, dir / "w1.state");
  ASSERT_TRUE(state.ok()) << Describe(state.status());
  EXPECT_EQ(EncodeWorkerState(*state), EncodeWorkerState(Example()));
  ASSERT_TRUE(WriteFileAtomically(fs, dir / "w1.state", "no state", 0644).ok());
  const auto none = ReadWorkerState(fs, dir / "w1.state");
  EXPECT_TRUE(absl::IsInvalidArgument(none.status()));
  EXPECT_EQ(ExitCodeFor(none.status()), ExitCode::kBadInput);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("w1.state is no worker's state"));
}

}  // namespace
}  // namespace signvote
