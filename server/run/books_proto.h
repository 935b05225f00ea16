#pragma once
// The books' plain structs as the messages of admin.proto; the only place where they meet.

#include "server/run/run_books.h"
#include "signvote/v1/admin.pb.h"

namespace signvote::run {

v1::Status ToProto(const StatusPage& page);
v1::WatchReply ToProto(const WatchView& view);

}  // namespace signvote::run
