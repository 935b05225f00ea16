#pragma once
// A data set's minibatch as a model reads it.

#include "worker/data/dataset.h"
#include "worker/models/model.h"

namespace signvote {

// Lives as long as the batch is not changed.
inline BatchView ViewOf(const Batch& batch) {
  return {.rows = batch.rows,
          .length = batch.length,
          .inputs = batch.inputs,
          .values = batch.values,
          .targets = batch.targets};
}

}  // namespace signvote
