#pragma once
// A dense chunk of a ballot (docs/wire_format.md, "Packed bits"): values in place of bits.

#include <cstdint>
#include <span>

#include "common/layout.h"
#include "common/vote_terms.h"

namespace signvote {

// Makes the payload of a dense chunk that begins at coordinate `first`. `values` has its gradient on
// dense tensors; on others it becomes ±1 by the chunk's packed `bits`. `payload`:
// PayloadBytes(kind, values.size()) of any alignment, apart from `bits`. Whether every number of it may
// be sent (common/dense_value.h). REQUIRES: kind is fp32 or bf16.
bool MakeDenseChunk(const Layout& layout, PayloadKind kind, uint64_t first, const uint8_t* bits,
                    std::span<float> values, uint8_t* payload);

}  // namespace signvote
