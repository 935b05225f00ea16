#include "lab/run/links.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote::lab {
namespace {

constexpr Duration kCommandTime = std::chrono::seconds(20);
constexpr Duration kPoll = std::chrono::milliseconds(2);
// A shaped link's queue: what a switch's port holds before it drops.
constexpr int kQueueMs = 30;
constexpr double kBurstBytesLeast = 16 << 10;
constexpr uint64_t kLogBytesMax = 1 << 20;

std::vector<std::string> Inside(int64_t holder, std::vector<std::string> command) {
  std::vector<std::string> all = {"nsenter", "--target", absl::StrCat(holder), "--net", "--"};
  all.insert(all.end(), std::make_move_iterator(command.begin()),
             std::make_move_iterator(command.end()));
  return all;
}

std::string LastLine(const std::string& text) {
  const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipWhitespace());
  return lines.empty() ? "" : lines.back();
}

// What tc is told to make of a link; {} for none.
std::vector<std::string> Discipline(const LinkShape& shape) {
  // A burst of 1 ms, the timer's grain.
  const double burst = std::max(kBurstBytesLeast, shape.rate_mbit * 1e6 / 8 / 1000);
  if (shape.delay_ms > 0) {
    std::vector<std::string> netem = {"netem", "delay", absl::StrFormat("%gms", shape.delay_ms)};
    if (shape.rate_mbit > 0)
      netem.insert(netem.end(), {"rate", absl::StrFormat("%gmbit", shape.rate_mbit)});
    return netem;
  }
  if (shape.rate_mbit > 0) {
    return {"tbf",
            "rate",
            absl::StrFormat("%gmbit", shape.rate_mbit),
            "burst",
            absl::StrFormat("%.0f", burst),
            "latency",
            absl::StrCat(kQueueMs, "ms")};
  }
  return {};
}

}  // namespace

LinkedHosts::LinkedHosts(Processes* processes, Clock* clock, FileSystem* fs, std::string folder)
    : processes_(processes),
      clock_(clock),
      fs_(fs),
      folder_(std::move(folder)),
      log_(folder_ + "/links.log") {}

absl::Status LinkedHosts::Refused(const std::string& what, const std::string& why) const {
  return WithExitCode(
      absl::UnavailableError(absl::StrCat(
          "[links] need network namespaces, and this machine refuses ", what,
          why.empty() ? "" : ": ", why,
          "; run as root where they are permitted (in a container: --cap-add=SYS_ADMIN,NET_ADMIN), "
          "or leave [links] away")),
      ExitCode::kUnavailable);
}

absl::StatusOr<int64_t> LinkedHosts::Hold(const std::string& name) {
  const std::string sign = absl::StrCat(folder_, "/", name, ".held");
  (void)fs_->Remove(sign);  // of a run before; it may not be there
  // unshare executes what follows in its own process, so that the holder's id is known.
  SIGNVOTE_ASSIGN_OR_RETURN(
      const int64_t holder,
      processes_->Start(
          {"unshare", "--net", "sh", "-c", "echo held > \"$0\"; exec sleep infinity", sign}, log_));
  const Time deadline = clock_->Now() + kCommandTime;
  while (!fs_->FileSize(sign).ok()) {
    if (processes_->Ended(holder).has_value() || clock_->Now() > deadline) {
      const auto log = fs_->ReadFile(log_, kLogBytesMax);
      return Refused("unshare --net", log.ok() ? LastLine(*log) : "");
    }
    clock_->SleepFor(kPoll);
  }
  return holder;
}

absl::Status LinkedHosts::Do(int64_t holder, const std::vector<std::string>& command) {
  const auto before = fs_->FileSize(log_);
  SIGNVOTE_ASSIGN_OR_RETURN(const int64_t id, processes_->Start(Inside(holder, command), log_));
  const Time deadline = clock_->Now() + kCommandTime;
  auto end = processes_->Ended(id);
  for (; !end.has_value(); end = processes_->Ended(id)) {
    if (clock_->Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(absl::StrJoin(command, " "), " does not end"));
    }
    clock_->SleepFor(kPoll);
  }
  if (end->code == 0 && end->signal == 0) return absl::OkStatus();
  const auto log = fs_->ReadFile(log_, kLogBytesMax);
  const std::string why =
      log.ok() ? LastLine(log->substr(std::min<size_t>(log->size(), before.value_or(0)))) : "";
  if (std::find(command.begin(), command.end(), "netem") != command.end()) {
    return WithExitCode(
        absl::UnavailableError(absl::StrCat(
            "[links]: \"delay_ms\" needs the kernel's netem (module sch_netem), and tc says: ", why,
            "; load it, or leave \"delay_ms\" away")),
        ExitCode::kUnavailable);
  }
  return Refused(absl::StrCat("\"", absl::StrJoin(command, " "), "\""), why);
}

absl::Status LinkedHosts::Add(const std::string& name, const LinkShape& shape) {
  if (switch_ == 0) {
    SIGNVOTE_ASSIGN_OR_RETURN(switch_, Hold("switch"));
    SIGNVOTE_RETURN_IF_ERROR(
        Do(switch_, {"ip", "link", "add", "name", "bridge", "type", "bridge"}));
    SIGNVOTE_RETURN_IF_ERROR(Do(switch_, {"ip", "link", "set", "bridge", "up"}));
  }
  Host host;
  SIGNVOTE_ASSIGN_OR_RETURN(host.holder, Hold(name));
  const size_t index = hosts_.size() + 1;
  // For measurements between hosts: RFC 2544, section C.2.2.
  host.address = absl::StrCat("198.18.", index / 250, ".", index % 250 + 1);
  host.port = absl::StrCat("port", index);
  const int64_t holder = host.holder;
  SIGNVOTE_RETURN_IF_ERROR(Do(holder, {"ip", "link", "set", "lo", "up"}));
  SIGNVOTE_RETURN_IF_ERROR(Do(switch_, {"ip", "link", "add", host.port, "type", "veth", "peer",
                                        "name", "eth0", "netns", absl::StrCat(holder)}));
  SIGNVOTE_RETURN_IF_ERROR(Do(switch_, {"ip", "link", "set", host.port, "master", "bridge", "up"}));
  SIGNVOTE_RETURN_IF_ERROR(
      Do(holder, {"ip", "address", "add", host.address + "/16", "dev", "eth0"}));
  SIGNVOTE_RETURN_IF_ERROR(Do(holder, {"ip", "link", "set", "eth0", "up"}));
  hosts_[name] = std::move(host);
  return shape == LinkShape{} ? absl::OkStatus() : Shape(name, shape);
}

absl::Status LinkedHosts::Shape(const std::string& name, const LinkShape& shape) {
  Host& host = hosts_.at(name);
  if (shape.cut != host.shape.cut) {
    SIGNVOTE_RETURN_IF_ERROR(
        Do(switch_, {"ip", "link", "set", host.port, shape.cut ? "down" : "up"}));
    host.shape.cut = shape.cut;
  }
  const std::vector<std::string> before = Discipline(host.shape), now = Discipline(shape);
  if (before == now) return absl::OkStatus();
  for (const auto& [there, device] :
       {std::pair(host.holder, std::string("eth0")), std::pair(switch_, host.port)}) {
    std::vector<std::string> command = {"tc",  "qdisc", now.empty() ? "del" : "replace",
                                        "dev", device,  "root"};
    command.insert(command.end(), now.begin(), now.end());
    SIGNVOTE_RETURN_IF_ERROR(Do(there, command));
  }
  host.shape = shape;
  return absl::OkStatus();
}

std::vector<std::string> LinkedHosts::Enter(const std::string& name,
                                            std::vector<std::string> command) const {
  return Inside(hosts_.at(name).holder, std::move(command));
}

}  // namespace signvote::lab
