#include "server/run/run_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/checksum.h"
#include "common/status.h"

namespace signvote::run {
namespace {

using ::testing::HasSubstr;

// Every field differs from its first value.
RunState Full() {
  RunState state;
  state.run_id = RunId::FromRandom(1, 2);
  state.epoch = Epoch(3);
  state.engine.round = Round(17);
  state.engine.course = {.data_step = DataStep(19),
                         .main_rounds = 16,
                         .gamma = 0.125f,
                         .run_done = true,
                         .nonfinite_in_a_row = 2,
                         .stepless_in_a_row = 4,
                         .rule = std::string("ru\0le", 5)};
  round::WorkerState a;
  a.id = WorkerId(2);
  a.name = "a";
  a.incarnation = Incarnation(5);
  a.role = round::Role::kObserver;
  a.evicted = true;
  a.last_seen = Round(11);
  a.abstentions_in_a_row = 3;
  a.abstentions = 6;
  a.ballots = 7;
  a.late_chunks = 8;
  a.duplicate_chunks = 9;
  a.arrivals = {.recent = {std::chrono::seconds(1), std::chrono::seconds(2)},
                .first = {std::chrono::seconds(3)}};
  a.growth_noticed = true;
  round::WorkerState b;
  b.id = WorkerId(4);
  b.name = "b";
  state.engine.workers = {a, b};
  state.engine.shares = {{.share = Share(1), .holder = WorkerId(4), .free_from = Round(20)},
                         {.share = Share(3), .holder = WorkerId(2), .free_from = Round(21)}};
  state.engine.paused = true;
  state.engine.arrivals = {.recent = {std::chrono::milliseconds(5)}, .first = {}};
  state.engine.totals = {.joins = 1,
                         .losses = 2,
                         .abstentions = 3,
                         .late_chunks = 4,
                         .duplicate_chunks = 5,
                         .stale_messages = 6,
                         .digest_mismatches = 7,
                         .attempts_reopened = 8,
                         .scalars_refused = 9,
                         .rounds_without_step = 10,
                         .tallies_dropped = 11};
  state.roster.names = {
      {.id = WorkerId(2), .name = "a", .incarnation = Incarnation(6), .evicted = true},
      {.id = WorkerId(3), .name = "c", .incarnation = Incarnation(1)},
      {.id = WorkerId(4), .name = "b"}};
  state.roster.next_worker_id = 5;
  state.paused = true;
  state.begun = {{.epoch = Epoch(1), .round = Round(0)}, {.epoch = Epoch(3), .round = Round(9)}};
  state.layout = *Layout::Make({{.name = "w",
                                 .shape = {2, 2},
                                 .step_scale = 2.0f,
                                 .weight_decay = 0.5f,
                                 .treatment = TensorTreatment::kSparse},
                                {.name = "s", .dense = true}});
  state.config_json = "{}";
  state.identity_text = "loss: x";
  state.x0_max_abs = 1.5;
  state.x = std::make_shared<const std::vector<float>>(std::vector<float>{1, -2, 3.5f, 0, 1e-30f});
  state.x0 = std::make_shared<const std::vector<float>>(std::vector<float>{1.5f, 0, 0, 0, -1});
  state.aggregate = Aggregate::kAverage;
  state.dense_wire = PayloadKind::kBf16;
  state.optimizer = {.kind = DenseOptimizer::Kind::kAliasAdam,
                     .steps = 12,
                     .scalars = {.weights = 0.5, .r = 0.75, .d = 1.25},
                     .state = {0.5f, -0.25f}};
  return state;
}

std::string Bytes(const RunState& state) {
  const StateParts parts = EncodeState(state);
  std::string out;
  for (const std::span<const std::byte> part : parts.parts) {
    out.append(reinterpret_cast<const char*>(part.data()), part.size());
  }
  EXPECT_EQ(out.size(), parts.bytes);
  return out;
}

absl::StatusOr<RunState> Decoded(const std::string& bytes) {
  return DecodeState(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

void ExpectEqual(const RunState& a, const RunState& b) {
  EXPECT_EQ(a.run_id, b.run_id);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.engine, b.engine);
  EXPECT_EQ(a.roster, b.roster);
  EXPECT_EQ(a.paused, b.paused);
  EXPECT_EQ(a.begun, b.begun);
  EXPECT_TRUE(a.layout == b.layout);
  EXPECT_EQ(a.config_json, b.config_json);
  EXPECT_EQ(a.identity_text, b.identity_text);
  EXPECT_EQ(a.x0_max_abs, b.x0_max_abs);
  ASSERT_EQ(a.has_parameters(), b.has_parameters());
  if (a.has_parameters()) {
    EXPECT_EQ(*a.x, *b.x);
  }
  EXPECT_EQ(a.aggregate, b.aggregate);
  EXPECT_EQ(a.dense_wire, b.dense_wire);
  EXPECT_EQ(a.optimizer, b.optimizer);
  ASSERT_EQ(a.x0 == nullptr, b.x0 == nullptr);
  if (a.x0 != nullptr) {
    EXPECT_EQ(*a.x0, *b.x0);
  }
}

TEST(RunState, ComesBackWhole) {
  const auto back = Decoded(Bytes(Full()));
  ASSERT_TRUE(back.ok()) << Describe(back.status());
  ExpectEqual(*back, Full());
}

TEST(RunState, AFreshRunAndOneWithoutX0ComeBackToo) {
  RunState fresh;
  fresh.run_id = RunId::FromRandom(1, 2);
  auto back = Decoded(Bytes(fresh));
  ASSERT_TRUE(back.ok()) << Describe(back.status());
  ExpectEqual(*back, fresh);
  RunState one = Full();
  one.x0 = nullptr;
  one.optimizer = {};
  back = Decoded(Bytes(one));
  ASSERT_TRUE(back.ok()) << Describe(back.status());
  ExpectEqual(*back, one);
}

TEST(RunState, ThePlanesAreNotCopied) {
  const RunState state = Full();
  const StateParts parts = EncodeState(state);
  ASSERT_EQ(parts.parts.size(), 9u);
  EXPECT_EQ(static_cast<const void*>(parts.parts[3].data()), state.x->data());
  EXPECT_EQ(static_cast<const void*>(parts.parts[5].data()), state.x0->data());
  EXPECT_EQ(static_cast<const void*>(parts.parts[7].data()), state.optimizer.state.data());
}

TEST(RunState, EveryPrefixIsRefused) {
  const std::string whole = Bytes(Full());
  for (size_t size = 0; size < whole.size(); ++size) {
    const absl::Status status = Decoded(whole.substr(0, size)).status();
    EXPECT_EQ(status.code(),
              size < 40 ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kDataLoss)
        << size;
  }
  EXPECT_EQ(Decoded(whole + '\0').status().code(), absl::StatusCode::kDataLoss);
}

TEST(RunState, EveryFlippedByteIsRefused) {
  const std::string whole = Bytes(Full());
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const unsigned flip : {0x01u, 0x80u, 0xFFu}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(static_cast<unsigned char>(damaged[at]) ^ flip);
      EXPECT_EQ(Decoded(damaged).status().code(),
                at < 8 ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kDataLoss)
          << at;
    }
  }
}

// With checksums that are right again, so that what stands behind them is looked at.
std::string WithHeader(std::string bytes, size_t offset, uint64_t value, size_t size) {
  std::memcpy(bytes.data() + offset, &value, size);
  const uint64_t checksum = Xxh3(bytes.data(), 32);
  std::memcpy(bytes.data() + 32, &checksum, sizeof(checksum));
  return bytes;
}

TEST(RunState, AnotherVersionIsTold) {
  const absl::Status status = Decoded(WithHeader(Bytes(Full()), 8, 2, 4)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(ToStd(status.message())), HasSubstr("version 2"));
}

TEST(RunState, LengthsBeyondTheBytesAreRefusedBeforeTheyAreUsed) {
  const std::string whole = Bytes(Full());
  for (const uint64_t lie : {uint64_t{1} << 29, uint64_t{1} << 40, UINT64_MAX, UINT64_MAX - 7}) {
    EXPECT_EQ(Decoded(WithHeader(whole, 16, lie, 8)).status().code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(Decoded(WithHeader(whole, 24, lie, 8)).status().code(), absl::StatusCode::kDataLoss);
  }
  for (const uint64_t planes : {0u, 1u, 3u}) {
    EXPECT_EQ(Decoded(WithHeader(whole, 12, planes, 4)).status().code(),
              absl::StatusCode::kDataLoss);
  }
}

TEST(CheckState, WhatDoesNotFitTogetherIsNamed) {
  const auto wrong = [](const std::function<void(RunState*)>& change) {
    RunState state = Full();
    change(&state);
    const absl::Status status = CheckState(state);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(ToStd(status.message()));
  };
  EXPECT_TRUE(CheckState(Full()).ok());
  EXPECT_THAT(wrong([](RunState* s) { s->run_id = RunId(); }), HasSubstr("run id"));
  EXPECT_THAT(wrong([](RunState* s) { s->epoch = Epoch(0); }), HasSubstr("epoch"));
  EXPECT_THAT(wrong([](RunState* s) { s->roster.next_worker_id = 4; }), HasSubstr("never given"));
  EXPECT_THAT(wrong([](RunState* s) { s->roster.names[1].id = WorkerId(2); }),
              HasSubstr("repeated or out of order"));
  EXPECT_THAT(wrong([](RunState* s) { s->roster.names[1].name = "a"; }), HasSubstr("two workers"));
  EXPECT_THAT(wrong([](RunState* s) { s->roster.names[1].name = ""; }), HasSubstr("name"));
  EXPECT_THAT(wrong([](RunState* s) { s->engine.workers[1].name = "x"; }),
              HasSubstr("the roster does not"));
  EXPECT_THAT(wrong([](RunState* s) { s->engine.workers[1].id = WorkerId(9); }),
              HasSubstr("the roster does not"));
  EXPECT_THAT(wrong([](RunState* s) { std::swap(s->engine.workers[0], s->engine.workers[1]); }),
              HasSubstr("of the engine is repeated or out of order"));
  EXPECT_THAT(wrong([](RunState* s) { s->engine.shares[1].share = Share(1); }),
              HasSubstr("share 1"));
  EXPECT_THAT(wrong([](RunState* s) { s->engine.shares[0].holder = WorkerId(3); }),
              HasSubstr("nobody's"));
  EXPECT_THAT(wrong([](RunState* s) { s->engine.course.gamma = -1; }), HasSubstr("stepsize"));
  EXPECT_THAT(wrong([](RunState* s) { s->x0_max_abs = -1; }), HasSubstr("max |x0|"));
  EXPECT_THAT(wrong([](RunState* s) { s->x = nullptr; }), HasSubstr("x0 has 5"));
  EXPECT_THAT(wrong([](RunState* s) { s->x = s->x0 = nullptr; }), HasSubstr("no parameters"));
  EXPECT_THAT(wrong([](RunState* s) {
                s->x = s->x0 = nullptr;
                s->engine.round = Round(0);
              }),
              HasSubstr("an optimizer, but no parameters"));
  const auto shorter = std::make_shared<const std::vector<float>>(4);
  EXPECT_THAT(wrong([&](RunState* s) { s->x = shorter; }),
              HasSubstr("x has 4 coordinates, the layout 5"));
  EXPECT_THAT(wrong([&](RunState* s) { s->x0 = shorter; }), HasSubstr("x0 has 4 coordinates"));
}

}  // namespace
}  // namespace signvote::run
