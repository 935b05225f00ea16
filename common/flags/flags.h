#pragma once
// What the programs' command lines have in common, on top of CLI11: values that it would take
// although they are none, and one sentence for each error.

#include <cstdint>
#include <limits>
#include <string>

#include <CLI/CLI.hpp>

#include "absl/status/status.h"

namespace signvote {

// Checks for add_option(...)->check(...). CLI11's own Range takes "nan" for any number; its
// conversions take "-1" for an unsigned one and the largest value for what has more digits than
// fit. These refuse both. --help shows the bounds as CLI11's Range does.
CLI::Validator UnsignedBetween(uint64_t least, uint64_t most);
CLI::Validator NumberBetween(double least, double most);
// Any unsigned number of up to `most`; --help shows no bounds.
CLI::Validator AnyUnsigned(uint64_t most = std::numeric_limits<uint64_t>::max());

// Parses; `print` gets the text of --help or --version when one of them was given, DescribeJson()'s
// for a sole --describe, and is left alone otherwise.
// Failure: one line with an exit code: kBadInput for a --config file that cannot be read, kUsage
// for all else.
absl::Status ParseFlags(CLI::App* app, int argc, const char* const* argv, std::string* print);

}  // namespace signvote
