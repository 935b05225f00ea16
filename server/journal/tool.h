#pragma once
// What a person does with a journal's folder: look whether it is whole, look into it, cut it where it
// is damaged.

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/disk.h"

namespace signvote::journal {

// A line for people, with its end.
using Print = std::function<void(const std::string& line)>;

// Reads every byte of segments and snapshots and plays the commits, as a server would at its start.
// DATA_LOSS and others as of Recover(): the first thing that is not whole, snapshots that another one
// stands in for included.
absl::Status Verify(Disk* disk, Clock* clock, const Print& print);

// One line a record: segment, offset, type, round, and what it says.
absl::Status Dump(Disk* disk, const Print& print);

// Cuts the segments where the first one is damaged: what follows is kept under names that end in
// ".cut", and the rounds there are given up, but for those of a newer snapshot. Prints what was done.
// OK also where nothing is damaged; as Recover() where what is left is not enough for a start.
// REQUIRES: the caller has the folder's lock.
absl::Status Truncate(Disk* disk, Clock* clock, const Print& print);

}  // namespace signvote::journal
