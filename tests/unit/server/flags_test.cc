#include "server/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/exit_codes.h"
#include "common/status.h"
#include "tests/support/temp_dir.h"

namespace signvote {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::Status Parse(std::vector<const char*> words, ServerFlags* flags) {
  words.insert(words.begin(), "signvote-server");
  return ParseServerFlags(static_cast<int>(words.size()), words.data(), FileSystem::Posix(), flags);
}

TEST(ServerFlagsTest, TheShortestPlaintextCommandHasSafeDefaults) {
  ServerFlags flags;
  const absl::Status status = Parse({"--insecure", "--max-rounds", "10"}, &flags);
  ASSERT_TRUE(status.ok()) << Describe(status);
  EXPECT_EQ(flags.listen, "127.0.0.1:7070");
  EXPECT_EQ(flags.http, "127.0.0.1:9151");
  EXPECT_EQ(flags.run.rule.rule, "auto");
  EXPECT_EQ(flags.run.rule.alias_option, "II");
  EXPECT_EQ(flags.run.direction.kind, DirectionKind::kSignum);
  EXPECT_TRUE(flags.run.deadline.enabled);
  EXPECT_FALSE(flags.run.tls);
}

TEST(ServerFlagsTest, WhatARunThatGoesOnNeedsIsRefusedWithoutOne) {
  ServerFlags flags;
  const auto refused = [&](const std::vector<const char*>& words) {
    std::vector<const char*> all = {"--insecure", "--max-rounds=10"};
    all.insert(all.end(), words.begin(), words.end());
    const absl::Status status = Parse(all, &flags);
    return status.ok() ? std::string() : Describe(status);
  };
  EXPECT_THAT(refused({"--init-as=new"}), HasSubstr("--init-as needs --init"));
  EXPECT_THAT(refused({"--return-wait=7"}), HasSubstr("--return-wait needs"));
  EXPECT_EQ(refused({"--init=m", "--init-as=new", "--return-wait=7"}), "");
  EXPECT_EQ(flags.init_as, InitAs::kNew);
  EXPECT_EQ(flags.run.return_wait, std::chrono::seconds(7));
  EXPECT_EQ(refused({"--init=m", "--init-as=continue"}), "");
  EXPECT_EQ(flags.init_as, InitAs::kContinue);
}

TEST(ServerFlagsTest, WithTlsTheServerListensForEverybody) {
  ServerFlags flags;
  const absl::Status status =
      Parse({"--max-rounds=10", "--tls-ca=a", "--tls-certificate=b", "--tls-key=c", "--tokens=d"},
            &flags);
  ASSERT_TRUE(status.ok()) << Describe(status);
  EXPECT_EQ(flags.listen, "0.0.0.0:7070");
  EXPECT_TRUE(flags.run.tls);
}

TEST(ServerFlagsTest, EveryFlagReachesItsSetting) {
  ServerFlags flags;
  const absl::Status status = Parse({"--insecure",
                                     "--insecure-bind=0.0.0.0",
                                     "--listen=127.0.0.1:5",
                                     "--http=off",
                                     "--rounds=9",
                                     "--workers-min=2",
                                     "--workers-max=8",
                                     "--quorum=3",
                                     "--deadline=off",
                                     "--deadline-floor-ms=10",
                                     "--deadline-ceiling-ms=20",
                                     "--deadline-initial-ms=30",
                                     "--observer-after=4",
                                     "--share-hold=6",
                                     "--warm-in=12",
                                     "--aggregate=average",
                                     "--dense=head.*,*.bias",
                                     "--dense-wire=bf16",
                                     "--dense-optimizer=sgd",
                                     "--dense-momentum=0.75",
                                     "--digest-every=0",
                                     "--eval-every=8",
                                     "--wait-timeout=1.5",
                                     "--linger=2.5",
                                     "--upload-timeout=3.5",
                                     "--chunk-coordinates=1024",
                                     "--seed=77",
                                     "--direction=lion",
                                     "--beta=0.5",
                                     "--beta2=0.25",
                                     "--rule=fixed",
                                     "--stepsize=0.125",
                                     "--schedule=cosine",
                                     "--warmup-rounds=11",
                                     "--init=i",
                                     "--export=e",
                                     "--export-dtype=bf16",
                                     "--export-shard-bytes=12",
                                     "--round-log=r",
                                     "--event-log=v",
                                     "--port-file=p",
                                     "--log-level=warning",
                                     "--log-format=json",
                                     "--message-bytes-max=4194304",
                                     "--session-buffer-bytes=2097152",
                                     "--catch-up-bytes=123",
                                     "--test-applier-delay-ms=7",
                                     "--test-applier-delayed=2",
                                     "--weight-decay=0.25",
                                     "--nonfinite-rounds=7",
                                     "--deadline-growth=3.5",
                                     "--tally-threads=3",
                                     "--tokens=t"},
                                    &flags);
  ASSERT_TRUE(status.ok()) << Describe(status);
  const run::RunOptions& c = flags.run;
  const run::ModelSizes& sizes = c.model.sizes;
  EXPECT_EQ(flags.listen, "0.0.0.0:5");
  EXPECT_EQ(flags.http, "off");
  EXPECT_EQ(c.main_rounds_max, 9u);
  EXPECT_EQ(c.workers_min, 2u);
  EXPECT_EQ(sizes.workers_max, 8u);
  EXPECT_EQ(c.quorum, 3u);
  EXPECT_FALSE(c.deadline.enabled);
  EXPECT_EQ(c.deadline.grace_floor, std::chrono::milliseconds(10));
  EXPECT_EQ(c.deadline.grace_ceiling, std::chrono::milliseconds(20));
  EXPECT_EQ(c.deadline.initial, std::chrono::milliseconds(30));
  EXPECT_EQ(c.observer_after, 4u);
  EXPECT_EQ(c.share_hold_rounds, 6u);
  EXPECT_EQ(c.warm_in_rounds, 12u);
  EXPECT_EQ(sizes.aggregate, Aggregate::kAverage);
  EXPECT_TRUE(run::AnyDense(c.model.tensor_rules));
  EXPECT_EQ(c.model.tensor_rules.back().pattern, "*.bias");
  EXPECT_EQ(sizes.dense.wire, PayloadKind::kBf16);
  EXPECT_EQ(sizes.dense.optimizer.kind, DenseOptimizer::Kind::kSgd);
  EXPECT_EQ(sizes.dense.optimizer.momentum, 0.75f);
  EXPECT_EQ(c.digest_every, 0u);
  EXPECT_EQ(c.evaluate_every, 8u);
  EXPECT_EQ(c.wait_timeout, std::chrono::milliseconds(1500));
  EXPECT_EQ(c.linger, std::chrono::milliseconds(2500));
  EXPECT_EQ(c.model.upload.timeout, std::chrono::milliseconds(3500));
  EXPECT_EQ(sizes.chunk_coordinates, 1024u);
  EXPECT_EQ(c.seed, 77u);
  EXPECT_EQ(c.direction.kind, DirectionKind::kLion);
  EXPECT_EQ(c.direction.beta, 0.5);
  EXPECT_EQ(c.direction.beta2, 0.25);
  EXPECT_EQ(c.rule.rule, "fixed");
  EXPECT_EQ(c.rule.stepsize, 0.125);
  EXPECT_EQ(c.rule.schedule, "cosine");
  EXPECT_EQ(c.rule.warmup_rounds, 11u);
  EXPECT_EQ(flags.init_path, "i");
  EXPECT_EQ(flags.exports.path, "e");
  EXPECT_EQ(flags.exports.format.dtype, TensorDtype::kBf16);
  EXPECT_EQ(flags.exports.format.shard_bytes, 12u);
  EXPECT_EQ(flags.round_log_path, "r");
  EXPECT_EQ(flags.event_log_path, "v");
  EXPECT_EQ(flags.port_file, "p");
  EXPECT_EQ(flags.log.level, LogLevel::kWarning);
  EXPECT_EQ(flags.log.format, LogFormat::kJson);
  EXPECT_EQ(sizes.message_bytes_max, 4194304u);
  EXPECT_EQ(sizes.session_buffer_bytes, 2097152u);
  EXPECT_EQ(sizes.catch_up_bytes, 123u);
  EXPECT_EQ(flags.test_applier_delay, std::chrono::milliseconds(7));
  EXPECT_EQ(flags.test_applier_delayed, 2u);
  EXPECT_EQ(c.model.weight_decay, 0.25f);
  EXPECT_EQ(c.nonfinite_rounds, 7u);
  EXPECT_EQ(c.deadline.growth, 3.5);
  EXPECT_EQ(flags.tally_threads, 3u);
  EXPECT_EQ(flags.tokens, "t");
}

TEST(ServerFlagsTest, WithLocalStepsTheDefaultsAreAnAverageAndOneRoundOfWarmIn) {
  const auto run = [](std::vector<const char*> words) {
    words.insert(words.begin(), {"--insecure", "--max-rounds=100"});
    ServerFlags flags;
    const absl::Status status = Parse(words, &flags);
    EXPECT_TRUE(status.ok()) << Describe(status);
    return flags.run;
  };
  EXPECT_FALSE(run({}).local_steps.on());
  EXPECT_EQ(run({}).model.sizes.aggregate, Aggregate::kVote);
  EXPECT_EQ(run({}).warm_in_rounds, 0u);
  const run::RunOptions local = run({"--local-steps=16,96@25"});
  EXPECT_EQ(local.local_steps.StepsAt(0), 16u);
  EXPECT_EQ(local.local_steps.StepsAt(99), 96u);
  EXPECT_EQ(local.model.sizes.aggregate, Aggregate::kAverage);
  EXPECT_EQ(local.warm_in_rounds, 1u);
  const run::RunOptions diloco =
      run({"--local-steps=16", "--dense=*", "--dense-optimizer=sgd", "--dense-momentum=0.9",
           "--dense-nesterov", "--dense-stepsize=0.7", "--direction=adam", "--noise=off",
           "--rule=fixed"});
  EXPECT_EQ(diloco.model.sizes.dense.stepsize, 0.7f);
  const run::RunOptions given = run({"--local-steps=16", "--aggregate=vote", "--warm-in=0"});
  EXPECT_EQ(given.model.sizes.aggregate, Aggregate::kVote);
  EXPECT_EQ(given.warm_in_rounds, 0u);
}

TEST(ServerFlagsTest, WrongValuesNameTheFlagAndEndInUsage) {
  const std::vector<std::pair<std::vector<const char*>, const char*>> cases = {
      {{"--insecure"}, "--max-rounds"},
      {{"--insecure", "--max-rounds=0"}, "--max-rounds"},
      {{"--insecure", "--max-rounds=x"}, "--max-rounds"},
      {{"--insecure", "--max-rounds=3", "--nonsense"}, "--nonsense"},
      {{"--insecure", "--max-rounds=3", "--deadline=maybe"}, "--deadline"},
      {{"--insecure", "--max-rounds=3", "--deadline-floor-ms=9", "--deadline-ceiling-ms=8"},
       "--deadline-floor-ms"},
      {{"--insecure", "--max-rounds=3", "--workers-min=9", "--workers-max=8"}, "--workers-min"},
      {{"--insecure", "--max-rounds=3", "--workers-max=5000"}, "--workers-max"},
      {{"--insecure", "--max-rounds=3", "--quorum=65"}, "--quorum"},
      {{"--insecure", "--max-rounds=3", "--chunk-coordinates=513"}, "--chunk-coordinates"},
      {{"--insecure", "--max-rounds=3", "--chunk-coordinates=1073741824"}, "--message-bytes-max"},
      {{"--insecure", "--max-rounds=3", "--message-bytes-max=67108865"},
       "--message-bytes-max 67108865 is above 67108864"},
      {{"--insecure", "--max-rounds=3", "--listen=here"}, "--listen"},
      {{"--insecure", "--max-rounds=3", "--listen=127.0.0.1:70000"}, "--listen"},
      {{"--insecure", "--max-rounds=3", "--listen=0.0.0.0:7070"}, "--insecure-bind"},
      {{"--insecure", "--max-rounds=3", "--http=9151"}, "--http"},
      {{"--insecure", "--max-rounds=3", "--tls-ca=a"}, "--insecure"},
      {{"--insecure", "--max-rounds=3", "--log-level=loud"}, "log level"},
      {{"--insecure", "--max-rounds=3", "--wait-timeout=nan"}, "--wait-timeout"},
      {{"--insecure", "--max-rounds=3", "--linger=nan"}, "--linger"},
      {{"--insecure", "--max-rounds=3", "--seed=-1"}, "--seed"},
      {{"--insecure", "--max-rounds=3", "--weight-decay=-1"}, "--weight-decay"},
      {{"--insecure", "--max-rounds=3", "--deadline-growth=0.5"}, "--deadline-growth"},
      {{"--insecure", "--max-rounds=3", "--nonfinite-rounds=0"}, "--nonfinite-rounds"},
      {{"--insecure", "--max-rounds=3", "--direction=up"}, "--direction"},
      {{"--insecure", "--max-rounds=3", "--catch-up-bytes=x"}, "--catch-up-bytes"},
      {{"--insecure", "--max-rounds=3", "--beta=1"}, "beta"},
      {{"--insecure", "--max-rounds=3", "--direction=adam", "--beta2=1"}, "beta2"},
      {{"--insecure", "--max-rounds=3", "--beta2=x"}, "--beta2 x"},
      {{"--insecure", "--max-rounds=3", "--noise=loud"}, "--noise"},
      {{"--insecure", "--max-rounds=3", "--momentum=off"},
       "--momentum off belongs to --direction stosign, and the direction is signum"},
      {{"--insecure", "--max-rounds=3", "--noise-decay=0.5"},
       "--noise-decay 0.5 belongs to --noise coordinate, and the noise is off"},
      {{"--insecure", "--max-rounds=3", "--direction=stosign", "--noise-decay=0"}, "decay is 0"},
      {{"--insecure", "--max-rounds=3", "--error-feedback"},
       "--error-feedback belongs to --direction signsgd"},
      {{"--insecure", "--max-rounds=3", "--direction=signsgd", "--error-feedback"},
       "--error-feedback belongs to --rule fixed, and the rule is alias"},
      {{"--insecure", "--max-rounds=3", "--feedback-keep=0.5"}, "belongs to --error-feedback"},
      {{"--insecure", "--max-rounds=3", "--local-steps=0"}, "--local-steps 0"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--rule=alias"},
       "the rule alias goes by the one gradient of a round, and --local-steps 16 takes several"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--direction=adam"},
       "lion, or with --dense '*' also adam or sgd, and the direction is adam"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--direction=signsgd",
        "--error-feedback", "--rule=fixed"},
       "--local-steps 16 goes not with --error-feedback"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--noise=one"}, "give --noise off"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--clip=norm"}, "with --clip norm"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--dense=head.*", "--rule=fixed"},
       "moves by the workers' mean displacement, of which --dense-optimizer adamw knows nothing"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--dense=*", "--dense-optimizer=sgd"},
       "takes its inner stepsize from --rule fixed, and the rule is lever"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--dense=head.*", "--direction=adam",
        "--dense-optimizer=sgd", "--rule=fixed"},
       "with --dense '*' also adam or sgd, and the direction is adam"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--dense=*", "--direction=adam",
        "--dense-optimizer=sgd", "--rule=fixed"},
       "give --noise off"},
      {{"--insecure", "--max-rounds=3", "--dense=*", "--dense-optimizer=sgd",
        "--dense-stepsize=0.7"},
       "--dense-stepsize belongs to --dense with --local-steps"},
      {{"--insecure", "--max-rounds=3", "--local-steps=16", "--tensor-treatment=*=sparse"},
       "with --tensor-treatment *=sparse"},
      {{"--insecure", "--max-rounds=3", "--warm-in=x"}, "--warm-in"},
      {{"--insecure", "--max-rounds=3", "--direction=signsgd", "--error-feedback",
        "--state-dtype=bf16"},
       "leave --state-dtype away"},
      {{"--insecure", "--max-rounds=3", "--direction=signsgd", "--error-feedback", "--rule=fixed",
        "--tensor-treatment=*embed*=sparse"},
       "--tensor-treatment *embed*=sparse casts coins that --error-feedback does not make good"},
      {{"--insecure", "--max-rounds=3", "--tensor-treatment=*embed*=plain"},
       "--tensor-treatment *embed*=plain belongs to --direction muon, and the direction is signum"},
      {{"--insecure", "--max-rounds=3", "--direction=stosign", "--noise-decay=0.5",
        "--state-dtype=bf16"},
       "--noise-decay 0.5 needs --state-dtype f32"},
      {{"--insecure", "--max-rounds=3", "--direction=stosign", "--noise-decay=1e-50"},
       "must be above 0 in fp32"},
      {{"--insecure", "--max-rounds=3", "--beta2=0.99"},
       "--beta2 0.99 belongs to --direction lion and adam, and the direction is signum"},
      {{"--insecure", "--max-rounds=3", "--direction=signsgd", "--beta=0.5"},
       "--beta 0.5 is a momentum's, and --direction signsgd has none"},
      {{"--insecure", "--max-rounds=3", "--direction=stosign", "--momentum=off", "--beta=0.5"},
       "--direction stosign --momentum off has none"},
      {{"--insecure", "--max-rounds=3", "--state-dtype=f16"}, "--state-dtype"},
      {{"--insecure", "--max-rounds=3", "--clip=value"}, "--clip"},
      {{"--insecure", "--max-rounds=3", "--clip=norm", "--clip-norm=0"}, "--clip-norm"},
      {{"--insecure", "--max-rounds=3", "--clip-norm=2"}, "--clip-norm 2 belongs to --clip norm"},
      {{"--insecure", "--max-rounds=3", "--tensor-scale=a"}, "--tensor-scale a: give PATTERN="},
      {{"--insecure", "--max-rounds=3", "--tensor-decay=a=2"}, "--tensor-decay a=2"},
      {{"--insecure", "--max-rounds=3", "--tensor-treatment=a=b"}, "--tensor-treatment a=b"},
      {{"--insecure", "--max-rounds=3", "--share-hold=-1"}, "--share-hold"},
      {{"--insecure", "--max-rounds=3", "--digest-every=-1"}, "--digest-every"},
      {{"--insecure", "--max-rounds=3", "--test-applier-delay-ms=-1"}, "--test-applier-delay-ms"},
      {{"--insecure", "--max-rounds=3", "--export=e", "--export-dtype=f16"}, "--export-dtype"},
      {{"--insecure", "--max-rounds=3", "--export-dtype=bf16"}, "need --export FILE"},
      {{"--insecure", "--max-rounds=3", "--export-shard-bytes=9"}, "need --export FILE"},
      {{"--insecure", "--max-rounds=3", "--rule=bogus"},
       "use auto, alias, fixed, lever, mechanic, prodigy or sos"},
      {{"--insecure", "--max-rounds=3", "--alias-eta0=-1"}, "--alias-eta0"},
      {{"--insecure", "--max-rounds=3", "--alias-eta0=nan"}, "--alias-eta0"},
      {{"--insecure", "--max-rounds=3", "--alias-eta0=none"}, "--alias-eta0"},
      {{"--insecure", "--max-rounds=3", "--rule=fixed", "--stepsize=nan"}, "stepsize nan"},
      {{"--insecure", "--max-rounds=3", "--rule=fixed", "--warmup-rounds=99999999999999999999"},
       "--warmup-rounds"},
      {{"--max-rounds=3"}, "--tls-certificate"},
      {{"--max-rounds=3", "--tls-ca=a", "--tls-certificate=b", "--tls-key=c"}, "--tokens"},
      {{"--max-rounds=3", "--insecure-bind=0.0.0.0", "--tokens=t"}, "--insecure-bind"},
  };
  for (const auto& [words, named] : cases) {
    ServerFlags flags;
    const absl::Status status = Parse(words, &flags);
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage) << Describe(status);
    EXPECT_THAT(Describe(status), HasSubstr(named));
  }
}

TEST(ServerFlagsTest, ADirectionsChoicesAreItsOwnUnlessTheyAreSaid) {
  const auto of = [](std::vector<const char*> words) {
    words.insert(words.end(), {"--insecure", "--max-rounds=3"});
    ServerFlags flags;
    const absl::Status status = Parse(words, &flags);
    EXPECT_TRUE(status.ok()) << Describe(status);
    return flags.run.direction;
  };
  EXPECT_EQ(of({}), DirectionConfig());
  EXPECT_EQ(of({"--direction=stosign"}),
            (DirectionConfig{.kind = DirectionKind::kStoSign, .envelope = Envelope::kCoordinate}));
  EXPECT_EQ(of({"--direction=adam"}),
            (DirectionConfig{
                .kind = DirectionKind::kAdam, .beta2 = 0.999, .envelope = Envelope::kCoordinate}));
  EXPECT_EQ(of({"--direction=muon", "--beta=0.95"}),
            (DirectionConfig{.kind = DirectionKind::kMuon, .beta = 0.95}));
  // The three ablations of StoSign, and the noise of another direction.
  EXPECT_EQ(of({"--direction=stosign", "--noise=off"}),
            (DirectionConfig{.kind = DirectionKind::kStoSign}));
  EXPECT_EQ(of({"--direction=stosign", "--noise=one"}),
            (DirectionConfig{.kind = DirectionKind::kStoSign, .envelope = Envelope::kOne}));
  EXPECT_EQ(of({"--direction=stosign", "--momentum=off"}),
            (DirectionConfig{
                .kind = DirectionKind::kStoSign, .beta = 0, .envelope = Envelope::kCoordinate}));
  EXPECT_EQ(of({"--direction=lion", "--noise=tensor", "--state-dtype=bf16"}),
            (DirectionConfig{.kind = DirectionKind::kLion,
                             .envelope = Envelope::kTensor,
                             .state_dtype = StateDtype::kBf16}));
  EXPECT_EQ(of({"--direction=signsgd", "--error-feedback", "--feedback-keep=0.7", "--rule=fixed"}),
            (DirectionConfig{
                .kind = DirectionKind::kSignSgd, .error_feedback = true, .feedback_keep = 0.7}));
}

TEST(ServerFlagsTest, ClipAndRulesForSingleTensorsReachTheRun) {
  ServerFlags flags;
  const absl::Status status =
      Parse({"--insecure", "--max-rounds=3", "--clip=norm", "--clip-norm=0.5",
             "--tensor-scale=*=fan-in,head=2", "--tensor-decay=*norm*=0",
             "--tensor-treatment=*embed*=sparse"},
            &flags);
  ASSERT_TRUE(status.ok()) << Describe(status);
  EXPECT_EQ(flags.run.clip_norm, 0.5);
  ASSERT_EQ(flags.run.model.tensor_rules.size(), 4u);
  EXPECT_TRUE(flags.run.model.tensor_rules[0].fan_in);
  EXPECT_EQ(flags.run.model.tensor_rules[1].step_scale, 2.0f);
  EXPECT_EQ(flags.run.model.tensor_rules[2].weight_decay, 0.0f);
  EXPECT_EQ(flags.run.model.tensor_rules[3].treatment, TensorTreatment::kSparse);
  ServerFlags untouched;
  ASSERT_TRUE(Parse({"--insecure", "--max-rounds=3"}, &untouched).ok());
  EXPECT_EQ(untouched.run.clip_norm, std::nullopt);
  EXPECT_TRUE(untouched.run.model.tensor_rules.empty());
}

TEST(ServerFlagsTest, EtaIsANumberOrComesFromTheModelThatTheRunStartsFrom) {
  ServerFlags automatic;
  ASSERT_TRUE(Parse({"--insecure", "--max-rounds=3", "--alias-eta0=auto"}, &automatic).ok());
  EXPECT_FALSE(automatic.run.rule.alias_eta0.has_value());
  for (const auto& [word, eta0] :
       {std::pair{"--alias-eta0=0", 0.0}, std::pair{"--alias-eta0=2.5e7", 2.5e7}}) {
    ServerFlags flags;
    ASSERT_TRUE(Parse({"--insecure", "--max-rounds=3", word}, &flags).ok());
    EXPECT_EQ(flags.run.rule.alias_eta0, eta0);
  }
}

TEST(ServerFlagsTest, RulesThatNeedSignsOrLengthsRefuseWhatHasNone) {
  const auto refusal = [](std::vector<const char*> words) {
    words.insert(words.end(), {"--insecure", "--max-rounds=800"});
    ServerFlags flags;
    const absl::Status status = Parse(words, &flags);
    if (!status.ok()) EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage);
    return status.ok() ? std::string() : Describe(status);
  };
  for (const char* what : {"--aggregate=average", "--dense=head*"}) {
    EXPECT_THAT(refusal({what, "--rule=alias", "--alias-option=I"}), HasSubstr("needs the signs"))
        << what;
    EXPECT_THAT(refusal({what, "--rule=alias", "--alias-probe=directional"}),
                HasSubstr("needs the signs"));
    for (const char* rule : {"--rule=fixed", "--rule=lever", "--rule=mechanic"})
      EXPECT_EQ(refusal({what, rule}), "") << rule;
  }
  for (const char* rule : {"--rule=alias", "--rule=prodigy", "--rule=sos"}) {
    EXPECT_EQ(refusal({"--aggregate=average", rule}), "") << rule;
    EXPECT_THAT(refusal({"--dense=head*", rule}), HasSubstr("goes by the length of a step"));
  }
  EXPECT_THAT(refusal({"--dense=*", "--rule=fixed", "--direction=signsgd", "--error-feedback"}),
              HasSubstr("leave one of them away"));
}

TEST(ServerFlagsTest, AnOptimizersFlagsAreOfItAlone) {
  const auto parse = [](std::vector<const char*> words, ServerFlags* flags) {
    words.insert(words.end(), {"--insecure", "--max-rounds=3", "--rule=fixed"});
    return Parse(words, flags);
  };
  ServerFlags flags;
  ASSERT_TRUE(
      parse({"--dense=*", "--dense-beta1=0.625", "--dense-beta2=0.875", "--dense-epsilon=0.25"},
            &flags)
          .ok());
  const DenseOptimizer& optimizer = flags.run.model.sizes.dense.optimizer;
  EXPECT_EQ(optimizer.kind, DenseOptimizer::Kind::kAdamW);
  EXPECT_EQ(optimizer.beta1, 0.625f);
  EXPECT_EQ(optimizer.beta2, 0.875f);
  EXPECT_EQ(optimizer.epsilon, 0.25f);
  const std::vector<std::pair<std::vector<const char*>, const char*>> cases = {
      {{"--dense-wire=bf16"}, "--dense-wire belongs to --dense"},
      {{"--dense-optimizer=sgd"}, "--dense-optimizer belongs to --dense"},
      {{"--dense-beta1=0.5"}, "--dense-beta1 belongs to --dense with --dense-optimizer adamw"},
      {{"--dense=*", "--dense-momentum=0.5"},
       "--dense-momentum belongs to --dense with --dense-optimizer sgd"},
      {{"--dense=*", "--dense-optimizer=sgd", "--dense-beta2=0.5"}, "--dense-beta2 belongs to"},
      {{"--dense=*", "--dense-optimizer=sgd", "--dense-epsilon=1"}, "--dense-epsilon belongs to"},
      {{"--dense=*", "--dense-beta2=1"}, "--dense-beta2 1 is out of range"},
      {{"--dense=*", "--dense-epsilon=0"}, "--dense-epsilon 0 is out of range"},
      {{"--dense=*", "--dense-nesterov"},
       "--dense-nesterov belongs to --dense with --dense-optimizer sgd"},
      {{"--dense=*", "--dense-optimizer=sgd", "--dense-nesterov"}, "--dense-momentum is 0"},
      {{"--dense=*", "--dense-d0=1"},
       "--dense-d0 belongs to --dense with --dense-optimizer alias-adam"},
      {{"--dense=*", "--dense-optimizer=alias-adam", "--dense-d0=0"},
       "--dense-d0 0 is out of range"},
      {{"--dense=*", "--dense-optimizer=schedule-free", "--dense-beta1=0"},
       "--dense-beta1 0 is out of range; use a number above 0"},
      {{"--dense=*", "--dense-optimizer=schedule-free", "--schedule=cosine"},
       "use --rule fixed --schedule constant"},
      {{"--dense=*", "--dense-optimizer=schedule-free", "--weight-decay=0.1"},
       "schedule-free decays no weights"},
      {{"--dense=*", "--dense-optimizer=schedule-free", "--tensor-decay=a=0.1"},
       "schedule-free decays no weights"},
      {{"--dense=a,,b"}, "--dense a,,b: give PATTERN"},
  };
  for (const auto& [words, culprit] : cases) {
    ServerFlags refused;
    const absl::Status status = parse(words, &refused);
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage) << culprit;
    EXPECT_THAT(Describe(status), HasSubstr(culprit));
  }
}

TEST(ServerFlagsTest, AnOptimizerThatAveragesKnowsTheRunsLengthAndWarmUp) {
  ServerFlags flags;
  ASSERT_TRUE(Parse({"--insecure", "--max-rounds=30", "--rule=fixed", "--warmup-rounds=5",
                     "--dense=*", "--dense-optimizer=schedule-free", "--tensor-decay=a=0"},
                    &flags)
                  .ok());
  const DenseOptimizer& optimizer = flags.run.model.sizes.dense.optimizer;
  EXPECT_EQ(optimizer.kind, DenseOptimizer::Kind::kScheduleFree);
  EXPECT_EQ(optimizer.warmup_steps, 5u);
  EXPECT_EQ(optimizer.last_step, 30u);
  ServerFlags lever;
  EXPECT_THAT(Describe(Parse({"--insecure", "--max-rounds=600", "--rule=lever", "--dense=*",
                              "--dense-optimizer=schedule-free"},
                             &lever)),
              HasSubstr("the run has --rule lever"));
}

TEST(ServerFlagsTest, ARunOfUnknownLengthNeedsNoNumberOfRoundsAndItsRuleIsNotToldOne) {
  ServerFlags endless, ended;
  ASSERT_TRUE(Parse({"--insecure", "--length-unknown"}, &endless).ok());
  EXPECT_EQ(endless.run.main_rounds_max, 0u);
  ASSERT_TRUE(
      Parse({"--insecure", "--rule=lever", "--length-unknown", "--max-rounds=60"}, &ended).ok());
  EXPECT_EQ(ended.run.main_rounds_max, 60u);
  EXPECT_EQ(run::RuleRunOf(ended.run).main_rounds_max, 0u);
  EXPECT_EQ(ChosenRule(endless.run.rule, run::RuleRunOf(endless.run)), "lever");
  const absl::Status fixed =
      Parse({"--insecure", "--rule=fixed", "--length-unknown", "--max-rounds=60"}, &ended);
  EXPECT_THAT(Describe(fixed), HasSubstr("--length-unknown belongs to --rule lever"));
  const absl::Status local = Parse({"--insecure", "--length-unknown", "--local-steps=4"}, &ended);
  EXPECT_THAT(Describe(local), HasSubstr("--length-unknown goes not with --local-steps 4"));
}

TEST(ServerFlagsTest, AChunkOfCountsMustFitIntoAMessage) {
  const std::vector<const char*> words = {"--insecure", "--max-rounds=3",
                                          "--chunk-coordinates=33554432",
                                          "--session-buffer-bytes=67108864"};
  ServerFlags votes;
  EXPECT_TRUE(Parse(words, &votes).ok()) << "4 MiB";
  std::vector<const char*> average = words;
  average.push_back("--aggregate=average");
  ServerFlags flags;
  const absl::Status status = Parse(average, &flags);
  EXPECT_THAT(Describe(status), HasSubstr("chunks of 29360128 bytes")) << "seven planes count 64";
}

TEST(ServerFlagsTest, AFlagOfAnotherRuleIsNotIgnored) {
  const std::vector<std::pair<std::vector<const char*>, const char*>> cases = {
      {{"--stepsize=0.1"}, "--stepsize belongs to --rule fixed, and the rule is alias"},
      {{"--schedule=cosine"}, "--schedule belongs to --rule fixed, mechanic or prodigy"},
      {{"--warmup-rounds=3"}, "--warmup-rounds belongs to --rule fixed, mechanic or prodigy"},
      {{"--rule=fixed", "--alias-option=I"}, "--alias-option belongs to --rule alias"},
      {{"--rule=fixed", "--alias-f-min=1"}, "--alias-f-min belongs to --rule alias"},
      {{"--rule=fixed", "--alias-d0=1"}, "--alias-d0 belongs to --rule alias"},
      {{"--rule=fixed", "--alias-probe-every=2"}, "--alias-probe-every belongs to --rule alias"},
      {{"--rule=fixed", "--alias-probe=previous"}, "--alias-probe belongs to --rule alias"},
      {{"--rule=fixed", "--alias-extrema-scale=2"},
       "--alias-extrema-scale belongs to --rule alias"},
      {{"--lever-start=2"}, "--lever-start belongs to --rule lever, and the rule is alias"},
      {{"--rule=mechanic", "--lever-form=lite"}, "--lever-form belongs to --rule lever"},
      {{"--rule=prodigy", "--lever-race=off"}, "--lever-race belongs to --rule lever"},
      {{"--rule=lever", "--rival-start=2"},
       "--rival-start belongs to --rule mechanic, prodigy or sos, and the rule is lever"},
      {{"--rule=fixed", "--alias-eta0=0"}, "--alias-eta0 belongs to --rule alias"},
  };
  for (const auto& [given, text] : cases) {
    std::vector<const char*> words = given;
    words.insert(words.end(), {"--insecure", "--max-rounds=3"});
    ServerFlags flags;
    const absl::Status status = Parse(words, &flags);
    EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage) << text;
    EXPECT_THAT(Describe(status), HasSubstr(text));
  }
  // What a printed configuration repeats.
  ServerFlags flags;
  EXPECT_TRUE(
      Parse({"--insecure", "--max-rounds=3", "--stepsize=0.001", "--schedule=constant"}, &flags)
          .ok());
}

TEST(ServerFlagsTest, AConfigFileHasTheSameNamesAndPrintConfigWritesOne) {
  TempDir dir;
  const std::string path = dir / "run.toml";
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), path,
                                  "insecure = true\nmax-rounds = 12\nseed = 5\n", 0644)
                  .ok());
  ServerFlags flags;
  absl::Status status = Parse({"--config", path.c_str(), "--seed=6"}, &flags);
  ASSERT_TRUE(status.ok()) << Describe(status);
  EXPECT_EQ(flags.run.main_rounds_max, 12u);
  EXPECT_EQ(flags.run.seed, 6u);  // the command line wins

  ServerFlags printed;
  ASSERT_TRUE(Parse({"--config", path.c_str(), "--print-config"}, &printed).ok());
  ASSERT_TRUE(printed.print.has_value());
  EXPECT_THAT(*printed.print, AllOf(HasSubstr("max-rounds=12"), HasSubstr("seed=5"),
                                    HasSubstr("\n# tls-ca=\"\"\n")));
  const std::string again = dir / "again.toml";
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), again, *printed.print, 0644).ok());
  ServerFlags reread;
  status = Parse({"--config", again.c_str()}, &reread);
  ASSERT_TRUE(status.ok()) << Describe(status);
  EXPECT_EQ(reread.run.main_rounds_max, 12u);
  EXPECT_EQ(reread.run.seed, 5u);

  ServerFlags unknown;
  ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), path, "max-round = 12\n", 0644).ok());
  status = Parse({"--insecure", "--config", path.c_str()}, &unknown);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kUsage);
  EXPECT_THAT(Describe(status), HasSubstr("max-round"));
  ServerFlags missing;
  status = Parse({"--insecure", "--max-rounds=2", "--config=/does/not/exist"}, &missing);
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput) << Describe(status);
}

TEST(ServerFlagsTest, HelpNamesTheFlags) {
  ServerFlags flags;
  ASSERT_TRUE(Parse({"--help"}, &flags).ok());
  ASSERT_TRUE(flags.print.has_value());
  EXPECT_THAT(*flags.print, AllOf(HasSubstr("--max-rounds"), HasSubstr("--insecure-bind"),
                                  HasSubstr("--tokens")));
}

}  // namespace
}  // namespace signvote
