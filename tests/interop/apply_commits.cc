// Applies commits as the server and our workers do, for clients in other languages to be compared
// with. Reads lines, floats as 8 hexadecimal digits, buffers as hexadecimal bytes:
//
//   layout COUNT:STEP_SCALE:WEIGHT_DECAY …     once, first: the tensors in the run's order
//   x BYTES                                    once: the replica, little-endian fp32
//   x0 BYTES                                   once: the run's starting point
//   step GAMMA RHO DECAY_STEP SCALES|- BITS    SCALES separated by commas
//   average GAMMA RHO DECAY_STEP SCALES|- PLANES BALLOTS    planes of the whole model, its one chunk
//   rewind
//   none
//
// and prints the replica's digest (docs/wire_format.md, "Replica digest"). Exit status 1, with a
// sentence on stderr, for anything else.

#include <bit>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "common/apply.h"
#include "common/bits.h"
#include "common/checksum.h"
#include "common/layout.h"
#include "common/payload_plan.h"
#include "common/status.h"

namespace signvote {
namespace {

float Float(const std::string& hex) {
  return std::bit_cast<float>(static_cast<uint32_t>(std::stoul(hex, nullptr, 16)));
}

std::vector<uint8_t> Bytes(const std::string& hex) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

std::vector<float> Floats(const std::string& hex) {
  const std::vector<uint8_t> bytes = Bytes(hex);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// Reads the tensors that follow the word "layout".
absl::StatusOr<Layout> ReadLayout(std::istringstream& words) {
  std::vector<TensorSpec> tensors;
  for (std::string word; words >> word;) {
    const size_t colon = word.find(':');
    TensorSpec tensor;
    tensor.name = "t" + std::to_string(tensors.size());
    tensor.shape = {std::stoull(word.substr(0, colon))};
    tensor.step_scale = Float(word.substr(colon + 1, 8));
    tensor.weight_decay = Float(word.substr(colon + 10, 8));
    tensors.push_back(std::move(tensor));
  }
  return Layout::Make(std::move(tensors));
}

absl::Status Run(std::istream& in) {
  Layout layout;
  std::vector<float> x, x0;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string kind, bytes;
    words >> kind;
    if (kind == "layout") {
      SIGNVOTE_ASSIGN_OR_RETURN(layout, ReadLayout(words));
      continue;
    }
    if (kind == "x" || kind == "x0") {
      words >> bytes;
      (kind == "x" ? x : x0) = Floats(bytes);
      continue;
    }
    const uint64_t d = layout.coordinates();
    if (d == 0 || x.size() != d || x0.size() != d)
      return absl::InvalidArgumentError("x and x0 must have the layout's size, before any commit");
    if (kind == "step" || kind == "average") {
      const bool average = kind == "average";
      std::string gamma, rho, decay_step, list;
      words >> gamma >> rho >> decay_step >> list >> bytes;
      std::vector<float> scales;
      std::istringstream factors(list == "-" ? "" : list);
      for (std::string factor; std::getline(factors, factor, ',');) scales.push_back(Float(factor));
      uint32_t ballots = 1;
      if (average) words >> ballots;
      const std::vector<uint8_t> bits = Bytes(bytes);
      if (ballots == 0 || bits.size() != CountPlanes(ballots) * BytesForBits(d) ||
          (!scales.empty() && scales.size() != layout.tensors().size()))
        return absl::InvalidArgumentError("a step's bits or scales do not fit the layout");
      const StepArguments step{.gamma = Float(gamma),
                               .rho = Float(rho),
                               .decay_step = Float(decay_step),
                               .scales = scales};
      if (average) {
        ApplyCounts(layout, step, 0, d,
                    {.planes = bits.data(), .plane_bytes = BytesForBits(d), .ballots = ballots},
                    x0.data(), x.data());
      } else {
        ApplyStep(layout, step, 0, d, bits.data(), 0, x0.data(), x.data());
      }
    } else if (kind == "rewind") {
      ApplyRewind(d, x0.data(), x.data());
    } else if (kind != "none") {
      return absl::InvalidArgumentError("a line begins with \"" + kind + "\"");
    }
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(ReplicaDigest(x.data(), 0, x.size())));
  return absl::OkStatus();
}

}  // namespace
}  // namespace signvote

int main() {
  const absl::Status status = signvote::Run(std::cin);
  if (!status.ok()) std::fprintf(stderr, "apply_commits: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
