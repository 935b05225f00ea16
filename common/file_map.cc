#include "common/file_map.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <mutex>

#include "common/check.h"

namespace signvote {
namespace {

static_assert(std::atomic<uintptr_t>::is_always_lock_free &&
                  std::atomic<size_t>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");

// A map that is watched. Nodes are never freed: the handler may be at any of them.
struct Watched {
  std::atomic<bool> used{true};
  std::atomic<uintptr_t> base{0};  // released last, 0 while the others change
  std::atomic<size_t> size{0};
  std::atomic<bool> cut{false};
  Watched* next = nullptr;  // constant once the node is in the list
};
std::atomic<Watched*> g_first{nullptr};

// Constant once the handler is installed.
struct sigaction g_before;
uintptr_t g_page_bytes = 0;

// Puts zeros from the page of `address` to the map's end: what lies behind a cut is gone too.
bool PutZeros(uintptr_t address) {
  for (Watched* map = g_first.load(); map != nullptr; map = map->next) {
    const uintptr_t base = map->base.load();
    const size_t size = map->size.load();
    if (base == 0 || address < base || address - base >= size) continue;
    const uintptr_t page = address / g_page_bytes * g_page_bytes;
    if (::mmap(reinterpret_cast<void*>(page), base + size - page, PROT_READ,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
      return false;
    }
    map->cut.store(true);
    return true;
  }
  return false;
}

void OnBusError(int, siginfo_t* info, void*) {
  const int saved_errno = errno;
  // Not ours: the access is made again and ends as it would have without this handler.
  if (!PutZeros(reinterpret_cast<uintptr_t>(info->si_addr)))
    (void)::sigaction(SIGBUS, &g_before, nullptr);
  errno = saved_errno;
}

void InstallHandler() {
  g_page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  struct sigaction action {};
  action.sa_sigaction = OnBusError;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  SIGNVOTE_CHECK(::sigaction(SIGBUS, &action, &g_before) == 0);
}

Watched* Watch(uintptr_t base, size_t size) {
  Watched* map = g_first.load();
  for (; map != nullptr; map = map->next) {
    bool used = false;
    if (map->used.compare_exchange_strong(used, true)) break;
  }
  if (map == nullptr) {
    map = new Watched;
    map->next = g_first.load();
    while (!g_first.compare_exchange_weak(map->next, map)) {
    }
  }
  map->cut.store(false);
  map->size.store(size);
  map->base.store(base);
  return map;
}

class GuardedMap final : public MappedFile {
 public:
  GuardedMap(void* base, size_t size) : base_(base), size_(size) {
    if (size > 0) watched_ = Watch(reinterpret_cast<uintptr_t>(base), size);
  }
  ~GuardedMap() override {
    if (watched_ == nullptr) return;
    watched_->base.store(0);
    watched_->used.store(false);
    ::munmap(base_, size_);
  }
  GuardedMap(const GuardedMap&) = delete;
  GuardedMap& operator=(const GuardedMap&) = delete;
  std::span<const std::byte> data() const override {
    return {static_cast<const std::byte*>(base_), size_};
  }
  bool cut() const override { return watched_ != nullptr && watched_->cut.load(); }

 private:
  void* const base_;
  const size_t size_;
  Watched* watched_ = nullptr;  // null: an empty file has no map
};

}  // namespace

std::unique_ptr<MappedFile> GuardMap(void* base, size_t size) {
  static std::once_flag installed;
  std::call_once(installed, InstallHandler);
  return std::make_unique<GuardedMap>(base, size);
}

}  // namespace signvote
