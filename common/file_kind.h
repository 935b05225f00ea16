#pragma once
// What a file is by its first bytes, for messages about files that were given or downloaded in
// another's place.

#include <cstddef>
#include <string_view>

namespace signvote {

// As many of a file's first bytes as are ever looked at.
inline constexpr size_t kFileKindBytes = 256;

// "a web page, not the file itself; download the file": what the file is and what to do, where it is
// something that people have by mistake in the place of a model or of its config.json: a Git LFS
// pointer, a web page, a pickle, a GGUF, HDF5, NumPy or compressed file. "" for all else, safetensors
// and JSON among it. The text is static.
std::string_view ForeignKind(std::string_view first_bytes);

// Whether the bytes begin as a safetensors file does: a length of at most 100 MB, then '{'. Its first
// bytes are a number, which may look like any other kind's mark.
bool BeginsAsSafetensors(std::string_view first_bytes);

}  // namespace signvote
