#pragma once
// A stream without a network: what is said over it is kept, for tests of those who say it.

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "proto/wire/wire.h"
#include "signvote/v1/training.pb.h"
#include "worker/session/outgoing_stream.h"

namespace signvote::testing {

class FakeStream : public OutgoingStream {
 public:
  void Write(OutgoingMessage message) override { queue.push_back(std::move(message)); }
  void WithdrawBallots() override { ReplaceBallots({}); }
  void ReplaceBallots(std::vector<OutgoingMessage> messages) override {
    std::erase_if(queue, [](const auto& m) { return m.kind == MessageKind::kBallot; });
    for (OutgoingMessage& message : messages) queue.push_back(std::move(message));
  }
  void Flush() override { ++flushes; }
  Time ballots_written() const override { return written; }
  void HalfClose() override { half_closed = true; }
  void Cancel(absl::Status why) override {
    if (!cancelled) cancelled = std::move(why);
  }
  void Resume() override { ++resumes; }

  // The control messages that wait, as the other side reads them; they are taken.
  std::vector<v1::WorkerMessage> TakeSaid() {
    std::vector<v1::WorkerMessage> said;
    for (const OutgoingMessage& out : std::exchange(queue, {})) {
      EXPECT_EQ(out.kind, MessageKind::kControl);
      EXPECT_TRUE(wire::ParseMessage(out.message, &said.emplace_back()).ok());
    }
    return said;
  }
  // Every message that waits, in a word each: "chunk 2 of 1" (of attempt 1), "scalars of 0".
  std::vector<std::string> Words() const {
    std::vector<std::string> words;
    for (const OutgoingMessage& out : queue) {
      const auto view = wire::DecodeVote(wire::BulkKind::kBallotChunk, out.message);
      EXPECT_TRUE(view.ok());
      if (view.ok() && view->has_value()) {
        words.push_back("chunk " + std::to_string((*view)->header.chunk.value()) + " of " +
                        std::to_string((*view)->header.attempt.value()));
        continue;
      }
      v1::WorkerMessage message;
      EXPECT_TRUE(wire::ParseMessage(out.message, &message).ok());
      if (message.has_scalars()) {
        words.push_back("scalars of " + std::to_string(message.scalars().attempt()));
      } else if (message.has_abstain()) {
        words.push_back("abstain of " + std::to_string(message.abstain().attempt()));
      } else {
        words.push_back("control");
      }
    }
    return words;
  }

  std::deque<OutgoingMessage> queue;
  int flushes = 0, resumes = 0;
  Time written;
  bool half_closed = false;
  std::optional<absl::Status> cancelled;
};

}  // namespace signvote::testing
