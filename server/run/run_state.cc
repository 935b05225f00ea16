#include "server/run/run_state.h"

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/checksum.h"
#include "common/status.h"
#include "server/journal/head.h"
#include "signvote/v1/state.pb.h"

namespace signvote::run {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr char kMagic[8] = {'S', 'V', 'S', 'T', 'A', 'T', 'E', '\0'};
constexpr uint32_t kVersion = 1;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t planes;
  uint64_t body_bytes;
  uint64_t coordinates;  // of each plane
  uint64_t checksum;     // of what stands before
};
static_assert(sizeof(Header) == 40 && offsetof(Header, checksum) == 32);
static_assert(std::is_trivially_copyable_v<Header>);
constexpr size_t kChecksumBytes = sizeof(uint64_t);

// ---- the body -----------------------------------------------------------------------------------

void ToProto(const round::ArrivalState& in, v1::ArrivalHistory* out) {
  for (const Duration d : in.recent) out->add_recent_ns(d.count());
  for (const Duration d : in.first) out->add_first_ns(d.count());
}

round::ArrivalState FromProto(const v1::ArrivalHistory& in) {
  round::ArrivalState out;
  for (const int64_t ns : in.recent_ns()) out.recent.emplace_back(ns);
  for (const int64_t ns : in.first_ns()) out.first.emplace_back(ns);
  return out;
}

void ToProto(const round::EngineTotals& in, v1::EngineState::Totals* out) {
  out->set_joins(in.joins);
  out->set_losses(in.losses);
  out->set_abstentions(in.abstentions);
  out->set_late_chunks(in.late_chunks);
  out->set_duplicate_chunks(in.duplicate_chunks);
  out->set_stale_messages(in.stale_messages);
  out->set_digest_mismatches(in.digest_mismatches);
  out->set_attempts_reopened(in.attempts_reopened);
  out->set_scalars_refused(in.scalars_refused);
  out->set_rounds_without_step(in.rounds_without_step);
  out->set_tallies_dropped(in.tallies_dropped);
}

round::EngineTotals FromProto(const v1::EngineState::Totals& in) {
  round::EngineTotals out;
  out.joins = in.joins();
  out.losses = in.losses();
  out.abstentions = in.abstentions();
  out.late_chunks = in.late_chunks();
  out.duplicate_chunks = in.duplicate_chunks();
  out.stale_messages = in.stale_messages();
  out.digest_mismatches = in.digest_mismatches();
  out.attempts_reopened = in.attempts_reopened();
  out.scalars_refused = in.scalars_refused();
  out.rounds_without_step = in.rounds_without_step();
  out.tallies_dropped = in.tallies_dropped();
  return out;
}

void ToProto(const round::WorkerState& in, v1::EngineState::Worker* out) {
  out->set_id(in.id.value());
  out->set_name(in.name);
  out->set_incarnation(in.incarnation.value());
  out->set_observer(in.role == round::Role::kObserver);
  out->set_evicted(in.evicted);
  out->set_last_seen_round(in.last_seen.value());
  out->set_abstentions_in_a_row(in.abstentions_in_a_row);
  out->set_abstentions(in.abstentions);
  out->set_ballots(in.ballots);
  out->set_late_chunks(in.late_chunks);
  out->set_duplicate_chunks(in.duplicate_chunks);
  ToProto(in.arrivals, out->mutable_arrivals());
  out->set_growth_noticed(in.growth_noticed);
  ToProto(in.local.steps, out->mutable_steps());
  ToProto(in.local.sendings, out->mutable_sendings());
}

round::WorkerState FromProto(const v1::EngineState::Worker& in) {
  round::WorkerState out;
  out.id = WorkerId(in.id());
  out.name = in.name();
  out.incarnation = Incarnation(in.incarnation());
  out.role = in.observer() ? round::Role::kObserver : round::Role::kMember;
  out.evicted = in.evicted();
  out.last_seen = Round(in.last_seen_round());
  out.abstentions_in_a_row = in.abstentions_in_a_row();
  out.abstentions = in.abstentions();
  out.ballots = in.ballots();
  out.late_chunks = in.late_chunks();
  out.duplicate_chunks = in.duplicate_chunks();
  out.arrivals = FromProto(in.arrivals());
  out.growth_noticed = in.growth_noticed();
  out.local = {.steps = FromProto(in.steps()), .sendings = FromProto(in.sendings())};
  return out;
}

void ToProto(const round::EngineState& in, v1::EngineState* out) {
  out->set_round(in.round.value());
  out->set_data_step(in.course.data_step.value());
  out->set_main_rounds(in.course.main_rounds);
  out->set_minibatches(in.course.minibatches);
  out->set_gamma(in.course.gamma);
  out->set_run_done(in.course.run_done);
  out->set_nonfinite_in_a_row(in.course.nonfinite_in_a_row);
  out->set_stepless_in_a_row(in.course.stepless_in_a_row);
  out->set_rule(in.course.rule);
  for (const round::WorkerState& worker : in.workers) ToProto(worker, out->add_workers());
  for (const round::ShareState& share : in.shares) {
    v1::EngineState::ShareHeld& held = *out->add_shares();
    held.set_share(share.share.value());
    held.set_holder(share.holder.value());
    held.set_free_from_round(share.free_from.value());
  }
  out->set_paused(in.paused);
  ToProto(in.arrivals, out->mutable_arrivals());
  ToProto(in.local.steps, out->mutable_steps());
  ToProto(in.local.sendings, out->mutable_sendings());
  ToProto(in.totals, out->mutable_totals());
}

round::EngineState FromProto(const v1::EngineState& in) {
  round::EngineState out;
  out.round = Round(in.round());
  out.course.data_step = DataStep(in.data_step());
  out.course.main_rounds = in.main_rounds();
  out.course.minibatches = in.minibatches();
  out.course.gamma = in.gamma();
  out.course.run_done = in.run_done();
  out.course.nonfinite_in_a_row = in.nonfinite_in_a_row();
  out.course.stepless_in_a_row = in.stepless_in_a_row();
  out.course.rule = in.rule();
  for (const v1::EngineState::Worker& worker : in.workers()) {
    out.workers.push_back(FromProto(worker));
  }
  for (const v1::EngineState::ShareHeld& held : in.shares()) {
    out.shares.push_back({.share = Share(held.share()),
                          .holder = WorkerId(held.holder()),
                          .free_from = Round(held.free_from_round())});
  }
  out.paused = in.paused();
  out.arrivals = FromProto(in.arrivals());
  out.local = {.steps = FromProto(in.steps()), .sendings = FromProto(in.sendings())};
  out.totals = FromProto(in.totals());
  return out;
}

std::string EncodeBody(const RunState& state) {
  v1::RunState out;
  FillBody(state, &out);
  return out.SerializeAsString();
}

// ---- around it ----------------------------------------------------------------------------------

std::span<const std::byte> BytesOf(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

uint32_t PlanesOf(const RunState& state) {
  if (!state.has_parameters()) return 0;
  return state.x0 != nullptr && !state.x0->empty() ? 2 : 1;
}

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat("the run's state is damaged: ", std::string(what)));
}

uint64_t ReadWord(std::span<const std::byte> bytes) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

absl::Status CheckNames(const Roster::Memory& roster) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < roster.names.size(); ++i) {
    const Roster::Remembered& known = roster.names[i];
    if (const absl::Status status = ValidateWorkerName(known.name); !status.ok()) {
      return absl::FailedPreconditionError(status.message());
    }
    if (known.id.value() >= roster.next_worker_id) {
      return absl::FailedPreconditionError(
          absl::StrCat("worker '", known.name, "' has an id that was never given"));
    }
    if (i > 0 && !(roster.names[i - 1].id < known.id)) {
      return absl::FailedPreconditionError(
          absl::StrCat("the id of worker '", known.name, "' is repeated or out of order"));
    }
    if (!names.insert(known.name).second) {
      return absl::FailedPreconditionError(absl::StrCat("two workers are named ", known.name));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckEngine(const round::EngineState& engine, const Roster::Memory& roster) {
  std::map<WorkerId, std::string_view> names;
  for (const Roster::Remembered& known : roster.names) names[known.id] = known.name;
  std::set<WorkerId> workers;
  for (const round::WorkerState& worker : engine.workers) {
    const auto known = names.find(worker.id);
    if (known == names.end() || known->second != worker.name) {
      return absl::FailedPreconditionError(
          absl::StrCat("the engine knows a worker '", worker.name, "' that the roster does not"));
    }
    if (!workers.empty() && !(*workers.rbegin() < worker.id)) {
      return absl::FailedPreconditionError(
          absl::StrCat("worker '", worker.name, "' of the engine is repeated or out of order"));
    }
    workers.insert(worker.id);
  }
  for (size_t i = 0; i < engine.shares.size(); ++i) {
    const round::ShareState& share = engine.shares[i];
    if (i > 0 && !(engine.shares[i - 1].share < share.share)) {
      return absl::FailedPreconditionError(
          absl::StrCat("share ", share.share.value(), " is repeated or out of order"));
    }
    if (!workers.contains(share.holder)) {
      return absl::FailedPreconditionError(
          absl::StrCat("share ", share.share.value(), " is nobody's"));
    }
  }
  if (!std::isfinite(engine.course.gamma) || engine.course.gamma < 0) {
    return absl::FailedPreconditionError("the last stepsize is not a number from 0 on");
  }
  return absl::OkStatus();
}

}  // namespace

void FillProgress(const RunState& state, v1::RunState* out) {
  ToProto(state.engine, out->mutable_engine());
  for (const Roster::Remembered& name : state.roster.names) *out->add_names() = ToProto(name);
  out->set_next_worker_id(state.roster.next_worker_id);
  out->set_paused(state.paused);
  out->set_optimizer_steps(state.optimizer.steps);
  out->set_optimizer_numbers(state.optimizer.state.size());
  if (state.optimizer.kind.has_value())
    out->set_optimizer_kind(static_cast<uint32_t>(*state.optimizer.kind));
  out->set_optimizer_weights(state.optimizer.scalars.weights);
  out->set_optimizer_r(state.optimizer.scalars.r);
  out->set_optimizer_d(state.optimizer.scalars.d);
  for (const EpochBegun& begun : state.begun) {
    v1::EpochBegun& to = *out->add_begun();
    to.set_epoch(begun.epoch.value());
    to.set_round(begun.round.value());
  }
}

void FillBody(const RunState& state, v1::RunState* out) {
  FillProgress(state, out);
  out->set_run_id(std::string(state.run_id.bytes()));
  out->set_epoch(state.epoch.value());
  journal::FillLayout(state.layout, out);
  out->set_config_json(state.config_json);
  out->set_identity_text(state.identity_text);
  out->set_x0_max_abs(state.x0_max_abs);
  out->set_averages(state.aggregate == Aggregate::kAverage);
  out->set_dense_bf16(state.dense_wire == PayloadKind::kBf16);
}

absl::StatusOr<RunState> FromBody(const v1::RunState& in) {
  RunState out;
  SIGNVOTE_ASSIGN_OR_RETURN(out.run_id, RunId::FromBytes(in.run_id()));
  out.epoch = Epoch(in.epoch());
  out.engine = FromProto(in.engine());
  for (const v1::KnownName& known : in.names()) {
    out.roster.names.push_back({.id = WorkerId(known.id()),
                                .name = known.name(),
                                .incarnation = Incarnation(known.incarnation()),
                                .evicted = known.evicted()});
  }
  out.roster.next_worker_id = in.next_worker_id();
  out.paused = in.paused();
  SIGNVOTE_ASSIGN_OR_RETURN(out.layout, journal::LayoutFrom(in));
  out.config_json = in.config_json();
  out.identity_text = in.identity_text();
  out.x0_max_abs = in.x0_max_abs();
  if (in.averages()) out.aggregate = Aggregate::kAverage;
  if (in.dense_bf16()) out.dense_wire = PayloadKind::kBf16;
  out.optimizer.steps = in.optimizer_steps();
  out.optimizer.scalars = {
      .weights = in.optimizer_weights(), .r = in.optimizer_r(), .d = in.optimizer_d()};
  if (in.optimizer_kind() > static_cast<uint32_t>(DenseOptimizer::Kind::kAliasAdam))
    return absl::DataLossError(absl::StrCat("an optimizer ", in.optimizer_kind()));
  if (in.optimizer_kind() != 0)
    out.optimizer.kind = static_cast<DenseOptimizer::Kind>(in.optimizer_kind());
  for (const v1::EpochBegun& begun : in.begun())
    out.begun.push_back({.epoch = Epoch(begun.epoch()), .round = Round(begun.round())});
  return out;
}

v1::KnownName ToProto(const Roster::Remembered& name) {
  v1::KnownName known;
  known.set_id(name.id.value());
  known.set_name(name.name);
  known.set_incarnation(name.incarnation.value());
  known.set_evicted(name.evicted);
  return known;
}

absl::Status CheckState(const RunState& state) {
  if (state.run_id.empty()) return absl::FailedPreconditionError("it has no run id");
  if (state.epoch.value() == 0) return absl::FailedPreconditionError("its epoch is 0");
  SIGNVOTE_RETURN_IF_ERROR(CheckNames(state.roster));
  SIGNVOTE_RETURN_IF_ERROR(CheckEngine(state.engine, state.roster));
  const uint64_t d = state.layout.coordinates();
  const bool has_x0 = state.x0 != nullptr && !state.x0->empty();
  if (state.has_parameters() && state.x->size() != d) {
    return absl::FailedPreconditionError(
        absl::StrCat("x has ", state.x->size(), " coordinates, the layout ", d));
  }
  if (has_x0 && (!state.has_parameters() || state.x0->size() != d)) {
    return absl::FailedPreconditionError(
        absl::StrCat("x0 has ", state.x0->size(), " coordinates, the layout ", d));
  }
  if (!state.has_parameters() && state.engine.round.value() != 0) {
    return absl::FailedPreconditionError("it has rounds, but no parameters");
  }
  if (!state.has_parameters() && state.optimizer != OpenVote::Optimizer()) {
    return absl::FailedPreconditionError("it has an optimizer, but no parameters");
  }
  if (!std::isfinite(state.x0_max_abs) || state.x0_max_abs < 0) {
    return absl::FailedPreconditionError("max |x0| is not a number from 0 on");
  }
  for (size_t i = 1; i < state.begun.size(); ++i) {
    if (!(state.begun[i - 1].epoch < state.begun[i].epoch) ||
        state.begun[i].round < state.begun[i - 1].round) {
      return absl::FailedPreconditionError("its servers are repeated or out of order");
    }
  }
  return absl::OkStatus();
}

StateParts EncodeState(const RunState& state) {
  SIGNVOTE_CHECK(CheckState(state).ok());
  StateParts out;
  const auto own = [&out](std::string bytes) {
    out.owned.push_back(std::make_unique<std::string>(std::move(bytes)));
    out.parts.push_back(BytesOf(*out.owned.back()));
  };
  const auto own_checksum = [&own](std::span<const std::byte> of) {
    const uint64_t checksum = Xxh3(of);
    std::string bytes(sizeof(checksum), '\0');
    std::memcpy(bytes.data(), &checksum, sizeof(checksum));
    own(std::move(bytes));
  };
  std::string body = EncodeBody(state);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.planes = PlanesOf(state);
  header.body_bytes = body.size();
  header.coordinates = header.planes == 0 ? 0 : state.layout.coordinates();
  header.checksum = Xxh3(&header, offsetof(Header, checksum));
  std::string head(sizeof(header), '\0');
  std::memcpy(head.data(), &header, sizeof(header));
  own(std::move(head));
  own(std::move(body));
  own_checksum(out.parts.back());
  for (const std::vector<float>* plane : {state.x.get(), state.x0.get(), &state.optimizer.state}) {
    if (plane == nullptr || plane->empty()) continue;
    out.parts.push_back(std::as_bytes(std::span(*plane)));
    own_checksum(out.parts.back());
  }
  for (const std::span<const std::byte> part : out.parts) out.bytes += part.size();
  return out;
}

absl::StatusOr<RunState> DecodeState(std::span<const std::byte> bytes) {
  Header header;
  if (bytes.size() < sizeof(header) || std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) != 0) {
    return absl::InvalidArgumentError("these bytes are not the state of a run");
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.checksum != Xxh3(bytes.first(offsetof(Header, checksum)))) {
    return Damaged("checksum of the header");
  }
  if (header.version != kVersion) {
    return absl::UnimplementedError(absl::StrCat("the run's state has version ", header.version,
                                                 "; this program reads version ", kVersion));
  }
  std::span<const std::byte> rest = bytes.subspan(sizeof(header));
  // The next `size` bytes with their checksum behind them; nullopt: cut short, or damaged.
  const auto take = [&rest](uint64_t size) -> std::optional<std::span<const std::byte>> {
    if (rest.size() < kChecksumBytes || size > rest.size() - kChecksumBytes) return std::nullopt;
    const std::span<const std::byte> part = rest.first(size);
    if (ReadWord(rest.subspan(size)) != Xxh3(part)) return std::nullopt;
    rest = rest.subspan(size + kChecksumBytes);
    return part;
  };
  constexpr uint64_t kBodyBytesMax = uint64_t{1} << 30;  // protobuf's own limit is below 2^31
  if (header.planes > 2 || header.body_bytes > kBodyBytesMax ||
      header.coordinates > UINT64_MAX / sizeof(float) ||
      (header.planes == 0) != (header.coordinates == 0)) {
    return Damaged("sizes in the header");
  }
  const auto body = take(header.body_bytes);
  if (!body.has_value()) return Damaged("the body is cut short or its checksum is wrong");
  v1::RunState message;
  if (!message.ParseFromArray(body->data(), static_cast<int>(body->size())))
    return Damaged("its body is not a RunState message");
  const uint64_t optimizer_numbers = message.optimizer_numbers();
  absl::StatusOr<RunState> state = FromBody(message);
  if (!state.ok()) return Damaged(ToStd(state.status().message()));
  if (header.planes > 0 && state->layout.coordinates() != header.coordinates) {
    return Damaged("planes and layout differ in size");
  }
  for (uint32_t p = 0; p < header.planes; ++p) {
    const auto plane = take(header.coordinates * sizeof(float));
    if (!plane.has_value()) return Damaged("a plane is cut short or its checksum is wrong");
    auto values = std::make_shared<std::vector<float>>(header.coordinates);
    std::memcpy(values->data(), plane->data(), plane->size());
    (p == 0 ? state->x : state->x0) = std::move(values);
  }
  if (optimizer_numbers > 0) {
    if (optimizer_numbers > UINT64_MAX / sizeof(float)) return Damaged("sizes in the body");
    const auto numbers = take(optimizer_numbers * sizeof(float));
    if (!numbers.has_value()) {
      return Damaged("the optimizer's state is cut short or its checksum is wrong");
    }
    state->optimizer.state.resize(optimizer_numbers);
    std::memcpy(state->optimizer.state.data(), numbers->data(), numbers->size());
  }
  if (!rest.empty()) return Damaged("something follows its end");
  if (const absl::Status status = CheckState(*state); !status.ok()) {
    return Damaged(ToStd(status.message()));
  }
  return state;
}

}  // namespace signvote::run
