#include "server/rpc/coordinator_impl.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "server/tally/tally.h"

namespace signvote::rpc {
namespace {

constexpr size_t kRoundSecondsKept = 16;

v1::RoundOpen::Role ToProto(round::Role role) {
  return role == round::Role::kMember ? v1::RoundOpen::ROLE_MEMBER : v1::RoundOpen::ROLE_OBSERVER;
}

}  // namespace

void CoordinatorImpl::On(Link* link, BallotIn& in) {
  if (Votes(link)) {
    Drive(
        round::BallotChunkIn{link->worker->id, link->incarnation, in.round, in.attempt, in.chunk});
  }
}

void CoordinatorImpl::On(Link* link, ScalarsMessageIn& in) {
  if (!Votes(link)) return;
  link->worker->loss = in.scalars.loss;
  link->worker->compute_seconds = static_cast<double>(in.compute_us) * 1e-6;
  link->worker->apply_seconds = static_cast<double>(in.apply_us) * 1e-6;
  Drive(round::ScalarsIn{link->worker->id, link->incarnation, in.round, in.attempt, in.scalars});
}

void CoordinatorImpl::On(Link* link, AbstainMessageIn& in) {
  if (!Votes(link)) return;
  if (open_.has_value() && in.round == open_->round && in.attempt == open_->attempt)
    link->worker->abstain_reason = Words(in.reason);
  Drive(round::AbstainIn{link->worker->id, link->incarnation, in.round, in.attempt, in.reason});
}

void CoordinatorImpl::On(Link* link, DigestMessageIn& in) {
  if (!Votes(link)) return;
  // Once a round: the log's size is not for a worker to decide.
  if (in.round > link->digest_logged && in.round <= ring_->next()) {
    link->digest_logged = in.round;
    log_->Event(EventLine("digest")
                    .Text("worker", link->worker->name)
                    .Count("replica_round", in.round.value())
                    .Text("digest", Hex(in.digest)));
  }
  Drive(round::WorkerDigestIn{link->worker->id, link->incarnation, in.round, in.digest});
}

void CoordinatorImpl::Drive(round::Event event) {
  events_.push_back(std::move(event));
  if (driving_) return;
  driving_ = true;
  while (!events_.empty()) {
    const round::Event next = std::move(events_.front());
    events_.pop_front();
    const round::Actions actions = engine_->Step(clock_->Now(), next);
    for (const round::Action& action : actions) {
      std::visit([this](const auto& a) { Execute(a); }, action);
    }
    AfterCommit();
  }
  driving_ = false;
}

Link* CoordinatorImpl::FindLink(WorkerId worker, Incarnation incarnation) {
  const auto it = by_id_.find(worker);
  if (it == by_id_.end() || it->second->link == nullptr ||
      it->second->link->incarnation != incarnation) {
    return nullptr;
  }
  return it->second->link;
}

void CoordinatorImpl::Execute(const round::OpenRound& open) {
  open_ = open;
  opened_at_ = clock_->Now();
  if (open.attempt.value() > 0) {
    const std::string reason = absl::StrCat("attempt ", open.attempt.value());
    Event(v1::Event::KIND_REOPENED, {.reason = reason});
  }
  // A new buffer for each attempt: verdicts of the last one may still be on their way out.
  verdict_ = verdict_pool_->Acquire();
  hash_.Reset();
  hashed_chunks_ = 0;
  closed_.assign(plan_.chunks(), false);
  tally_time_ = Duration::zero();
  ties_in_round_ = 0;
  round_slots_.clear();
  voted_.clear();
  for (auto& [session, link] : links_) link->live = false;
  for (const round::Seat& seat : open.seats) {
    Link* link = FindLink(seat.worker, seat.incarnation);
    if (link == nullptr) continue;
    round_slots_[seat.worker] = link->slots;
    link->slots->Open(open.round, open.attempt);
    if (link->stage == Stage::kReady) SendRoundOpen(link, seat);
  }
}

void CoordinatorImpl::SendRoundOpen(Link* link, const round::Seat& seat) {
  v1::ServerMessage message;
  v1::RoundOpen& out = *message.mutable_round_open();
  out.set_round(open_->round.value());
  out.set_attempt(open_->attempt.value());
  out.set_data_step(open_->data_step.value());
  out.set_share(seat.share.value());
  out.set_role(ToProto(seat.role));
  out.set_probe(open_->probe);
  const auto members =
      std::count_if(open_->seats.begin(), open_->seats.end(),
                    [](const round::Seat& s) { return s.role == round::Role::kMember; });
  out.set_members(static_cast<uint32_t>(members));
  if (open_->deadline.has_value()) {
    // What is left of it, for one that hears of the round late. At least 1: zero would mean none.
    const Duration left = *open_->deadline - (clock_->Now() - opened_at_);
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
    out.set_deadline_ms(static_cast<uint64_t>(std::max<int64_t>(1, ms)));
  }
  // One that comes back from a resync has missed chunks that are closed: it gets this round whole.
  link->live = std::none_of(closed_.begin(), closed_.end(), [](bool closed) { return closed; });
  link->session->Send(wire::EncodeMessage(message));
  if (seat.role == round::Role::kMember && !link->seated) {
    link->seated = true;
    link->worker->joined_seconds = ToSeconds(clock_->Now() - link->joined);
    Event(v1::Event::KIND_MEMBER, link->worker);
  }
}

void CoordinatorImpl::Execute(const round::CloseChunk& close) {
  const Time begin = clock_->Now();
  const ChunkIndex k = close.chunk;
  for (auto& [worker, slots] : round_slots_) slots->Close(k);
  ballots_.clear();
  for (const WorkerId voter : close.voters) {
    const auto it = round_slots_.find(voter);
    SIGNVOTE_CHECK(it != round_slots_.end());
    ballots_.push_back(it->second->chunk(k));
  }
  const TallyInput input{.ballots = ballots_,
                         .coordinates = plan_.Count(k),
                         .first_coordinate = plan_.First(k),
                         .seed = options_.seed,
                         .round = close.round};
  uint8_t* out = verdict_.get() + plan_.ByteOffset(k);
  Tally(input, out);
  tally_time_ += clock_->Now() - begin;

  const std::span<const uint8_t> payload(out, plan_.Bytes(k));
  const grpc::ByteBuffer message = wire::EncodeVote(
      wire::BulkKind::kVerdictChunk,
      VerdictHeader(close.round, close.attempt, k, Xxh3(payload.data(), payload.size())), payload,
      verdict_);
  for (auto& [session, link] : links_) {
    if (link->live) link->session->Send(message);
  }
  closed_[k.value()] = true;
  // The hash of the whole verdict grows with the closed prefix, so that little is left to do at the
  // commit.
  while (hashed_chunks_ < plan_.chunks() && closed_[hashed_chunks_]) {
    const ChunkIndex next(hashed_chunks_++);
    hash_.Update(verdict_.get() + plan_.ByteOffset(next), plan_.Bytes(next));
  }
  // For people; the verdict is on its way.
  ties_in_round_ += CountTies(input);
  for (size_t i = 0; i < ballots_.size(); ++i) {
    Voted& voted = voted_[close.voters[i]];
    voted.agreeing += CountAgreement(ballots_[i], out, input.coordinates);
    voted.coordinates += input.coordinates;
    ++voted.chunks;
  }
}

wire::VoteHeader CoordinatorImpl::VerdictHeader(Round round, Attempt attempt, ChunkIndex k,
                                                uint64_t checksum) const {
  return {.run_id = run_id_,
          .epoch = epoch_,
          .round = round,
          .attempt = attempt,
          .chunk = k,
          .checksum = checksum};
}

void CoordinatorImpl::Execute(const round::CommitRound& commit) {
  const Time begin = clock_->Now();
  SIGNVOTE_CHECK(hashed_chunks_ == plan_.chunks());
  auto record = std::make_shared<CommitRecord>();
  record->round = commit.round;
  record->attempt = commit.attempt;
  record->data_step = commit.data_step;
  record->gamma = commit.stepsize.gamma;
  record->rho = commit.stepsize.rho;
  record->counted = commit.counted;
  record->verdict_hash = hash_.Digest();
  record->digest_due = commit.digest_due;
  record->loss = commit.loss;
  record->voters = static_cast<uint32_t>(commit.voters.size());
  record->verdict = std::move(verdict_);
  ring_->Push(record);
  v1::ServerMessage message;
  FillCommit(*record, message.mutable_commit());
  for (auto& [session, link] : links_) {
    if (link->stage != Stage::kReady) continue;
    if (link->live) {
      SendCommit(link.get(), &message);
    } else {
      SendWholeRound(link.get(), record);
    }
    link->live = false;
  }
  // The next attempt's OpenRound may follow in the same batch of actions and starts these anew.
  pending_commit_ = {.commit = commit,
                     .record = record,
                     .seats = open_->seats,
                     .voted = std::exchange(voted_, {}),
                     .tally_time = tally_time_,
                     .ties = ties_in_round_,
                     .took = clock_->Now() - begin};
  open_.reset();
  while (!applier_->TryPush(record)) {
    // The bound of the ring: from here on rounds are as slow as the applier.
    if (!applier_->WaitForRoom(kApplierPatience)) {
      LogWarning("commits wait for the master replica",
                 {{"rounds", uint64_t{applier_->backlog()}}});
    }
  }
}

void CoordinatorImpl::FillCommit(const CommitRecord& record, const RunId& run_id, Epoch epoch,
                                 v1::Commit* out) {
  out->set_run_id(std::string(run_id.bytes()));
  out->set_epoch(epoch.value());
  out->set_round(record.round.value());
  out->set_attempt(record.attempt.value());
  out->set_kind(v1::Commit::KIND_STEP);
  out->set_stepsize(record.gamma);
  out->set_rho(record.rho);
  out->mutable_counted()->Add(record.counted.begin(), record.counted.end());
  out->set_verdict_hash(record.verdict_hash);
  out->set_data_step(record.data_step.value());
  out->set_digest_due(record.digest_due);
  out->set_loss(record.loss.value_or(kNan));
  out->set_voters(record.voters);
}

void CoordinatorImpl::SendCommit(Link* link, v1::ServerMessage* message) {
  message->mutable_commit()->set_total_wire_bytes(link->last.sent + link->last.received);
  link->session->Send(wire::EncodeMessage(*message));
}

void CoordinatorImpl::SendWholeRound(Link* link,
                                     const std::shared_ptr<const CommitRecord>& record) {
  for (uint32_t i = 0; i < plan_.chunks(); ++i) {
    const ChunkIndex k(i);
    const std::span<const uint8_t> payload(record->verdict.get() + plan_.ByteOffset(k),
                                           plan_.Bytes(k));
    link->session->Send(wire::EncodeVote(
        wire::BulkKind::kVerdictChunk,
        VerdictHeader(record->round, record->attempt, k, Xxh3(payload.data(), payload.size())),
        payload, record->verdict));
  }
  v1::ServerMessage message;
  FillCommit(*record, message.mutable_commit());
  SendCommit(link, &message);
}

void CoordinatorImpl::AfterCommit() {
  if (!pending_commit_.has_value()) return;
  const PendingCommit done = *std::exchange(pending_commit_, std::nullopt);
  const round::CommitRound& commit = done.commit;
  last_commit_ = commit;
  history_.AddRound(commit.round.value(), commit.loss.value_or(kNan),
                    static_cast<double>(commit.stepsize.gamma));
  NoteAbstentions(commit, done.seats);
  ties_ += done.ties;
  ties_of_last_ = done.ties;
  for (auto& [session, link] : links_) {
    CountBytes(link.get());
    if (link->stage == Stage::kCatchingUp) Feed(link.get());
  }
  last_commit_unix_seconds_ = UnixSeconds(*clock_);
  RoundLogExtras extras{.unix_seconds = last_commit_unix_seconds_,
                        .tally_seconds = ToSeconds(done.tally_time),
                        .commit_seconds = ToSeconds(done.took),
                        .ties = done.ties,
                        .verdict_hash = done.record->verdict_hash};
  double compute = 0, worker_apply = 0;
  for (const auto& [worker, voted] : done.voted) {
    WorkerRecord* record = by_id_.at(worker);
    record->agreement =
        static_cast<double>(voted.agreeing) / static_cast<double>(voted.coordinates);
    v1::WireTotals& wire = record->wire;
    wire.set_fp32_equivalent_bytes(wire.fp32_equivalent_bytes() +
                                   voted.coordinates * sizeof(float));
    if (voted.chunks == plan_.chunks()) wire.set_ballots(wire.ballots() + 1);
  }
  for (const auto& [worker, scalars] : commit.scalars) {
    const WorkerRecord* record = by_id_.at(worker);
    compute += record->compute_seconds;
    worker_apply += record->apply_seconds;
    Share share;
    uint64_t incarnation = 0;
    for (const round::Seat& seat : done.seats) {
      if (seat.worker == worker) {
        share = seat.share;
        incarnation = seat.incarnation.value();
      }
    }
    extras.voters.push_back({record->name, share, scalars, incarnation, record->compute_seconds,
                             record->apply_seconds});
  }
  CommitTimes times{.round = ToSeconds(commit.opened_for),
                    .wait = ToSeconds(commit.wait),
                    .tally = extras.tally_seconds,
                    .commit = extras.commit_seconds};
  round_.Add(times.round);
  wait_.Add(times.wait);
  tally_.Add(times.tally);
  commit_.Add(times.commit);
  if (!commit.scalars.empty()) {
    times.has_voter_times = true;
    times.compute = compute / static_cast<double>(commit.scalars.size());
    times.worker_apply = worker_apply / static_cast<double>(commit.scalars.size());
    compute_.Add(times.compute);
    worker_apply_.Add(times.worker_apply);
  }
  if (options_.observer != nullptr) options_.observer->OnCommit(times);
  commit_times_.push_back(clock_->Now());
  if (commit_times_.size() > kRoundSecondsKept + 1) commit_times_.pop_front();
  if (!log_->wants_rounds()) return;
  for (const WorkerId voter : commit.voters)
    extras.counted_workers.push_back(by_id_.at(voter)->name);
  for (const round::Seat& seat : done.seats) {
    if (seat.role == round::Role::kMember) extras.members.push_back(by_id_.at(seat.worker)->name);
  }
  const v1::WireTotals total = TotalBytes();
  extras.up_rounds_bytes = total.up_rounds_bytes();
  extras.down_rounds_bytes = total.down_rounds_bytes();
  log_->Round(commit, extras);
}

void CoordinatorImpl::Execute(const round::ChangeRole& change) {
  const auto it = by_id_.find(change.worker);
  if (it == by_id_.end()) return;
  Event(change.role == round::Role::kObserver ? v1::Event::KIND_OBSERVER : v1::Event::KIND_MEMBER,
        {.worker = it->second->name, .reason = change.reason});
}

void CoordinatorImpl::Execute(const round::Disconnect& disconnect) {
  Link* link = FindLink(disconnect.worker, disconnect.incarnation);
  if (link == nullptr) return;
  link->in_engine = false;  // the engine need not be told of what it has decided
  CloseLink(link, disconnect.status);
}

void CoordinatorImpl::Execute(const round::AskToDrain& ask) {
  if (Link* link = FindLink(ask.worker, ask.incarnation)) SendDrain(link);
}

void CoordinatorImpl::Execute(const round::Resync& resync) {
  Link* link = FindLink(resync.worker, resync.incarnation);
  if (link != nullptr)
    SendResync(link, absl::StrCat("its replica differs after round ", resync.round.value()));
}

void CoordinatorImpl::Execute(const round::FinishRun& finish) {
  finish_rounds_ = finish.rounds;
  LogInfo("the last round is committed", {{"rounds", finish.rounds.value()}});
  Event(v1::Event::KIND_FINISHED, EventAbout{});
  for (auto& [session, link] : links_) {
    if (link->stage == Stage::kReady) SendFinish(link.get());
  }
}

void CoordinatorImpl::Execute(const round::Notice& notice) {
  switch (notice.level) {
    case round::NoticeLevel::kInfo:
      return LogInfo(notice.text);
    case round::NoticeLevel::kWarning:
      return LogWarning(notice.text);
    case round::NoticeLevel::kError:
      return LogError(notice.text);
  }
}

void CoordinatorImpl::SendDrain(Link* link) {
  v1::ServerMessage message;
  message.mutable_drain()->set_reason("the operator drains this worker");
  link->session->Send(wire::EncodeMessage(message));
}

void CoordinatorImpl::SendFinish(Link* link) {
  if (std::exchange(link->finish_sent, true)) return;
  v1::ServerMessage message;
  message.mutable_finish()->set_rounds(finish_rounds_->value());
  link->session->Send(wire::EncodeMessage(message));
}

void CoordinatorImpl::SendResync(Link* link, const std::string& reason) {
  if (link->stage == Stage::kFetching) return;
  v1::ServerMessage message;
  message.mutable_resync()->set_round(ring_->next().value());
  message.mutable_resync()->set_reason(reason);
  link->session->Send(wire::EncodeMessage(message));
  link->live = false;
  SetStage(link, Stage::kFetching);
  Event(v1::Event::KIND_RESYNC, {.worker = link->worker->name, .reason = reason});
  LogWarning("worker must fetch the state again",
             {{"worker", link->worker->name}, {"reason", reason}});
}

}  // namespace signvote::rpc
