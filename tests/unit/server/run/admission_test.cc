#include "server/run/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "common/status.h"

namespace signvote::run {
namespace {

using ::testing::HasSubstr;

constexpr char kConfig[] = R"({"model_type": "llama", "rope_theta": 10000.0})";

v1::Join GoodJoin() {
  v1::Join join;
  join.set_protocol_min(1);
  join.set_protocol_max(3);
  join.set_name("w0");
  v1::TensorShape& w = *join.add_tensors();
  w.set_name("w");
  w.add_shape(2);
  w.add_shape(3);
  join.add_tensors()->set_name("b");
  join.set_model_config_json(kConfig);
  return join;
}

RunId ThisRun() { return RunId::FromRandom(1, 2); }

class CheckJoinTest : public ::testing::Test {
 protected:
  CheckJoinTest() {
    facts_.run_id = ThisRun();
    facts_.workers_max = 4;
  }

  // The status of the good Join after `change`.
  absl::Status After(const std::function<void(v1::Join*)>& change) {
    v1::Join join = GoodJoin();
    change(&join);
    return CheckJoin(join, peer_, facts_).status();
  }
  absl::Status Good() {
    return After([](v1::Join*) {});
  }
  static void Expect(const absl::Status& status, absl::StatusCode code, const std::string& words) {
    EXPECT_EQ(status.code(), code) << Describe(status);
    EXPECT_THAT(std::string(ToStd(status.message())), HasSubstr(words));
  }

  PeerIdentity peer_{.address = "1.2.3.4:5"};
  RunFacts facts_;
};

TEST_F(CheckJoinTest, AGoodJoinComesBackParsed) {
  v1::Join join = GoodJoin();
  join.set_software_version(std::string(100, 'v'));
  join.set_metrics_address("host:1\n");
  join.set_run_id(std::string(ThisRun().bytes()));
  join.set_round(0);
  join.set_epoch(3);
  join.set_can_probe(true);
  join.set_held_out_hash(0);
  join.set_identity_text("loss: x");
  const auto out = CheckJoin(join, peer_, facts_);
  ASSERT_TRUE(out.ok()) << Describe(out.status());
  EXPECT_EQ(out->name, "w0");
  EXPECT_EQ(out->software_version, std::string(64, 'v'));
  EXPECT_EQ(out->metrics_address, "host:1 ");
  EXPECT_EQ(out->round, Round(0));
  EXPECT_EQ(out->epoch, Epoch(3));
  EXPECT_EQ(out->layout.coordinates(), 7u);
  EXPECT_EQ(out->layout.tensors()[0].name, "w");
  EXPECT_EQ(out->layout.tensors()[0].weight_decay, 0.0f);
  EXPECT_EQ(out->config_json, kConfig);
  EXPECT_EQ(out->identity.json(), R"({"model_type":"llama","rope_theta":10000})");
  EXPECT_EQ(out->identity_text, "loss: x");
  EXPECT_TRUE(out->can_probe);
  EXPECT_EQ(out->held_out_hash, 0u);
}

TEST_F(CheckJoinTest, AReplicaWithoutARunIsNoReplica) {
  v1::Join join = GoodJoin();
  join.set_round(5);
  const auto out = CheckJoin(join, peer_, facts_);
  ASSERT_TRUE(out.ok());
  EXPECT_FALSE(out->round.has_value());
  EXPECT_FALSE(out->held_out_hash.has_value());
}

TEST_F(CheckJoinTest, VersionsMustMeetAtTwo) {
  const auto with = [this](uint32_t min, uint32_t max) {
    return After([&](v1::Join* join) {
      join->set_protocol_min(min);
      join->set_protocol_max(max);
    });
  };
  EXPECT_TRUE(with(2, 2).ok());
  EXPECT_TRUE(with(1, 2).ok());
  EXPECT_TRUE(with(2, 9).ok());
  for (const auto& [min, max] : {std::pair(0u, 2u), {1u, 1u}, {3u, 9u}, {0u, 0u}}) {
    Expect(with(min, max), absl::StatusCode::kFailedPrecondition, "protocol versions do not meet");
  }
}

TEST_F(CheckJoinTest, ANameMustBeOne) {
  Expect(After([](v1::Join* join) { join->set_name("not a name"); }),
         absl::StatusCode::kInvalidArgument, "name");
}

TEST_F(CheckJoinTest, UnderTlsTheCertificateNamesAWorkerOfThisName) {
  facts_.tls = true;
  Expect(Good(), absl::StatusCode::kPermissionDenied, "not a worker's");
  peer_.authenticated = true;
  Expect(Good(), absl::StatusCode::kPermissionDenied, "not a worker's");
  peer_.worker_role = true;
  Expect(Good(), absl::StatusCode::kPermissionDenied, "certificate of 'nobody'");
  peer_.dns_names = {"w1", "w2"};
  Expect(Good(), absl::StatusCode::kPermissionDenied, "certificate of 'w1'");
  peer_.dns_names = {"w1", "w0"};
  EXPECT_TRUE(Good().ok());
  peer_.authenticated = false;
  Expect(Good(), absl::StatusCode::kPermissionDenied, "not a worker's");
}

TEST_F(CheckJoinTest, TokensEvictionsAndRunsAreChecked) {
  const auto tokens = TokenTable::Parse("w0 secret\n", "tokens");
  ASSERT_TRUE(tokens.ok());
  facts_.tokens = &*tokens;
  Expect(Good(), absl::StatusCode::kUnauthenticated, "token");
  EXPECT_TRUE(After([](v1::Join* join) { join->set_token("secret"); }).ok());
  facts_.tokens = nullptr;
  Expect(
      After([](v1::Join* join) { join->set_run_id(std::string(RunId::FromRandom(3, 4).bytes())); }),
      absl::StatusCode::kFailedPrecondition, "this server trains run");
  Expect(After([](v1::Join* join) { join->set_run_id("short"); }),
         absl::StatusCode::kInvalidArgument, "");
  facts_.evicted = true;
  Expect(Good(), absl::StatusCode::kPermissionDenied, "evicted");
  facts_.stopping = true;
  Expect(Good(), absl::StatusCode::kCancelled, "stops");
}

TEST_F(CheckJoinTest, AStrangerLearnsNothingOfTheRunBeforeItsToken) {
  const auto tokens = TokenTable::Parse("w0 secret\n", "tokens");
  ASSERT_TRUE(tokens.ok());
  facts_.tokens = &*tokens;
  facts_.present = 4;
  facts_.evicted = true;
  Expect(After([](v1::Join* join) { join->clear_tensors(); }), absl::StatusCode::kUnauthenticated,
         "token");
}

TEST_F(CheckJoinTest, AFullRunIsFull) {
  facts_.present = 3;
  EXPECT_TRUE(Good().ok());
  facts_.present = 4;
  Expect(Good(), absl::StatusCode::kResourceExhausted, "--workers-max 4");
}

TEST_F(CheckJoinTest, AMalformedLayoutOrConfigIsRefused) {
  Expect(After([](v1::Join* join) { join->clear_tensors(); }), absl::StatusCode::kInvalidArgument,
         "no tensor");
  Expect(After([](v1::Join* join) { join->set_model_config_json("[1]"); }),
         absl::StatusCode::kInvalidArgument, "not a JSON object");
  Expect(After([](v1::Join* join) { join->set_model_config_json("{"); }),
         absl::StatusCode::kInvalidArgument, "not a JSON object");
  Expect(After([](v1::Join* join) {
           join->set_model_config_json("{\"a\": \"" + std::string(1 << 20, 'x') + "\"}");
         }),
         absl::StatusCode::kInvalidArgument, "1 MiB");
  EXPECT_TRUE(After([](v1::Join* join) { join->set_identity_text(std::string(4096, 't')); }).ok());
  Expect(After([](v1::Join* join) { join->set_identity_text(std::string(4097, 't')); }),
         absl::StatusCode::kInvalidArgument, "4097 bytes");
}

TEST_F(CheckJoinTest, AnotherOrderOfTensorsIsTheSameModelAndAnotherShapeIsNot) {
  const auto layout =
      Layout::Make({{.name = "b"}, {.name = "w", .shape = {2, 3}, .weight_decay = 0.1f}});
  ASSERT_TRUE(layout.ok());
  facts_.layout = &*layout;
  EXPECT_TRUE(Good().ok());
  Expect(After([](v1::Join* join) { join->mutable_tensors(0)->set_shape(0, 4); }),
         absl::StatusCode::kFailedPrecondition, "tensor w is [2, 3] here, [4, 3] there");
  Expect(After([](v1::Join* join) { join->mutable_tensors(1)->set_name("c"); }),
         absl::StatusCode::kFailedPrecondition, "tensor b [] is missing there");
}

TEST_F(CheckJoinTest, TheDifferingKeyAndBothValuesAreNamed) {
  const auto identity = ModelIdentity::FromConfig(
      R"({"model_type": "llama", "rope_theta": 500000, "dtype": "bf16"})");
  ASSERT_TRUE(identity.ok());
  facts_.identity = &*identity;
  Expect(Good(), absl::StatusCode::kFailedPrecondition,
         "\"rope_theta\" is 500000 here, 10000 there");
  Expect(After([](v1::Join* join) { join->clear_model_config_json(); }),
         absl::StatusCode::kFailedPrecondition, "a config.json here, none there");
  EXPECT_TRUE(After([](v1::Join* join) {
                join->set_model_config_json(R"({"rope_theta": 5e5, "model_type": "llama"})");
              }).ok());
  facts_.identity_text = "loss: a";
  Expect(After([](v1::Join* join) {
           join->set_model_config_json(R"({"rope_theta": 5e5, "model_type": "llama"})");
           join->set_identity_text("loss: b");
         }),
         absl::StatusCode::kFailedPrecondition, "\"loss: b\", the run's is \"loss: a\"");
}

}  // namespace
}  // namespace signvote::run
