#pragma once
// Runs the threads of a block as fibers of one system thread. The other half of the emulator is
// runtime.cc.

#include <functional>

#include "common/rng.h"

namespace signvote::emulator {

// Runs `kernel` once per device thread, blocks and threads in an order drawn from `rng`. REQUIRES:
// 0 < threads ≤ 1024, a multiple of 32.
void RunBlocks(const std::function<void()>& kernel, unsigned blocks, unsigned threads, Rng* rng);

// Prints why device code or its launch is wrong and ends the program.
[[noreturn]] void Trap(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace signvote::emulator
