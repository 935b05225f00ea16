#pragma once
// gRPC's own lines on standard error, which name its source files and no remedy.

namespace signvote::wire {

// From now on what gRPC says of itself is logged by us at level debug: what matters of it is in the
// status that we report. Does nothing when the environment sets GRPC_VERBOSITY, for whoever wants
// those lines. Call once, in main().
void RouteGrpcLog();

}  // namespace signvote::wire
