#pragma once
// Stands where CUDA's header of this name would; everything is in cuda_runtime.h.
#include "tests/gpu/emulator/cuda_runtime.h"
