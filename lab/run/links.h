#pragma once
// A network of one experiment's own on this machine: each worker and the server in a network namespace,
// joined by a bridge, with links that are shaped by the kernel (tc). Needs root, iproute2 and util-linux.
//
// Nothing of it has a name outside: when its processes end, the kernel takes it away.

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "common/file_system.h"
#include "lab/run/processes.h"
#include "lab/run/scenario.h"

namespace signvote::lab {

// Threads: not thread-safe.
class LinkedHosts {
 public:
  // Logs of what it runs, and the holders' signs of life, lie in `folder`, which is there.
  LinkedHosts(Processes* processes, Clock* clock, FileSystem* fs, std::string folder);

  // A host behind a link of this shape. UNAVAILABLE, exit code kUnavailable: this machine does not
  // permit it, or the kernel does not know how; says what was refused, and what helps.
  absl::Status Add(const std::string& name, const LinkShape& shape);
  // REQUIRES: Add() has made it, as for the two below.
  absl::Status Shape(const std::string& name, const LinkShape& shape);
  const std::string& AddressOf(const std::string& name) const { return hosts_.at(name).address; }
  // `command` as it is written to run there. Its process is that of the program.
  std::vector<std::string> Enter(const std::string& name, std::vector<std::string> command) const;

 private:
  struct Host {
    int64_t holder = 0;  // a process that keeps the namespace
    std::string address, port;
    LinkShape shape;
  };

  absl::StatusOr<int64_t> Hold(const std::string& name);
  absl::Status Do(int64_t holder, const std::vector<std::string>& command);
  absl::Status Refused(const std::string& what, const std::string& why) const;

  Processes* const processes_;
  Clock* const clock_;
  FileSystem* const fs_;
  const std::string folder_;
  const std::string log_;
  int64_t switch_ = 0;  // holder of the namespace with the bridge; 0: not made yet
  std::map<std::string, Host> hosts_;
};

}  // namespace signvote::lab
