#pragma once
// The gRPC and protobuf half of one_process_test; the other half includes LibTorch's users. No
// translation unit sees both.

#include <cstdint>
#include <memory>
#include <string>

namespace signvote {

// A gRPC server of this process that answers grpc.health.v1.
class HealthServer {
 public:
  HealthServer();
  ~HealthServer();
  // One Check over a real loopback connection: the serving status as its number (1 = SERVING), −1
  // on failure.
  int Check();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Puts `entries` numbers into a protobuf map, prints it as text, parses the text, and returns the
// sum of what came back; −1 on failure.
int64_t SumThroughTextFormat(int entries);

// A Join of signvote.v1 written and read back; the name that came back.
std::string NameThroughWire(const std::string& name);

}  // namespace signvote
