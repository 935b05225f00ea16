#include "common/memory_reserve.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/process.h"

namespace signvote {
namespace {

std::atomic<void*> g_reserve{nullptr};  // taken once, by exchange
size_t g_reserve_bytes = 0;             // constant once there is a reserve
std::atomic<bool> g_spent{false};       // orders nothing else

// This thread has been told to try again although another one had given the reserve back.
thread_local bool t_tried_again = false;

void OnNoMemory() {
  if (void* const reserve = g_reserve.exchange(nullptr); reserve != nullptr) {
    g_spent.store(true);
    (void)::munmap(reserve, g_reserve_bytes);  // of a map that is there: cannot fail
    RequestStop();
    return;
  }
  // It may have come back since this thread was refused.
  if (g_spent.load() && !t_tried_again) {
    t_tried_again = true;
    return;
  }
  constexpr char kWords[] = "out of memory, the reserve included: the process ends at once\n";
  const ssize_t written = ::write(STDERR_FILENO, kWords, sizeof(kWords) - 1);
  (void)written;  // nobody else can be told
  ::_exit(static_cast<int>(ExitCode::kNoMemory));
}

}  // namespace

void ReserveMemory(size_t bytes) {
  void* const reserve =
      ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserve != MAP_FAILED) {
    g_reserve_bytes = bytes;
    g_reserve.store(reserve);
  }
  (void)std::set_new_handler(OnNoMemory);
}

absl::Status MemoryReserveStatus() {
  if (!g_spent.load()) return absl::OkStatus();
  return WithExitCode(
      absl::ResourceExhaustedError(
          "out of memory: the program stopped in good order with what it had set aside; give it "
          "more (ulimit -v) or a smaller model"),
      ExitCode::kNoMemory);
}

absl::Status TryResize(std::vector<float>* values, uint64_t n) {
  values->clear();
  // Asked of malloc(), which says no and leaves the handler alone; what it gives goes back at once, and
  // is there for the vector. Volatile: a compiler may take a malloc() whose memory is not used to
  // succeed.
  void* volatile probe = n <= values->max_size() ? std::malloc(n * sizeof(float)) : nullptr;
  if (probe == nullptr && n > 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there is no memory for ", n, " numbers of ", sizeof(float), " bytes"));
  }
  std::free(probe);
  values->resize(n);
  return absl::OkStatus();
}

}  // namespace signvote
