#pragma once
// How large a message of a session may be.
//
// One rule for both sides: a run's largest message is what its server says with --message-bytes-max
// and in the Welcome, and a worker takes whatever a server may say. So a worker has no such option,
// and a value that some worker would not take is refused where it is given.

#include <cstdint>

namespace signvote {

inline constexpr uint64_t kMessageBytesDefault = uint64_t{8} << 20;
// A worker buffers up to this much of one message.
inline constexpr uint64_t kMessageBytesMost = uint64_t{64} << 20;

}  // namespace signvote
