#pragma once
// What memory gives to one core: the plainest loops over it, in the widest vectors of this machine.
// They are the limits that kernels are measured against, with the same number of streams in each
// direction.

#include <cstddef>
#include <cstdint>

namespace signvote::bench {

// Reads every byte; returns something that depends on all of them. bytes: a multiple of 512.
uint64_t StreamRead(const uint8_t* data, size_t bytes);
// x[i] = k·x[i]: one stream read, one written. n: a multiple of 128, as below.
void StreamScale(float* x, size_t n, float k);
// x[i] = k·x[i] + b[i]: two read, one written.
void StreamAdd(float* x, const float* b, size_t n, float k);
// x[i] = k·x[i] + b[i] + c[i]: three read, one written.
void StreamAdd2(float* x, const float* b, const float* c, size_t n, float k);

}  // namespace signvote::bench
