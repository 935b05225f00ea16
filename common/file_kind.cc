#include "common/file_kind.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "absl/strings/match.h"
#include "common/text.h"

namespace signvote {
namespace {

using std::string_view_literals::operator""sv;

constexpr uint64_t kHeaderBytesMax = 100'000'000;
constexpr std::string_view kSpace = " \t\r\n";

struct Mark {
  std::string_view bytes, kind;
};
constexpr std::string_view kPickle =
    "a PyTorch pickle; convert it to safetensors (save_pretrained of transformers writes that)";
constexpr Mark kMarks[] = {
    {"version https://git-lfs"sv,
     "a Git LFS pointer, not the file itself; run 'git lfs pull' where it lies"},
    {"PK\x03\x04"sv,
     "a zip archive: a PyTorch pickle (.bin, .pt), to be converted to safetensors, or a packed "
     "folder"},
    {"\x80\x02"sv, kPickle},
    {"\x80\x03"sv, kPickle},
    {"\x80\x04"sv, kPickle},
    {"\x80\x05"sv, kPickle},
    {"GGUF"sv, "a GGUF file; give the safetensors files that it was made of"},
    {"\x89HDF\r\n\x1a\n"sv, "an HDF5 file; convert it to safetensors"},
    {"\x93NUMPY"sv, "a NumPy array; give a safetensors file"},
    {"\x1f\x8b"sv, "a gzip archive; unpack it first"},
    {"\x28\xb5\x2f\xfd"sv, "a zstd archive; unpack it first"},
};
// Whatever the case of their letters, behind white space.
constexpr Mark kTextMarks[] = {
    {"<!doctype"sv, "a web page, not the file itself; download the file"},
    {"<html"sv, "a web page, not the file itself; download the file"},
    {"<?xml"sv, "an XML text, as failed downloads leave it; download the file again"},
};

}  // namespace

bool BeginsAsSafetensors(std::string_view first_bytes) {
  uint64_t header_bytes;
  if (first_bytes.size() <= sizeof(header_bytes)) return false;
  std::memcpy(&header_bytes, first_bytes.data(), sizeof(header_bytes));
  return header_bytes <= kHeaderBytesMax && first_bytes[sizeof(header_bytes)] == '{';
}

std::string_view ForeignKind(std::string_view first_bytes) {
  std::string_view head = first_bytes.substr(0, kFileKindBytes);
  if (BeginsAsSafetensors(head)) return "";
  for (const Mark& mark : kMarks)
    if (head.starts_with(mark.bytes)) return mark.kind;
  head = WithoutMark(head);
  head.remove_prefix(std::min(head.find_first_not_of(kSpace), head.size()));
  for (const Mark& mark : kTextMarks) {
    if (absl::StartsWithIgnoreCase({head.data(), head.size()},
                                   {mark.bytes.data(), mark.bytes.size()}))
      return mark.kind;
  }
  return "";
}

}  // namespace signvote
