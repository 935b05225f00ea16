#include "tests/gpu/emulator/block_runner.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/check.h"
#include "tests/gpu/emulator/cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SIGNVOTE_FIBERS_FOR_ASAN 1
#else
#define SIGNVOTE_FIBERS_FOR_ASAN 0
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Stores where this stack stands in *save and goes on where `load` stands: what a function call
// must keep is pushed on one stack and popped from the other. ucontext would do the same with two
// system calls each time.
extern "C" void SignvoteSwitchStack(void** save, void* load);
asm(R"(
.text
.type SignvoteSwitchStack, @function
SignvoteSwitchStack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size SignvoteSwitchStack, .-SignvoteSwitchStack
)");

namespace signvote::emulator {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kThreadsMax = 1024;
constexpr size_t kStackBytes = size_t{128} << 10;
constexpr size_t kGuardBytes = 4096;
constexpr uint64_t kFairOnceIn = 256;  // steps

const char* Name(WarpCall call) {
  switch (call) {
    case WarpCall::kBallot:
      return "__ballot_sync";
    case WarpCall::kShuffle:
      return "__shfl_sync";
    case WarpCall::kSync:
      return "__syncwarp";
  }
  return "?";
}

bool Same(const Place& a, const Place& b) {
  return a.line == b.line && std::string_view(a.file) == b.file;
}

struct Fiber {
  enum class State { kRunnable, kInWarpCall, kAtBarrier, kDone };
  uint8_t* stack = nullptr;  // lowest usable byte
  void* at = nullptr;        // where it goes on
  void* asan_stack = nullptr;
  State state = State::kRunnable;
};

struct Warp {
  unsigned arrived = 0;
  WarpCall call{};
  Place where;
  // Two, because a lane may be at the next call before its neighbour has read what this one gave.
  uint64_t deposits[2][kWarp] = {};
  unsigned generation = 0;
  std::vector<unsigned> runnable;  // threads
};

// The block that runs. One at a time: runtime.cc holds a lock around RunBlocks().
class Block {
 public:
  void Run(const std::function<void()>& kernel, unsigned threads, Rng* rng) {
    kernel_ = &kernel;
    rng_ = rng;
    threads_ = threads;
    done_ = 0;
    at_barrier_ = 0;
    warps_.assign(threads / kWarp, Warp());
    if (fibers_.size() < threads) Grow(threads);
    runnable_ = 0;
    for (unsigned t = 0; t < threads; ++t) {
      Prepare(&fibers_[t]);
      Release(t);
    }
    ranked_ = rng->Below(2) == 1;
    rank_.resize(warps_.size());
    std::iota(rank_.begin(), rank_.end(), 0u);
    for (size_t k = rank_.size(); k > 1; --k) std::swap(rank_[k - 1], rank_[rng->Below(k)]);
    SwitchTo(&main_, TakeNext());
    SIGNVOTE_CHECK(done_ == threads_);
  }

  const uint64_t* MeetWarp(WarpCall call, unsigned mask, uint64_t value, const Place& where) {
    if (mask != 0xFFFFFFFFu) {
      Trap("%s: %s with mask 0x%08x; only full warps are allowed", Text(where).c_str(), Name(call),
           mask);
    }
    Warp& warp = warps_[current_ / kWarp];
    if (warp.arrived == 0) {
      warp.call = call;
      warp.where = where;
    } else if (warp.call != call || !Same(warp.where, where)) {
      Trap("lanes of one warp part ways: %u stand at %s, %s, and one comes to %s, %s", warp.arrived,
           Name(warp.call), Text(warp.where).c_str(), Name(call), Text(where).c_str());
    }
    uint64_t* const deposits = warp.deposits[warp.generation % 2];
    deposits[current_ % kWarp] = value;
    if (++warp.arrived == kWarp) {
      warp.arrived = 0;
      ++warp.generation;
      const unsigned first = current_ / kWarp * kWarp;
      for (unsigned t = first; t < first + kWarp; ++t) Release(t);
    } else {
      fibers_[current_].state = Fiber::State::kInWarpCall;
    }
    Yield();
    return deposits;
  }

  void MeetBlock(const Place& where) {
    if (at_barrier_ == 0) {
      barrier_ = where;
    } else if (!Same(barrier_, where)) {
      Trap("threads of one block part ways: %u stand at __syncthreads, %s, and one comes to %s",
           at_barrier_, Text(barrier_).c_str(), Text(where).c_str());
    }
    if (++at_barrier_ == threads_) {
      at_barrier_ = 0;
      for (unsigned t = 0; t < threads_; ++t) Release(t);
    } else {
      fibers_[current_].state = Fiber::State::kAtBarrier;
    }
    Yield();
  }

  unsigned current() const { return current_; }

  [[noreturn]] void Body() {
    FinishSwitch(nullptr);
    (*kernel_)();
    Fiber* const self = &fibers_[current_];
    self->state = Fiber::State::kDone;
    ++done_;
    Fiber* const next = done_ == threads_ ? &main_ : TakeNext();
    SwitchTo(self, next, /*last_words=*/true);
    std::abort();
  }

 private:
  static void Entry();

  void Grow(unsigned threads) {
    while (fibers_.size() < threads) {
      Fiber fiber;
      void* const memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      SIGNVOTE_CHECK(memory != MAP_FAILED);
      SIGNVOTE_CHECK(mprotect(memory, kGuardBytes, PROT_NONE) == 0);
      fiber.stack = static_cast<uint8_t*>(memory) + kGuardBytes;
      fibers_.push_back(fiber);
    }
  }
  void Prepare(Fiber* fiber) {
    fiber->state = Fiber::State::kRunnable;
    fiber->asan_stack = nullptr;
    // Six registers, then Entry as the address to return to, then no caller.
    void** const top = static_cast<void**>(static_cast<void*>(fiber->stack + kStackBytes));
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(&Entry);
    for (int k = 3; k <= 8; ++k) top[-k] = nullptr;
    fiber->at = top - 8;
  }

  void Release(unsigned t) {
    fibers_[t].state = Fiber::State::kRunnable;
    warps_[t / kWarp].runnable.push_back(t);
    ++runnable_;
  }
  // Some thread that can run, which becomes the current one.
  Fiber* TakeNext() {
    if (runnable_ == 0) Stuck();
    Warp& warp = warps_[ranked_ && rng_->Below(kFairOnceIn) != 0 ? FirstByRank() : AnyWarp()];
    const size_t which = rng_->Below(warp.runnable.size());
    current_ = warp.runnable[which];
    warp.runnable[which] = warp.runnable.back();
    warp.runnable.pop_back();
    --runnable_;
    return &fibers_[current_];
  }
  size_t FirstByRank() const {
    for (const unsigned w : rank_) {
      if (!warps_[w].runnable.empty()) return w;
    }
    Trap("no thread can run, but %u are said to", runnable_);
  }
  size_t AnyWarp() {
    size_t w = rng_->Below(warps_.size());
    while (warps_[w].runnable.empty()) w = (w + 1) % warps_.size();
    return w;
  }
  void Yield() {
    Fiber* const self = &fibers_[current_];
    Fiber* const next = TakeNext();
    if (next != self) SwitchTo(self, next);
    threadIdx.x = current_;
  }

  void SwitchTo(Fiber* from, Fiber* to, [[maybe_unused]] bool last_words = false) {
    threadIdx.x = current_;
#if SIGNVOTE_FIBERS_FOR_ASAN
    from_main_ = from == &main_;
    __sanitizer_start_switch_fiber(last_words ? nullptr : &from->asan_stack,
                                   to == &main_ ? main_bottom_ : to->stack,
                                   to == &main_ ? main_bytes_ : kStackBytes);
#endif
    SignvoteSwitchStack(&from->at, to->at);
    FinishSwitch(from);
  }
  void FinishSwitch([[maybe_unused]] Fiber* self) {
#if SIGNVOTE_FIBERS_FOR_ASAN
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(self == nullptr ? nullptr : self->asan_stack, &bottom, &bytes);
    if (from_main_) {
      main_bottom_ = bottom;
      main_bytes_ = bytes;
    }
#endif
  }

  static std::string Text(const Place& where) {
    return std::string(where.file) + ":" + std::to_string(where.line);
  }
  [[noreturn]] void Stuck() {
    unsigned in_warp_call = 0;
    std::string where;
    for (unsigned t = 0; t < threads_; ++t) {
      if (fibers_[t].state != Fiber::State::kInWarpCall) continue;
      ++in_warp_call;
      const Warp& warp = warps_[t / kWarp];
      if (where.empty())
        where = std::string(" (") + Name(warp.call) + ", " + Text(warp.where) + ")";
    }
    Trap(
        "block %u cannot go on: of %u threads %u ended, %u wait in a warp's call%s, %u at "
        "__syncthreads%s",
        blockIdx.x, threads_, done_, in_warp_call, where.c_str(), at_barrier_,
        at_barrier_ == 0 ? "" : (" (" + Text(barrier_) + ")").c_str());
  }

  std::vector<Fiber> fibers_;
  Fiber main_;
  [[maybe_unused]] const void* main_bottom_ = nullptr;  // for AddressSanitizer
  [[maybe_unused]] size_t main_bytes_ = 0;
  [[maybe_unused]] bool from_main_ = false;

  // Of the block that runs.
  const std::function<void()>* kernel_ = nullptr;
  Rng* rng_ = nullptr;
  unsigned threads_ = 0, done_ = 0, at_barrier_ = 0, current_ = 0;
  Place barrier_;
  std::vector<Warp> warps_;
  unsigned runnable_ = 0;
  // In every other block warps run fairly; in the rest one that ranks higher runs as far ahead as
  // it can.
  bool ranked_ = false;
  std::vector<unsigned> rank_;
};

Block& TheBlock() {
  static Block* const block = new Block;  // lives as long as the program
  return *block;
}

void Block::Entry() { TheBlock().Body(); }

}  // namespace

void RunBlocks(const std::function<void()>& kernel, unsigned blocks, unsigned threads, Rng* rng) {
  SIGNVOTE_CHECK(threads > 0 && threads <= kThreadsMax && threads % kWarp == 0);
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned k = blocks; k > 1; --k) std::swap(order[k - 1], order[rng->Below(k)]);
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  for (const unsigned block : order) {
    blockIdx = {block, 0, 0};
    TheBlock().Run(kernel, threads, rng);
  }
}

const uint64_t* MeetWarp(WarpCall call, unsigned mask, uint64_t value, Place where) {
  return TheBlock().MeetWarp(call, mask, value, where);
}
void MeetBlock(Place where) { TheBlock().MeetBlock(where); }
unsigned Lane() { return TheBlock().current() % kWarp; }

void Trap(const char* format, ...) {
  std::fputs("CUDA emulator: ", stderr);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputs("\n", stderr);
  std::abort();
}

}  // namespace signvote::emulator
