#include "worker/data/background_check.h"

#include "common/process.h"

namespace signvote {

BackgroundCheck::BackgroundCheck(const Dataset* dataset)
    : thread_([this, dataset](const std::stop_token& stop) {
        RunWhenIdle();
        const absl::Status checked = dataset->CheckAll(stop);
        if (!absl::IsCancelled(checked)) result_ = checked;
        done_.store(true, std::memory_order_release);
      }) {}

absl::Status BackgroundCheck::found() const { return done() ? result_ : absl::OkStatus(); }

}  // namespace signvote
