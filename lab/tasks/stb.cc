// What stb_image and stb_image_resize are made of. A file of its own: their warnings are no concern of
// ours, and their sums may overflow on broken pictures, which lab/CMakeLists.txt gives a meaning.

#include <cstddef>
#include <cstdlib>

#include "common/check.h"
#include "lab/tasks/picture.h"

namespace {

// A picture within kPixelsMax never wants more at a time: 16 bits of four channels, and the bytes before
// rows. What wants more is a file that unpacks to far more than it says.
constexpr size_t kBlockBytesMax = 10 * signvote::lab::kPixelsMax;

void* Allocate(size_t bytes) { return bytes > kBlockBytesMax ? nullptr : std::malloc(bytes); }
void* Reallocate(void* block, size_t bytes) {
  return bytes > kBlockBytesMax ? nullptr : std::realloc(block, bytes);
}

}  // namespace

#define STBI_MALLOC(bytes) Allocate(bytes)
#define STBI_REALLOC(block, bytes) Reallocate(block, bytes)
#define STBI_FREE(block) std::free(block)
#define STBI_ASSERT(condition) SIGNVOTE_CHECK(condition)
#define STBI_MAX_DIMENSIONS static_cast<int>(signvote::lab::kPictureSideMax)
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

#define STBIR_ASSERT(condition) SIGNVOTE_CHECK(condition)
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#include <stb/stb_image_resize.h>
