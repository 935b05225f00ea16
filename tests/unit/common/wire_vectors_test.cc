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
#include "common/layout.h"
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

// Reads the layout's canonical bytes as the page defines them.
Layout LayoutFromBytes(const std::string& bytes) {
  const std::string magic = "signvote-layout-1";
  EXPECT_EQ(bytes.substr(0, magic.size()), magic);
  size_t at = magic.size();
  const auto read = [&](auto* value) {
    ASSERT_LE(sizeof(*value), bytes.size() - at);
    std::memcpy(value, bytes.data() + at, sizeof(*value));
    at += sizeof(*value);
  };
  std::vector<TensorSpec> tensors;
  while (at < bytes.size()) {
    TensorSpec t;
    uint32_t name_bytes = 0, rank = 0;
    read(&name_bytes);
    t.name = bytes.substr(at, name_bytes);
    at += name_bytes;
    read(&rank);
    t.shape.resize(rank);
    for (uint64_t& dimension : t.shape) read(&dimension);
    read(&t.step_scale);
    read(&t.weight_decay);
    tensors.push_back(t);
  }
  auto layout = Layout::Make(tensors);
  EXPECT_TRUE(layout.ok()) << Describe(layout.status());
  return layout.ok() ? *std::move(layout) : Layout();
}

std::string Packed(const std::string& signs) {
  std::vector<uint8_t> bytes(BytesForBits(signs.size()));
  for (size_t i = 0; i < signs.size(); ++i) SetBit(bytes.data(), i, signs[i] == '+');
  return ToHex(bytes);
}

std::string Applied(std::map<std::string, std::string> args) {
  const auto value = [&](const char* key) { return FloatFromHex(args.at(key)); };
  const auto layout = Layout::Make(
      {{.name = "x", .shape = {1}, .step_scale = value("scale"), .weight_decay = value("decay")}});
  EXPECT_TRUE(layout.ok()) << Describe(layout.status());
  float x = value("x");
  const float x0 = value("x0");
  const uint8_t bit = args.at("bit") == "1" ? 1 : 0;
  ApplyStep(*layout, {.gamma = value("gamma"), .rho = value("rho")}, 0, 1, &bit, 0, &x0, &x);
  return HexFloat(x);
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
  if (kind == "layout") return Hex64(LayoutFromBytes(FromHex(args.at(""))).digest());
  if (kind == "apply") return Applied(args);
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
  for (const char* kind : {"packed", "fin", "tie", "own", "layout", "apply", "replica", "xxh3"}) {
    EXPECT_GT(seen[kind], 0) << "the page has no vector of kind " << kind;
  }
}

}  // namespace
}  // namespace signvote
