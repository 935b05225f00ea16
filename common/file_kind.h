#pragma once
// What a file is by its first bytes, for messages about files that were given or downloaded in
// another's place.

#include <cstddef>
#include <string>
#include <string_view>

namespace signvote {

// As many of a file's first bytes as are ever looked at.
inline constexpr size_t kFileKindBytes = 256;

// As what a file was given.
enum class GivenAs {
  kModel,  // a safetensors file, its index or its config.json
  kData,   // a text or a shard of tokens
};

// "a web page, not the file itself; download the file": what the file is and what to do, where it is
// something that people have by mistake in the place of what they meant: a Git LFS pointer, a web page, a
// pickle, a GGUF, HDF5 or Parquet file, an archive, a picture. "" for all else: safetensors and JSON as a
// model, and as data also what a text may be (a web page is one) or what tokens may begin as (a pickle's
// two bytes).
std::string ForeignKind(std::string_view first_bytes, GivenAs as);

// Whether the bytes begin as a safetensors file does: a length of 2 bytes to 100 MB, then '{'. Its first
// bytes are a number, which may look like any other kind's mark.
bool BeginsAsSafetensors(std::string_view first_bytes);

}  // namespace signvote
