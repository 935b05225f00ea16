// Goal: what docs/wire_format.md tells other languages to compute is what this code computes.
// Method: every line of the page's ```vectors blocks is recomputed; an unknown kind of line fails.
#include <gtest/gtest.h>

#include <bit>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "common/apply.h"
#include "common/apply_kernels.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/coin.h"
#include "common/coin_mix.h"
#include "common/half_float.h"
#include "common/layout.h"
#include "common/local_steps.h"
#include "common/payload_plan.h"
#include "common/status.h"
#include "tests/support/page_vectors.h"

namespace signvote {
namespace {

std::string Hex64(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, value);
  return text;
}

std::string HexFloat(float value) {
  char text[9];
  std::snprintf(text, sizeof(text), "%08" PRIx32, std::bit_cast<uint32_t>(value));
  return text;
}

std::string FromHex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

std::string ToHex(const std::vector<uint8_t>& bytes) {
  std::string hex;
  char two[3];
  for (const uint8_t byte : bytes) {
    std::snprintf(two, sizeof(two), "%02x", byte);
    hex += two;
  }
  return hex;
}

float FloatFromHex(const std::string& hex) {
  return std::bit_cast<float>(static_cast<uint32_t>(std::stoul(hex, nullptr, 16)));
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> words;
  size_t begin = 0;
  for (size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + 1)
    words.push_back(text.substr(begin, end - begin));
  words.push_back(text.substr(begin));
  return words;
}

// "w:2x3,b:" is a matrix and a scalar. Scales and decays are drawn: the digest must not see them.
std::string LayoutDigest(const std::string& text, const std::string& bytes) {
  std::vector<TensorSpec> tensors;
  for (const std::string& tensor : Split(text, ',')) {
    const size_t colon = tensor.rfind(':');
    TensorSpec spec{.name = tensor.substr(0, colon)};
    for (const std::string& dimension : Split(tensor.substr(colon + 1), 'x')) {
      if (!dimension.empty()) spec.shape.push_back(std::stoull(dimension));
    }
    spec.step_scale = 1.0f + static_cast<float>(tensors.size());
    spec.weight_decay = 0.25f * static_cast<float>(tensors.size());
    tensors.push_back(std::move(spec));
  }
  const auto layout = Layout::Make(std::move(tensors));
  EXPECT_TRUE(layout.ok()) << Describe(layout.status());
  EXPECT_EQ(Hex64(Xxh3(bytes.data(), bytes.size())), Hex64(layout->digest()))
      << "the page's bytes are not what the digest is taken of";
  return layout.ok() ? Hex64(layout->digest()) : "";
}

// "-" is the empty list.
std::string HashOfPayload(const std::string& counted, const std::string& checksums) {
  std::vector<ChunkSum> chunks;
  if (counted != "-") {
    const std::vector<std::string> hashes = Split(checksums, ',');
    for (const std::string& ballots : Split(counted, ',')) {
      chunks.push_back({.counted = static_cast<uint32_t>(std::stoul(ballots)),
                        .checksum = std::stoull(hashes.at(chunks.size()), nullptr, 16)});
    }
    EXPECT_EQ(chunks.size(), hashes.size());
  }
  return Hex64(PayloadHash(chunks));
}

// The name of a domain is its eight bytes, read as a little-endian number.
std::string Domain(const std::string& name, uint64_t seed) {
  uint64_t number = 0;
  EXPECT_EQ(name.size(), sizeof(number));
  std::memcpy(&number, name.data(), sizeof(number));
  EXPECT_TRUE(number == kUniformDomain || number == kInitDomain || number == kDataDomain)
      << name << " is nobody's domain";
  return Hex64(DomainSeed(number, seed));
}

std::string Packed(const std::string& signs) {
  std::vector<uint8_t> bytes(BytesForBits(signs.size()));
  for (size_t i = 0; i < signs.size(); ++i) SetBit(bytes.data(), i, signs[i] == '+');
  return ToHex(bytes);
}

// How many of the ballots have bit 1, per coordinate, as planes.
std::string Planes(const std::string& ones, uint32_t ballots) {
  const std::vector<std::string> counts = Split(ones, ',');
  const size_t plane = BytesForBits(counts.size());
  std::vector<uint8_t> bytes(CountPlanes(ballots) * plane);
  for (uint32_t p = 0; p < CountPlanes(ballots); ++p) {
    for (size_t i = 0; i < counts.size(); ++i)
      SetBit(bytes.data() + p * plane, i, ((std::stoul(counts[i]) >> p) & 1u) != 0);
  }
  return ToHex(bytes);
}

std::string Applied(const std::string& kind, std::map<std::string, std::string> args) {
  const auto value = [&](const char* key) { return FloatFromHex(args.at(key)); };
  const auto layout = Layout::Make(
      {{.name = "x", .shape = {1}, .step_scale = value("scale"), .weight_decay = value("decay")}});
  EXPECT_TRUE(layout.ok()) << Describe(layout.status());
  float x = value("x");
  const float x0 = value("x0");
  StepArguments step{.gamma = value("gamma"), .rho = value("rho")};
  if (args.contains("decay_step")) step.decay_step = value("decay_step");
  const std::vector<float> factors(args.contains("factor") ? 1 : 0,
                                   args.contains("factor") ? value("factor") : 0);
  step.scales = factors;
  if (kind == "dense") {
    const std::string& hex = args.at("value");
    const auto value = static_cast<uint32_t>(std::stoul(hex, nullptr, 16));
    ApplyDense(*layout, step, 0, 1,
               {.values = reinterpret_cast<const uint8_t*>(&value), .bf16 = hex.size() == 4}, &x0,
               &x);
  } else if (kind == "average") {
    const auto ballots = static_cast<uint32_t>(std::stoul(args.at("ballots")));
    std::vector<uint8_t> planes(CountPlanes(ballots));
    for (uint32_t p = 0; p < planes.size(); ++p)
      planes[p] = static_cast<uint8_t>((std::stoul(args.at("ones")) >> p) & 1u);
    ApplyCounts(*layout, step, 0, 1,
                {.planes = planes.data(), .plane_bytes = 1, .ballots = ballots}, &x0, &x);
  } else {
    const uint8_t bit = args.at("bit") == "1" ? 1 : 0;
    ApplyStep(*layout, step, 0, 1, &bit, 0, &x0, &x);
  }
  return HexFloat(x);
}

std::string Rewound(const std::string& x_hex, const std::string& x0_hex) {
  float x = FloatFromHex(x_hex);
  const float x0 = FloatFromHex(x0_hex);
  ApplyRewind(1, &x0, &x);
  return HexFloat(x);
}

std::string InnerStepsizes(const LocalSteps& local) {
  std::string text;
  for (uint32_t h = 0; h < local.steps; ++h) text += HexFloat(InnerStepsize(local, h)) + ",";
  return text + HexFloat(static_cast<float>(InnerStepsizeSum(local)));
}

std::string Replica(uint64_t n) {
  std::vector<float> x(n);
  for (uint64_t i = 0; i < n; ++i) x[i] = static_cast<float>(i) / 4.0f - 100.0f;
  return Hex64(ReplicaDigest(x.data(), 0, n));
}

std::string Recomputed(const std::string& kind, const std::map<std::string, std::string>& args) {
  const auto number = [&](const char* key) { return std::stoull(args.at(key)); };
  if (kind == "packed") return Packed(args.at(""));
  if (kind == "fin") return Hex64(Fin(std::stoull(args.at(""), nullptr, 16)));
  if (kind == "tie")
    return Hex64(TieCoinWord(number("seed"), Round(number("round")), number("word")));
  if (kind == "own") {
    return Hex64(OwnCoinWord(number("seed"), Round(number("round")),
                             Share(static_cast<uint32_t>(number("share"))), number("word")));
  }
  if (kind == "domain") return Domain(args.at("name"), number("seed"));
  if (kind == "uniform") {
    return Hex64(UniformWord(number("seed"), Round(number("round")),
                             Share(static_cast<uint32_t>(number("share"))), number("word")));
  }
  if (kind == "layout") return LayoutDigest(args.at("tensors"), FromHex(args.at("bytes")));
  if (kind == "payload") return HashOfPayload(args.at("counted"), args.at("checksums"));
  if (kind == "rewind") return Rewound(args.at("x"), args.at("x0"));
  if (kind == "bf16") {
    const uint16_t narrow = NarrowBf16(FloatFromHex(args.at("")));
    const uint8_t high_first[] = {static_cast<uint8_t>(narrow >> 8), static_cast<uint8_t>(narrow)};
    return ToHex(std::vector<uint8_t>(high_first, high_first + 2));
  }
  if (kind == "apply" || kind == "average" || kind == "dense") return Applied(kind, args);
  if (kind == "planes") {
    return Planes(args.at("ones"), static_cast<uint32_t>(number("ballots")));
  }
  if (kind == "inner") {
    return InnerStepsizes({.steps = static_cast<uint32_t>(number("steps")),
                           .eta_first = FloatFromHex(args.at("first")),
                           .eta_last = FloatFromHex(args.at("last"))});
  }
  if (kind == "replica") return Replica(number("n"));
  if (kind == "xxh3") {
    const std::string bytes = args.at("") == "\"\"" ? "" : FromHex(args.at(""));
    return Hex64(Xxh3(bytes.data(), bytes.size(), number("seed")));
  }
  return "unknown kind of vector";
}

TEST(WireFormat, EveryTestVectorOfThePageIsTrue) {
  std::map<std::string, int> seen;
  for (const PageVector& vector : PageVectors(SIGNVOTE_SOURCE_DIR "/docs/wire_format.md")) {
    EXPECT_EQ(Recomputed(vector.kind, vector.arguments), vector.result) << vector.line;
    ++seen[vector.kind];
  }
  for (const char* kind :
       {"packed", "fin", "tie", "own", "domain", "uniform", "layout", "apply", "average", "planes",
        "dense", "bf16", "rewind", "payload", "replica", "xxh3", "inner"}) {
    EXPECT_GT(seen[kind], 0) << "the page has no vector of kind " << kind;
  }
}

}  // namespace
}  // namespace signvote
