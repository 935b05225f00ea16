// Run: what outlives the process, and what becomes of a run whose journal does not.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status.h"
#include "server/journal/head.h"
#include "server/run/run.h"
#include "server/run/run_save.h"
#include "server/run/settings.h"

namespace signvote::run {
namespace {

// What the optimizer keeps for each coordinate, apart from the state.
std::shared_ptr<const std::vector<float>> TakeNumbers(OpenVote::Optimizer* optimizer) {
  if (optimizer->state.empty()) return nullptr;
  return std::make_shared<const std::vector<float>>(std::move(optimizer->state));
}

// Beside what a Welcome or a Commit says anyway.
size_t SaveBytesMax(const WelcomeFacts& facts) { return facts.message_bytes_max / 4; }

}  // namespace

RunState Run::Progress() const {
  RunState state{.run_id = facts_.run_id, .epoch = facts_.epoch, .roster = roster_.Remember()};
  state.paused = stop_.paused;
  state.begun = begun_;
  if (course_ == nullptr) return state;
  state.engine = course_->engine->State();
  state.layout = model_->layout();
  state.config_json = model_->config_json();
  state.identity_text = model_->identity_text();
  state.x0_max_abs = model_->x0_max_abs();
  state.aggregate = model_->aggregate();
  state.dense_wire = model_->dense_wire();
  state.optimizer = course_->vote.SaveOptimizer();
  return state;
}

v1::JournalHead Run::HeadOf(const RunState& state) const {
  v1::JournalHead head;
  FillBody(state, head.mutable_run());
  journal::FillPlan(model_->payloads().commits, &head);
  head.set_rule(facts_.rule);
  head.set_seed(facts_.seed);
  head.set_direction(std::string(DirectionName(facts_.direction.kind)));
  FillSettings(options_, &head);
  return head;
}

void Run::BeginJournal(const RunState& start) {
  if (!keeps_run()) return;
  RunState state = start;
  const v1::JournalHead head = HeadOf(state);
  parts_.durability->Begin(head, TakeNumbers(&state.optimizer));
}

void Run::NoteName(std::string_view worker) {
  if (!keeps_run()) return;
  const Roster::Worker* known = roster_.FindWorker(worker);
  SIGNVOTE_CHECK(known != nullptr);
  v1::JournalName name;
  *name.mutable_name() = ToProto(Roster::Remembered{.id = known->id,
                                                    .name = known->name,
                                                    .incarnation = known->incarnation,
                                                    .evicted = known->evicted});
  name.set_next_worker_id(roster_.next_worker_id());
  parts_.durability->NoteName(name);
}

// The engine stands behind the commit already: REQUIRES as of Engine::State().
void Run::NoteState(const std::vector<OpenVote::Result::Counted>& counted) {
  RunState state{.run_id = facts_.run_id, .epoch = facts_.epoch, .roster = roster_.Remember()};
  state.engine = course_->engine->State();
  state.paused = stop_.paused;
  state.begun = begun_;
  state.optimizer = course_->vote.SaveOptimizer();
  auto after = std::make_shared<v1::RunState>();
  FillProgress(state, after.get());
  std::vector<Durability::Voters> voters;
  for (const OpenVote::Result::Counted& of : counted) {
    voters.push_back({.chunks = of.chunks, .workers = {}});
    for (const round::WorkerId worker : of.voters) voters.back().workers.push_back(worker.value());
  }
  parts_.durability->NoteState(std::move(after), TakeNumbers(&state.optimizer), std::move(voters));
}

std::string Run::HeadForSave(Time now) {
  std::string why;
  std::string head;
  if (model_->optimizer_states() != nullptr) {
    why = "the optimizer of dense tensors has a state that workers do not have";
  } else {
    RunState state{.run_id = facts_.run_id, .epoch = facts_.epoch};
    state.layout = model_->layout();
    state.config_json = model_->config_json();
    state.identity_text = model_->identity_text();
    state.aggregate = model_->aggregate();
    state.dense_wire = model_->dense_wire();
    head = HeadOf(state).SerializeAsString();
    if (head.size() <= SaveBytesMax(facts_)) return head;
    why = absl::StrCat("it takes ", head.size(), " bytes of a message (--message-bytes-max ",
                       facts_.message_bytes_max, ")");
  }
  std::string text = "what workers save does not carry the run: only a journal does (--journal)";
  if (MayTell(now, "saves", &text)) LogWarning(text, {{"reason", why}});
  return "";
}

std::shared_ptr<const std::string> Run::StateForSaves() const {
  const bool wanted = std::any_of(streams_.begin(), streams_.end(),
                                  [](const auto& entry) { return entry.second.wants_run_state; });
  if (!wanted || model_->optimizer_states() != nullptr) return nullptr;
  auto bytes =
      std::make_shared<const std::string>(StateForSave({.run_id = facts_.run_id,
                                                        .epoch = facts_.epoch,
                                                        .engine = course_->engine->State(),
                                                        .roster = roster_.Remember(),
                                                        .paused = stop_.paused,
                                                        .x0_max_abs = model_->x0_max_abs(),
                                                        .optimizer = course_->vote.SaveOptimizer(),
                                                        .begun = begun_}));
  return bytes->size() <= SaveBytesMax(facts_) ? bytes : nullptr;
}

bool Run::MayKeep(const CheckedJoin& join) const {
  if (!join.round.has_value() || !course_->ring.Reaches(*join.round)) return false;
  if (join.epoch == facts_.epoch) return true;
  bool known = false;
  for (const EpochBegun& begun : begun_) {
    known = known || begun.epoch == join.epoch;
    // What that server committed from here on was lost with it, if it was.
    if (begun.epoch > join.epoch) return known && *join.round <= begun.round;
  }
  return false;
}

void Run::On(Time now, const JournalFailed& failed) {
  if (!stop_.journal.ok() || stop_.ended) return;
  stop_.journal = failed.status;
  stop_.journal_failed = now;
  const v1::ServerMessage notice = NoticeMessage(
      "the server's journal cannot be written: no further commit comes from this server until a "
      "person has looked after it");
  for (auto& [peer, s] : streams_)
    if (StageOf(s) != Stage::kClosing && StageOf(s) != Stage::kConnected) s.peer->Send(notice);
}

}  // namespace signvote::run
