#pragma once
// What the programs' command lines have in common, on top of CLI11: values that it would take
// although they are none, and one sentence for each error.

#include <cstdint>
#include <limits>
#include <string>

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "common/file_system.h"

namespace signvote {

// Checks for add_option(...)->check(...). CLI11's own Range takes "nan" for any number; its
// conversions take "-1" for an unsigned one and the largest value for what has more digits than
// fit. These refuse both. --help shows the bounds as CLI11's Range does.
CLI::Validator UnsignedBetween(uint64_t least, uint64_t most);
CLI::Validator NumberBetween(double least, double most);
// Any unsigned number of up to `most`; --help shows no bounds.
CLI::Validator AnyUnsigned(uint64_t most = std::numeric_limits<uint64_t>::max());

// What a flag's value is: its `kind` in DescribeJson(), by which a test tries each flag with what people
// mistake for it.
enum class ValueKind {
  kFile,       // a file that is read
  kPath,       // a file or a folder that is read
  kFolder,     // a folder whose files are read
  kNewFile,    // a file that is written whole, in place of what has its name
  kNewModel,   // the same of a model, beside which config.json is written
  kLog,        // a file that is appended to
  kNewFolder,  // a folder that is made where it is missing
  kDial,       // HOST:PORT of another program
  kListen,     // HOST:PORT of this one
  kHost,       // a host without a port
  kText,       // anything else that is neither a number nor one of a few words
};
// "file", "path", "folder", "new file", "new model", "log", "new folder", "dial", "listen", "host", "text".
const char* NameOf(ValueKind kind);

// A check that says of what kind the value is. It refuses an empty one, which nobody means: it is a
// variable of a shell that is not set. Every flag needs it whose value is neither a number nor one of
// a few words (CLI::IsMember).
CLI::Validator Kind(ValueKind kind);

// Parses; `print` gets the text of --help or --version when one of them was given, DescribeJson()'s
// for a sole --describe, and is left alone otherwise. What two flags say of one file is refused here
// (own_files.h), whatever the program.
// Failure: one line of bounded length with an exit code: kBadInput for a --config file that cannot be
// read, kUsage for all else.
absl::Status ParseFlags(CLI::App* app, int argc, const char* const* argv, FileSystem* fs,
                        std::string* print);

}  // namespace signvote
