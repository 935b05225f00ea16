#pragma once
// The file of flags that --config names, as CLI11 reads it, without what CLI11 does to one that is
// none: it waits for a FIFO, reads a device for ever, cuts a value at a '#' within its quotes, and takes
// a byte-order mark for a part of the first name.
//
// Threads: not thread-safe.

#include <istream>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file_system.h"

namespace signvote {

// The lines NAME = VALUE of a config file as CLI11 takes them: without a byte-order mark and without
// comments, which begin with a '#' outside of quotes. INVALID_ARGUMENT names `path` and the line that
// has no name of a flag, or the byte that no text has.
absl::StatusOr<std::string> PlainConfig(const std::string& path, std::string_view text);

class ConfigFile final : public CLI::ConfigTOML {
 public:
  explicit ConfigFile(FileSystem* fs);

  // Reads the file that from_config() will speak of. What is wrong with it stays in status().
  void Read(const std::string& path);
  const absl::Status& status() const { return status_; }

  // CLI11's. What Read() has read; the stream is of the same file, and left alone.
  std::vector<CLI::ConfigItem> from_config(std::istream&) const override;
  // CLI11's, with a '#' before each flag that has no value: read again, an empty one is refused.
  std::string to_config(const CLI::App* app, bool default_also, bool write_description,
                        std::string prefix) const override;

 private:
  FileSystem* const fs_;
  std::string text_;
  absl::Status status_;
};

}  // namespace signvote
