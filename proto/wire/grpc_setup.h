#pragma once
// What our programs, and no library, ask of gRPC as a whole.

namespace signvote::wire {

// From now on:
// * gRPC's own lines, which name its source files and no remedy, are logged by us at level debug: what
//   matters of it is in the status that we report. Not when the environment sets GRPC_VERBOSITY, for
//   whoever wants those lines;
// * abseil does not keep a graph of the order in which gRPC takes its locks. Debian builds it so that
//   it does: that costs time at each lock, and a cycle, harmless or not, ends the program.
// Call once, in main().
void SetUpGrpc();

}  // namespace signvote::wire
