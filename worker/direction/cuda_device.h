#pragma once
// A GPU as a worker's device: the replica and the direction's state stay in its memory, and only
// bits and a few sums travel. No CUDA type here, so that everybody may include it; a build without
// CUDA has MakeCudaDevice() all the same.

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "worker/direction/worker_device.h"

namespace signvote {

// GPU number `ordinal`. `current_stream` returns the cudaStream_t on which the calling thread
// queues its work on that GPU, null for the default stream; it is called by every thread that uses
// the device. UNAVAILABLE with exit code kNoDevice (NoCudaDevice): this build, this machine or its
// driver has none.
absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeCudaDevice(int ordinal,
                                                             std::function<void*()> current_stream);

}  // namespace signvote
