#pragma once
// May this worker take part? A pure function of its Join, of what its connection shows, and of the
// run's facts.

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/ids.h"
#include "common/layout.h"
#include "common/model_identity.h"
#include "server/run/peer.h"
#include "server/run/tokens.h"
#include "signvote/v1/training.pb.h"

namespace signvote::run {

// The version of the protocol that this server speaks; the only one.
inline constexpr uint32_t kProtocolVersion = 2;

// What the answer depends on. Pointers are borrowed for the call.
struct RunFacts {
  RunId run_id;
  bool stopping = false;                    // nobody joins any more
  bool tls = false;                         // peers must show a worker's certificate of their name
  const TokenTable* tokens = nullptr;       // null: no token is asked for
  bool evicted = false;                     // this name was, by the operator
  size_t present = 0;                       // other names that are connected
  uint32_t workers_max = 0;                 // --workers-max
  const Layout* layout = nullptr;           // null: not known yet, any is welcome
  const ModelIdentity* identity = nullptr;  // null: not known yet
  std::string_view identity_text;           // the run's; read only with `identity`
};

// A Join that was found good, parsed; texts are cut to their bounds and fit for people.
struct CheckedJoin {
  std::string name;
  std::string software_version;
  std::string metrics_address;
  std::optional<Round> round;  // its replica is of this run and holds all commits before it
  Epoch epoch;                 // in which it got the last of them
  Layout layout;               // in the worker's own order, scales 1 and decays 0
  std::string config_json;     // as it came; "" or a JSON object
  ModelIdentity identity;      // of config_json
  std::string identity_text;
  bool can_probe = false;
  std::optional<uint64_t> held_out_hash;
};

// Checked in this order, so that a stranger learns nothing of the run before it has shown who it is:
//   CANCELLED            the server stops
//   INVALID_ARGUMENT     the name is none
//   FAILED_PRECONDITION  the protocol versions do not meet
//   PERMISSION_DENIED    no certificate of a worker, or of another name
//   UNAUTHENTICATED      the token
//   PERMISSION_DENIED    evicted
//   FAILED_PRECONDITION  another run
//   RESOURCE_EXHAUSTED   --workers-max workers are here
//   INVALID_ARGUMENT     layout or config.json are malformed (config.json: a JSON object of at most 1
//                        MiB; identity text at most 4 KiB)
//   FAILED_PRECONDITION  another layout; names the first tensor that differs, whatever the order
//   FAILED_PRECONDITION  another model of the same layout; names the key and both values
absl::StatusOr<CheckedJoin> CheckJoin(const v1::Join& join, const PeerIdentity& peer,
                                      const RunFacts& facts);

// What an evicted worker is told.
absl::Status EvictedStatus(std::string_view name);

}  // namespace signvote::run
