#include "server/journal/commit_message.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace signvote::journal {

void FillCommit(const CommitRecord& record, v1::JournalCommit* out) {
  out->set_attempt(record.attempt.value());
  out->set_kind(static_cast<uint32_t>(record.kind));
  out->set_data_step(record.data_step.value());
  out->set_next_data_step(record.next_data_step.value());
  out->set_main_round(record.main_round);
  out->set_run_done(record.run_done);
  out->set_gamma(record.gamma);
  out->set_rho(record.rho);
  if (record.decay_step.has_value()) out->set_decay_step(*record.decay_step);
  out->mutable_scales()->Assign(record.scales.begin(), record.scales.end());
  for (const ChunkSum& chunk : record.chunks) {
    out->add_counted(chunk.counted);
    out->add_checksums(chunk.checksum);
  }
  out->set_payload_hash(record.payload_hash);
  out->set_digest_due(record.digest_due);
  if (record.loss.has_value()) out->set_loss(*record.loss);
  out->set_voters(record.voters);
  out->set_reason(record.reason);
}

absl::StatusOr<std::shared_ptr<const CommitRecord>> CommitFrom(
    const v1::JournalCommit& message, Round round, const PayloadPlan& plan, size_t tensors,
    std::shared_ptr<const uint8_t> payload) {
  const auto damaged = [round](std::string_view what) {
    return absl::DataLossError(
        absl::StrCat("the commit of round ", round.value(), " has ", ToAbsl(what)));
  };
  if (message.kind() > static_cast<uint32_t>(CommitKind::kNone)) return damaged("an unknown kind");
  if (message.counted_size() != message.checksums_size())
    return damaged("counts and checksums of different chunks");
  CommitRecord record;
  record.round = round;
  record.attempt = Attempt(message.attempt());
  record.kind = static_cast<CommitKind>(message.kind());
  record.data_step = DataStep(message.data_step());
  record.next_data_step = DataStep(message.next_data_step());
  record.main_round = message.main_round();
  record.run_done = message.run_done();
  record.gamma = message.gamma();
  record.rho = message.rho();
  if (message.has_decay_step()) record.decay_step = message.decay_step();
  record.scales = {message.scales().begin(), message.scales().end()};
  for (int k = 0; k < message.counted_size(); ++k)
    record.chunks.push_back({.counted = message.counted(k), .checksum = message.checksums(k)});
  record.digest_due = message.digest_due();
  if (message.has_loss()) record.loss = message.loss();
  record.voters = message.voters();
  record.reason = message.reason();
  if (payload != nullptr) record.payload = WholePayload(plan, std::move(payload));
  absl::StatusOr<std::shared_ptr<const CommitRecord>> made =
      MakeCommitRecord(std::move(record), plan, tensors);
  if (!made.ok()) return absl::DataLossError(made.status().message());
  if ((*made)->payload_hash != message.payload_hash())
    return damaged("another hash than its chunks have");
  return made;
}

}  // namespace signvote::journal
