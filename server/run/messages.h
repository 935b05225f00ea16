#pragma once
// What the run says to workers, as messages of the protocol. Pure translation.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/direction_config.h"
#include "common/ids.h"
#include "common/layout.h"
#include "server/commit/commit_record.h"
#include "server/round/types.h"
#include "server/run/run_payloads.h"
#include "signvote/v1/training.pb.h"

namespace signvote::run {

// What every Welcome of a run says alike.
struct WelcomeFacts {
  RunId run_id;
  Epoch epoch;
  uint64_t seed = 0;
  uint64_t main_rounds = 0;  // planned; 0: unknown
  DirectionConfig direction;
  std::optional<double> clip_norm;  // nullopt: gradients are not clipped
  std::string rule;
  bool probes = false, keeps_gradients = false, needs_x0 = false;
  uint64_t digest_every = 0;
  uint64_t evaluate_every = 0;  // 0: nobody is asked
  uint64_t message_bytes_max = 0;
  uint32_t local_steps_max = 1;  // minibatches per ballot that a round may ask for
};
// And what it says to one worker now.
struct WelcomeNow {
  Incarnation incarnation;
  std::string ticket;
  v1::Welcome::State state = v1::Welcome::STATE_UNSPECIFIED;
  Round round;               // next to commit
  uint64_t main_rounds = 0;  // committed so far
  std::string run_head;      // for one that saves its replica; "": it does not
};
v1::ServerMessage WelcomeMessage(const WelcomeFacts& facts, const Layout& layout,
                                 const RunPayloads& payloads, const WelcomeNow& now);

// `since`: how long ago the round opened, for one that hears of it late.
v1::ServerMessage RoundOpenMessage(const round::OpenRound& open, const round::Seat& seat,
                                   Duration since = {});

// All but total_wire_bytes, which differs between workers.
v1::ServerMessage CommitMessage(const CommitRecord& record, const RunId& run_id, Epoch epoch);

v1::ServerMessage NoticeMessage(const std::string& text);
v1::ServerMessage PingMessage(uint64_t nonce);
v1::ServerMessage ResyncMessage(Round round, const std::string& reason);
v1::ServerMessage DrainMessage();
v1::ServerMessage FinishMessage(Round rounds);

}  // namespace signvote::run
