#pragma once
// No file that a program writes may be the file of another of its flags: one of the two would be lost, at
// the latest when both are written at a run's end.
//
//   both read (--tls-ca and --tls-certificate)                   taken: nothing is lost
//   one written (new file, new model, log), the other any file    refused
//   a model and a file that is written beside it                  refused, where something is written there:
//     config.json and the index of shards (NAME.index.json)       who reads config.json reads the user's
//   a model that is called config.json                            refused
//
// Links are followed, and names of one file recognised as such. What is no file (a folder, a device, a
// FIFO) is no file that could be lost; what becomes of it is each flag's to say.

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "common/file_system.h"

namespace signvote {

// Of the flags and arguments of `app`, and of the subcommands that were chosen, that have been given in
// any way. INVALID_ARGUMENT, with exit code kUsage, names both. REQUIRES: `app` has parsed.
absl::Status RequireOwnFiles(const CLI::App& app, FileSystem* fs);

}  // namespace signvote
