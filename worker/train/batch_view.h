#pragma once
// A data set's minibatch as a model reads it.

#include <cstdint>
#include <span>
#include <vector>

#include "worker/data/dataset.h"
#include "worker/models/model.h"

namespace signvote {

// Rows [first, first + count); they live as long as the batch is not changed.
inline BatchView RowsOf(const Batch& batch, uint64_t first, uint64_t count) {
  const auto rows = [&](const auto& all) {
    const uint64_t per_row = all.size() / batch.rows;
    return std::span(all).subspan(first * per_row, count * per_row);
  };
  return {.rows = count,
          .length = batch.length,
          .inputs = rows(batch.inputs),
          .values = rows(batch.values),
          .targets = rows(batch.targets)};
}

inline BatchView ViewOf(const Batch& batch) { return RowsOf(batch, 0, batch.rows); }

}  // namespace signvote
