// Time of one round over loopback: the real server, n workers with sessions of their own in
// processes of their own, synthetic ballots, no model. Beside it, in the same repetitions, what
// bounds it: bare gRPC moving the same bytes, and what it replaces: gloo's fp32 all-reduce of the
// same number of values among as many processes.
//
// Paired: a ratio is taken within a repetition; what is judged is the median of the ratios to bare
// gRPC, printed with the interval that holds it. Where others use the machine nothing is judged.
// Ratios to gloo depend on the machine more than on us, and have no limit.
//
// A round is timed from the first byte of a ballot to the commit at all workers, without apply;
// rounds that run freely one after the other, with apply, are printed too. The processes idle in
// the kernel while others are on.

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "common/file_system.h"
#include "common/log.h"
#include "common/process.h"
#include "common/rng.h"
#include "common/status.h"
#include "proto/wire/security.h"
#include "tests/bench/bench.h"
#include "tests/bench/grpc_floor.h"
#include "tests/bench/turns.h"
#include "tests/unit/proto/wire/test_certificates.h"
#include "worker/session/session.h"

namespace signvote::bench {
namespace {

constexpr Duration kTurnTimeout = std::chrono::seconds(60);
// Between turns: the server's applier gets done, sockets get quiet.
constexpr Duration kSettle = std::chrono::milliseconds(60);
constexpr double kRatioMaxPlaintext = 1.3;
constexpr double kRatioMaxMtls = 1.2;
constexpr int kRepetitions = 31;
// Processor time of other processes, in cores, above which figures say nothing about us.
constexpr double kOthersMax = 0.2;
// Rounds of many workers, plaintext, beside the same floor.
constexpr uint32_t kCrowds[] = {16, 63};
constexpr uint64_t kCrowdCoordinates = 4'000'000;
constexpr uint32_t kCrowdQuick = 5;

struct Config {
  Options harness;
  std::string server;       // path of signvote-server
  std::string gloo_python;  // a Python with torch; empty: no gloo
  std::string gloo_script;
  uint64_t d = 25'000'000;
  uint32_t workers = 4;
  uint32_t free_rounds = 30;
};

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "round_bench: %s\n", why.c_str());
  std::exit(1);
}

Config Parse(int argc, char** argv) {
  Config config;
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  config.server = here / "signvote-server";
  config.gloo_script = SIGNVOTE_BENCH_FOLDER "/gloo_allreduce.py";
  std::vector<char*> rest = {argv[0]};
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto value = [&] { return i + 1 < argc ? argv[++i] : argv[argc]; };
    if (arg == "--server") {
      config.server = value();
    } else if (arg == "--gloo-python") {
      config.gloo_python = value();
    } else if (arg == "--d") {
      config.d = std::strtoull(value(), nullptr, 10);
    } else if (arg == "--workers") {
      config.workers = static_cast<uint32_t>(std::strtoul(value(), nullptr, 10));
    } else {
      if (arg == "--help") {
        std::printf(
            "  --server PATH       signvote-server [beside this program]\n"
            "  --gloo-python PATH  a Python that has torch, for gloo's all-reduce [none: no gloo]\n"
            "  --d N               coordinates [25000000]\n"
            "  --workers N         workers [4]\n");
      }
      rest.push_back(argv[i]);
    }
  }
  config.harness =
      ParseOptions(static_cast<int>(rest.size()), rest.data(),
                   "time of a round over loopback, beside bare gRPC and gloo", kRepetitions);
  if (config.harness.quick) {
    config.d = std::min<uint64_t>(config.d, 1'000'000);
    config.free_rounds = 5;
  }
  if (config.d < 10'000 || config.workers < 1 || config.workers > kProcessesMax) {
    Die("--d must be at least 10000 and --workers 1 to 64");
  }
  return config;
}

// ---- processes ----------------------------------------------------------------------------------

std::vector<pid_t> g_children;

void KillChildren() {
  for (const pid_t child : g_children) kill(child, SIGKILL);
  for (const pid_t child : g_children) waitpid(child, nullptr, 0);
  g_children.clear();
}

// `body` runs in a process of its own, which ends with this one.
pid_t Spawn(const std::function<void()>& body) {
  std::fflush(nullptr);
  const pid_t parent = getpid();
  const pid_t child = fork();
  SIGNVOTE_CHECK(child >= 0);
  if (child == 0) {
    g_children.clear();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    TuneMalloc();
    body();
    std::fflush(nullptr);
    _exit(0);
  }
  g_children.push_back(child);
  return child;
}

pid_t Execute(const std::vector<std::string>& command, int standard_in = -1,
              int standard_out = -1) {
  return Spawn([&] {
    if (standard_in >= 0) dup2(standard_in, STDIN_FILENO);
    if (standard_out >= 0) dup2(standard_out, STDOUT_FILENO);
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    std::fprintf(stderr, "round_bench: cannot start %s: %s\n", arguments[0], std::strerror(errno));
    _exit(1);
  });
}

void AwaitAll(const Turns& turns, uint32_t processes, const char* what) {
  const Time deadline = Clock::System()->Now() + kTurnTimeout;
  while (!turns.arrived.WaitAtLeast(processes, std::chrono::milliseconds(500))) {
    if (turns.failed.value() > 0) Die(std::string("a process failed: ") + what);
    if (Clock::System()->Now() >= deadline) Die(std::string("no answer within 60 s: ") + what);
  }
}

// VmRSS or VmHWM of a process, bytes.
uint64_t StatusBytes(pid_t pid, const char* key) {
  const auto text =
      FileSystem::Posix()->ReadFile("/proc/" + std::to_string(pid) + "/status", 1 << 16);
  if (!text.ok()) return 0;
  const size_t at = text->find(key);
  return at == std::string::npos
             ? 0
             : std::strtoull(text->c_str() + at + std::strlen(key) + 1, nullptr, 10) * 1024;
}

// ---- what is measured ---------------------------------------------------------------------------

// Certificates and tokens of one run, in a folder.
struct Secrets {
  std::string folder;
  testing::TestAuthority authority{"round_bench"};
  std::vector<testing::TestCertificate> workers;
  testing::TestCertificate server;

  Secrets(std::string where, uint32_t n) : folder(std::move(where)) {
    testing::WriteTestFile(folder, "ca.pem", authority.pem(), 0644);
    server = authority.Issue({.dns_names = {"server"}, .uris = {"signvote:role:server"}});
    testing::WriteTestFile(folder, "server.pem", server.certificate_pem, 0644);
    testing::WriteTestFile(folder, "server.key", server.key_pem, 0600);
    std::string tokens;
    for (uint32_t i = 0; i < n; ++i) {
      const std::string name = "w" + std::to_string(i);
      workers.push_back(authority.Issue(
          {.dns_names = {name}, .uris = {"signvote:role:worker"}, .loopback_addresses = false}));
      testing::WriteTestFile(folder, name + ".pem", workers.back().certificate_pem, 0644);
      testing::WriteTestFile(folder, name + ".key", workers.back().key_pem, 0600);
      const std::string token = "token-of-" + name + "-0123456789abcdef";
      testing::WriteTestFile(folder, name + ".token", token + "\n", 0600);
      tokens += name + " " + token + "\n";
    }
    testing::WriteTestFile(folder, "tokens", tokens, 0600);
  }
  wire::TlsMaterial Material(const testing::TestCertificate& certificate) const {
    return {.ca_pem = authority.pem(),
            .certificate_pem = certificate.certificate_pem,
            .key_pem = certificate.key_pem,
            .dns_names = {},
            .uris = {}};
  }
};

void SessionWorker(const Config& config, const Secrets* secrets, const std::string& folder,
                   const std::string& server, uint32_t index, Turns* turns) {
  const auto fail = [turns](const char* what, const absl::Status& status) {
    std::fprintf(stderr, "round_bench: %s: %s\n", what, Describe(status).c_str());
    turns->failed.Increment();
    std::fflush(nullptr);
    _exit(1);
  };
  InitLogging({.level = LogLevel::kWarning});
  const std::string name = "w" + std::to_string(index);
  bool measured = false;
  int64_t cpu_at_start = 0;
  SessionOptions options;
  options.server = server;
  options.name = name;
  options.insecure = secrets == nullptr;
  if (secrets != nullptr) {
    options.tls_ca = folder + "/ca.pem";
    options.tls_certificate = folder + "/" + name + ".pem";
    options.tls_key = folder + "/" + name + ".key";
    options.token_file = folder + "/" + name + ".token";
  }
  // In a measured round nobody applies before all have the commit: applying belongs to the next
  // round's time.
  options.before_apply = [&] {
    if (!measured) return;
    turns->seen[index].cpu = CpuNanoseconds(getpid()) - cpu_at_start;
    turns->commits.Increment();
    turns->commits.WaitAtLeast(config.workers, kTurnTimeout);
  };
  auto session = Session::Create(options, Clock::System());
  if (!session.ok()) fail("session", session.status());
  ModelDescription model;
  model.tensors = {TensorSpec{.name = "x", .shape = {config.d}}};
  const auto run = (*session)->Join(model);
  if (!run.ok()) fail("join", run.status());
  Buffer x(config.d * sizeof(float));
  HostReplicaMemory replica({x.as<float>(), config.d});
  const absl::Status attached = (*session)->Attach(&replica);
  if (!attached.ok()) fail("attach", attached);
  const auto bits = std::make_shared<std::vector<uint8_t>>(run->plan.TotalBytes());
  std::vector<uint8_t>& ballot = *bits;
  Rng rng(index, 1);
  for (uint8_t& byte : ballot) byte = static_cast<uint8_t>(rng.Next());
  if (config.d % 8 != 0) ballot.back() &= static_cast<uint8_t>((1u << (config.d % 8)) - 1);

  Turns::Seen* const seen = &turns->seen[index];
  auto ticket = (*session)->NextRound();
  if (!ticket.ok()) fail("next round", ticket.status());
  turns->arrived.Increment();
  for (uint32_t turn = 0;;) {
    turn = turns->Await(turn);
    if (turns->command == Turns::kLeave) break;
    measured = turns->command == Turns::kOneRound;
    cpu_at_start = CpuNanoseconds(getpid());
    for (uint32_t round = 0; round < turns->rounds; ++round) {
      for (uint32_t k = 0; k < run->plan.chunks(); ++k) {
        const absl::Status sent = (*session)->SendChunk(
            ChunkIndex(k), std::shared_ptr<const uint8_t>(
                               bits, ballot.data() + run->plan.ByteOffset(ChunkIndex(k))));
        if (!sent.ok()) fail("chunk", sent);
      }
      const absl::Status scalars =
          (*session)->SendScalars({.loss = 1, .g_l1 = 1, .g_l2_squared = 1});
      if (!scalars.ok()) fail("scalars", scalars);
      const auto outcome = (*session)->WaitCommit();
      if (!outcome.ok()) fail("commit", outcome.status());
      if (measured || round == 0) seen->first_byte = outcome->times.first_chunk.ns;
      seen->sent = outcome->times.ballot_written.ns;
      seen->first_verdict = outcome->times.first_verdict.ns;
      seen->committed = outcome->times.committed.ns;
      seen->end = Clock::System()->Now().ns;
      ticket = (*session)->NextRound();
      if (!ticket.ok()) fail("next round", ticket.status());
    }
    turns->arrived.Increment();
  }
  (void)(*session)->Leave("the bench is over");  // bounded; there is nobody left to tell
}

// Milliseconds of each turn, by station.
struct Samples {
  std::vector<double> round, send, wait, verdict, server_cpu, workers_cpu;
  void Take(const Turns& turns, uint32_t processes) {
    const auto all = [&](auto member) {
      std::vector<int64_t> out;
      for (uint32_t i = 0; i < processes; ++i) out.push_back(turns.seen[i].*member);
      std::sort(out.begin(), out.end());
      return out;
    };
    const auto first = all(&Turns::Seen::first_byte), sent = all(&Turns::Seen::sent),
               verdict_at = all(&Turns::Seen::first_verdict),
               committed = all(&Turns::Seen::committed);
    const auto ms = [](int64_t ns) { return static_cast<double>(std::max<int64_t>(0, ns)) * 1e-6; };
    round.push_back(ms(committed.back() - first.front()));
    int64_t cpu = 0;
    for (uint32_t i = 0; i < processes; ++i) cpu += turns.seen[i].cpu;
    workers_cpu.push_back(ms(cpu));
    // What each part ends with at the last worker; chunks overlap, so a part may be empty.
    send.push_back(ms(sent.back() - first.front()));
    wait.push_back(ms(verdict_at.back() - sent.back()));
    verdict.push_back(ms(committed.back() - std::max(sent.back(), verdict_at.back())));
  }
};

// The real server with its workers.
struct RealRun {
  Turns* turns = Turns::Make();
  pid_t server = 0;
  Samples samples;
  std::vector<double> with_apply;
};

RealRun StartReal(const Config& config, const std::string& folder, const Secrets* secrets) {
  RealRun run;
  const std::string port_file =
      folder + (secrets == nullptr ? "/plain" : "/tls") + std::to_string(config.workers) + ".json";
  std::vector<std::string> command = {config.server,
                                      "--listen",
                                      "127.0.0.1:0",
                                      "--http",
                                      "off",
                                      "--port-file",
                                      port_file,
                                      "--deadline",
                                      "off",
                                      "--rule",
                                      "fixed",
                                      "--stepsize",
                                      "1e-6",
                                      "--max-rounds",
                                      "1000000000",
                                      "--digest-every",
                                      "0",
                                      "--workers-min",
                                      std::to_string(config.workers),
                                      "--log-level",
                                      "error"};
  if (secrets == nullptr) {
    command.push_back("--insecure");
  } else {
    for (const std::string word : {"--tls-ca", "ca.pem", "--tls-certificate", "server.pem",
                                   "--tls-key", "server.key", "--tokens", "tokens"}) {
      command.push_back(word[0] == '-' ? word : folder + "/" + word);
    }
  }
  run.server = Execute(command);
  std::string address;
  for (int i = 0; address.empty(); ++i) {
    Clock::System()->SleepFor(std::chrono::milliseconds(20));
    if (waitpid(run.server, nullptr, WNOHANG) != 0 || i > 500) Die("the server did not start");
    const auto text = FileSystem::Posix()->ReadFile(port_file, 4096);
    if (!text.ok()) continue;
    const auto json = nlohmann::json::parse(*text, nullptr, false);
    if (json.is_object()) address = "127.0.0.1:" + std::to_string(json.value("grpc", 0));
  }
  for (uint32_t i = 0; i < config.workers; ++i) {
    Spawn([&] { SessionWorker(config, secrets, folder, address, i, run.turns); });
  }
  AwaitAll(*run.turns, config.workers, "workers joining");
  return run;
}

struct FloorRun {
  Turns* turns = Turns::Make();
  pid_t server = 0;
  Samples samples;
};

FloorRun StartFloor(const Config& config, const ChunkPlan& plan, const Secrets* secrets) {
  FloorRun run;
  SharedCount* const port = &Turns::Make()->turn;
  run.server = Spawn([&] {
    RunFloorServer(secrets == nullptr
                       ? grpc::InsecureServerCredentials()
                       : wire::MtlsServerCredentials(secrets->Material(secrets->server)),
                   plan, config.workers, port);
  });
  if (!port->WaitAtLeast(1, kTurnTimeout)) Die("the floor's server did not start");
  for (uint32_t i = 0; i < config.workers; ++i) {
    Spawn([&] {
      RunFloorClient("127.0.0.1:" + std::to_string(port->value()),
                     secrets == nullptr
                         ? grpc::InsecureChannelCredentials()
                         : wire::MtlsChannelCredentials(secrets->Material(secrets->workers[i])),
                     plan, i, run.turns);
    });
  }
  AwaitAll(*run.turns, config.workers, "the floor's clients");
  return run;
}

class Gloo {
 public:
  explicit Gloo(const Config& config) {
    int to[2], from[2];
    SIGNVOTE_CHECK(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
    Execute({config.gloo_python, config.gloo_script, "--d", std::to_string(config.d), "--workers",
             std::to_string(config.workers)},
            to[0], from[1]);
    close(to[0]);
    close(from[1]);
    to_ = fdopen(to[1], "w");
    from_ = fdopen(from[0], "r");
    if (Line() != "ready")
      Die("gloo did not start: " + config.gloo_python + " " + config.gloo_script);
  }
  ~Gloo() {
    std::fclose(to_);
    std::fclose(from_);
  }
  double Milliseconds() {
    std::fputs("go\n", to_);
    std::fflush(to_);
    return std::strtod(Line().c_str(), nullptr) * 1e3;
  }

 private:
  std::string Line() {
    char text[256];
    if (std::fgets(text, sizeof(text), from_) == nullptr) Die("gloo ended");
    std::string line(text);
    while (!line.empty() && line.back() == '\n') line.pop_back();
    return line;
  }
  FILE* to_ = nullptr;
  FILE* from_ = nullptr;
};

std::vector<double> Ratios(const std::vector<double>& above, const std::vector<double>& below) {
  std::vector<double> out;
  for (size_t i = 0; i < above.size(); ++i) out.push_back(above[i] / below[i]);
  return out;
}

// ---- who else uses the machine ------------------------------------------------------------------

// Processor time of everybody since the machine started, seconds: what /proc/stat counts as user,
// nice, system and steal (time that another machine took). Without interrupts, which are partly ours
// and nobody's process.
double MachineBusySeconds() {
  const auto text = FileSystem::Posix()->ReadFile("/proc/stat", 1 << 20);
  if (!text.ok()) return 0;
  unsigned long long user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0,
                     steal = 0;
  if (std::sscanf(text->c_str(), "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice,
                  &system, &idle, &wait, &irq, &soft, &steal) != 8) {
    return 0;
  }
  return static_cast<double>(user + nice + system + steal) /
         static_cast<double>(sysconf(_SC_CLK_TCK));
}

// How many cores others have used while rounds were on.
class Others {
 public:
  void Begin() {
    at_ = Clock::System()->Now();
    busy_ = MachineBusySeconds();
    ours_ = OurSeconds();
  }
  void End() {
    wall_seconds_ += ToSeconds(Clock::System()->Now() - at_);
    seconds_ += MachineBusySeconds() - busy_ - (OurSeconds() - ours_);
  }
  double cores() const { return wall_seconds_ > 0 ? std::max(0.0, seconds_ / wall_seconds_) : 0; }

 private:
  static double OurSeconds() {
    int64_t ns = CpuNanoseconds(getpid());
    for (const pid_t child : g_children) ns += CpuNanoseconds(child);
    return static_cast<double>(ns) * 1e-9;
  }
  Time at_{};
  double busy_ = 0, ours_ = 0;
  double seconds_ = 0, wall_seconds_ = 0;
};

// ---- the bench ----------------------------------------------------------------------------------

// One turn of a server and its workers, or of the floor.
void TakeTurn(const Config& config, pid_t server, Turns* turns, Samples* samples, bool keep) {
  const int64_t cpu_at_start = CpuNanoseconds(server);
  turns->Give(Turns::kOneRound, 1);
  // Without the server's applier, as far as it waits for the last worker's commit.
  (void)turns->commits.WaitAtLeast(config.workers, kTurnTimeout);  // AwaitAll() says what failed
  const int64_t cpu = CpuNanoseconds(server) - cpu_at_start;
  AwaitAll(*turns, config.workers, "a round");
  if (keep) {
    samples->Take(*turns, config.workers);
    samples->server_cpu.push_back(static_cast<double>(cpu) * 1e-6);
  }
  Clock::System()->SleepFor(kSettle);
  if (StopRequested()) Die("interrupted");
}

// The server keeps the verdicts of recent rounds. Until it has as many as it keeps, each lies in
// memory never touched before; a run of thousands of rounds knows that only at its start.
void FirstRounds(const Config& config, RealRun* run) {
  run->turns->Give(Turns::kManyRounds, config.free_rounds);
  AwaitAll(*run->turns, config.workers, "the first rounds");
}

// The first repetitions only warm up.
constexpr int kWarmUp = 2;

// What is judged, and whether it may be.
class Judge {
 public:
  Judge(const Options& options, double others) : options_(options), busy_(others > kOthersMax) {
    if (busy_ && !options_.json) {
      std::printf("others use %.2f cores of this machine: nothing is judged\n", others);
    }
  }
  void AtMost(const std::string& name, const std::vector<double>& samples, double limit) {
    const bool met = Summarise(samples).median <= limit;
    if (busy_) return;
    missed_ |= !met;
    if (!options_.json)
      std::printf("  gate: %s <= %g: %s\n", name.c_str(), limit, met ? "met" : "MISSED");
  }
  bool missed() const { return missed_; }

 private:
  const Options options_;
  const bool busy_;
  bool missed_ = false;
};

// A round of many workers beside the floor, in plaintext.
void MeasureCrowd(Config config, uint32_t workers, const std::string& folder, Others* others,
                  Report* report) {
  config.workers = workers;
  config.d = config.harness.quick ? config.d / 10 : kCrowdCoordinates;
  const ChunkPlan plan(config.d, ChunkPlan::DefaultChunkCoordinates(config.d));
  RealRun real = StartReal(config, folder, nullptr);
  FloorRun floor = StartFloor(config, plan, nullptr);
  FirstRounds(config, &real);
  for (int r = -kWarmUp; r < config.harness.repetitions; ++r) {
    others->Begin();
    for (int step = 0; step < 2; ++step) {
      if ((r % 2 == 0) == (step == 0)) {
        TakeTurn(config, real.server, real.turns, &real.samples, r >= 0);
      } else {
        TakeTurn(config, floor.server, floor.turns, &floor.samples, r >= 0);
      }
    }
    others->End();
  }
  const std::string suffix = "_n" + std::to_string(workers);
  report->Add("round" + suffix, "ms", real.samples.round);
  report->Add("floor_grpc" + suffix, "ms", floor.samples.round);
  report->Add("server_cpu" + suffix, "ms", real.samples.server_cpu);
  report->AddWithInterval("ratio_to_floor" + suffix,
                          Ratios(real.samples.round, floor.samples.round));
  KillChildren();
}

// Rounds that run freely, with apply: milliseconds of one.
void TakeFreeRounds(const Config& config, RealRun* run) {
  for (int r = 0; r < 3; ++r) {
    run->turns->Give(Turns::kManyRounds, config.free_rounds);
    AwaitAll(*run->turns, config.workers, "rounds with apply");
    int64_t first = INT64_MAX, last = 0;
    for (uint32_t i = 0; i < config.workers; ++i) {
      first = std::min(first, run->turns->seen[i].first_byte);
      last = std::max(last, run->turns->seen[i].end);
    }
    run->with_apply.push_back(static_cast<double>(last - first) * 1e-6 / config.free_rounds);
  }
}

// The figures of plaintext (0) or mTLS (1); what is judged of them goes to `judge`.
void ReportRound(const Config& config, int tls, const RealRun& real, const FloorRun& floor,
                 const std::vector<double>& gloo_ms, Report* report, Judge* judge) {
  const std::string suffix = tls ? "_mtls" : "_plaintext";
  const Samples& s = real.samples;
  report->Add("round" + suffix, "ms", s.round);
  report->Add("round_send" + suffix, "ms", s.send);
  report->Add("round_wait" + suffix, "ms", s.wait);
  report->Add("round_verdict" + suffix, "ms", s.verdict);
  report->Add("round_with_apply" + suffix, "ms", real.with_apply);
  report->Add("floor_grpc" + suffix, "ms", floor.samples.round);
  report->Add("server_cpu" + suffix, "ms", s.server_cpu);
  report->Add("workers_cpu" + suffix, "ms", s.workers_cpu);
  report->Add("floor_server_cpu" + suffix, "ms", floor.samples.server_cpu);
  report->Add("floor_clients_cpu" + suffix, "ms", floor.samples.workers_cpu);
  const std::vector<double> ratios = Ratios(s.round, floor.samples.round);
  report->AddWithInterval("ratio_to_floor" + suffix, ratios);
  judge->AtMost("ratio_to_floor" + suffix, ratios, tls ? kRatioMaxMtls : kRatioMaxPlaintext);
  if (!gloo_ms.empty()) report->AddWithInterval("ratio_to_gloo" + suffix, Ratios(gloo_ms, s.round));
  const std::vector<double> resident = {static_cast<double>(StatusBytes(real.server, "VmRSS:"))};
  const double limit = 4.0 * static_cast<double>(config.d) +
                       3.0 * config.workers * static_cast<double>(config.d) / 8 + 200e6;
  report->Add("server_resident" + suffix, "bytes", resident);
  report->Add("server_resident_peak" + suffix, "bytes",
              {static_cast<double>(StatusBytes(real.server, "VmHWM:"))});
  report->Add("server_resident_limit" + suffix, "bytes", {limit});
  judge->AtMost("server_resident" + suffix, resident, limit);
}

int Main(int argc, char** argv) {
  const Config config = Parse(argc, argv);
  std::atexit(KillChildren);
  signal(SIGPIPE, SIG_IGN);
  InstallStopSignals();
  char folder_template[] = "/tmp/round_bench.XXXXXX";
  const std::string folder = mkdtemp(folder_template);
  struct Remover {
    std::string folder;
    ~Remover() {
      std::error_code ignored;
      std::filesystem::remove_all(folder, ignored);
    }
  } remover{folder};
  const Secrets secrets(folder, config.workers);
  const ChunkPlan plan(config.d, ChunkPlan::DefaultChunkCoordinates(config.d));

  std::unique_ptr<Gloo> gloo;
  if (!config.gloo_python.empty()) gloo = std::make_unique<Gloo>(config);
  RealRun real[2] = {StartReal(config, folder, nullptr), StartReal(config, folder, &secrets)};
  FloorRun floors[2] = {StartFloor(config, plan, nullptr), StartFloor(config, plan, &secrets)};
  for (RealRun& run : real) FirstRounds(config, &run);

  Others others;
  std::vector<double> gloo_ms;
  for (int r = -kWarmUp; r < config.harness.repetitions; ++r) {
    const bool keep = r >= 0;
    if (gloo != nullptr) {
      const double ms = gloo->Milliseconds();
      if (keep) gloo_ms.push_back(ms);
      Clock::System()->SleepFor(kSettle);
    }
    // Every other repetition runs backwards, so that none always follows the same neighbour. Gloo's
    // processes are its own to count, so they are not on while others are looked for.
    others.Begin();
    for (int step = 0; step < 4; ++step) {
      const int which = r % 2 == 0 ? step : 3 - step;
      if (which < 2) {
        TakeTurn(config, real[which].server, real[which].turns, &real[which].samples, keep);
      } else {
        FloorRun& floor = floors[which - 2];
        TakeTurn(config, floor.server, floor.turns, &floor.samples, keep);
      }
    }
    others.End();
  }
  for (RealRun& run : real) TakeFreeRounds(config, &run);

  Report report(config.harness);
  if (!config.harness.json) {
    std::printf("d = %llu, %u workers, %u chunks; milliseconds, median [min .. max]\n",
                static_cast<unsigned long long>(config.d), config.workers, plan.chunks());
  }
  report.Add("others", "cores", {others.cores()});
  Judge judge(config.harness, others.cores());
  if (gloo != nullptr) report.Add("gloo_allreduce_fp32", "ms", gloo_ms);
  for (const int tls : {0, 1})
    ReportRound(config, tls, real[tls], floors[tls], gloo_ms, &report, &judge);
  for (RealRun& run : real) run.turns->Give(Turns::kLeave, 0);
  for (FloorRun& run : floors) run.turns->Give(Turns::kLeave, 0);
  gloo.reset();
  KillChildren();

  Others beside_crowds;
  if (config.harness.quick) {
    MeasureCrowd(config, kCrowdQuick, folder, &beside_crowds, &report);
  } else {
    for (const uint32_t workers : kCrowds)
      MeasureCrowd(config, workers, folder, &beside_crowds, &report);
  }
  report.Add("others_beside_crowds", "cores", {beside_crowds.cores()});
  return config.harness.check && judge.missed() ? 1 : 0;
}

}  // namespace
}  // namespace signvote::bench

int main(int argc, char** argv) { return signvote::bench::Main(argc, argv); }
