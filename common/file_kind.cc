#include "common/file_kind.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/text.h"

namespace signvote {
namespace {

using std::string_view_literals::operator""sv;

constexpr uint64_t kHeaderBytesMin = 2, kHeaderBytesMax = 100'000'000;
constexpr std::string_view kSpace = " \t\r\n";

// A remedy that is null: given as this it may be right.
struct Kind {
  std::string_view mark;
  const char* what;
  const char* as_model;
  const char* as_data;
};
constexpr char kPickle[] = "a PyTorch pickle";
constexpr char kUnpickle[] =
    "convert it to safetensors (save_pretrained of transformers writes that)";
constexpr char kUnpack[] = "unpack it first";
constexpr char kConvert[] = "convert it to safetensors";
constexpr char kNoModel[] = "give a safetensors file";
constexpr char kOwnFile[] = "write its text or its tokens to a file of their own";
constexpr char kNoData[] = "give text, or take it out of the folder";
constexpr char kLfsPull[] = "run 'git lfs pull' where it lies";
constexpr char kDownload[] = "download the file";
constexpr char kWebPage[] = "a web page, not the file itself";
constexpr char kArray[] = "write its numbers alone, as uint16 (ndarray.tofile)";
constexpr Kind kKinds[] = {
    {"version https://git-lfs"sv, "a Git LFS pointer, not the file itself", kLfsPull, kLfsPull},
    {"PK\x03\x04"sv, "a zip archive",
     "convert a PyTorch pickle (.bin, .pt) to safetensors, unpack a packed folder", kUnpack},
    {"\x80\x02"sv, kPickle, kUnpickle, nullptr},
    {"\x80\x03"sv, kPickle, kUnpickle, nullptr},
    {"\x80\x04"sv, kPickle, kUnpickle, nullptr},
    {"\x80\x05"sv, kPickle, kUnpickle, nullptr},
    {"GGUF"sv, "a GGUF file", "give the safetensors files that it was made of", kNoData},
    {"\x89HDF\r\n\x1a\n"sv, "an HDF5 file", kConvert, kOwnFile},
    {"\x93NUMPY"sv, "a NumPy array", kNoModel, kArray},
    {"PAR1"sv, "a Parquet file", kNoModel, kOwnFile},
    {"ARROW1"sv, "an Arrow file", kNoModel, kOwnFile},
    {"SQLite format 3"sv, "an SQLite database", kNoModel, kOwnFile},
    {"%PDF-"sv, "a PDF file", kNoModel, kOwnFile},
    {"\x1f\x8b\x08"sv, "a gzip file", kUnpack, kUnpack},
    {"\x28\xb5\x2f\xfd"sv, "a zstd file", kUnpack, kUnpack},
    {"\x04\x22\x4d\x18"sv, "an lz4 file", kUnpack, kUnpack},
    {"7z\xbc\xaf\x27\x1c"sv, "a 7z file", kUnpack, kUnpack},
    {"\xfd\x37zXZ"sv, "an xz file", kUnpack, kUnpack},
    {"BZh"sv, "a bzip2 file", kUnpack, kUnpack},
    {"\x89PNG\r\n\x1a\n"sv, "a picture", kNoModel, kNoData},
    {"\xff\xd8\xff"sv, "a picture", kNoModel, kNoData},
    {"\x7f\x45LF"sv, "a program", kNoModel, kNoData},
};
// Whatever the case of their letters, behind white space.
constexpr Kind kTextKinds[] = {
    {"<!doctype"sv, kWebPage, kDownload, nullptr},
    {"<html"sv, kWebPage, kDownload, nullptr},
    {"<?xml"sv, "an XML text, as failed downloads leave it", "download the file again", nullptr},
};

std::string Told(const Kind& kind, GivenAs as) {
  const char* const remedy = as == GivenAs::kModel ? kind.as_model : kind.as_data;
  return remedy == nullptr ? "" : absl::StrCat(kind.what, "; ", remedy);
}

}  // namespace

bool BeginsAsSafetensors(std::string_view first_bytes) {
  uint64_t header_bytes;
  if (first_bytes.size() <= sizeof(header_bytes)) return false;
  std::memcpy(&header_bytes, first_bytes.data(), sizeof(header_bytes));
  return header_bytes >= kHeaderBytesMin && header_bytes <= kHeaderBytesMax &&
         first_bytes[sizeof(header_bytes)] == '{';
}

std::string ForeignKind(std::string_view first_bytes, GivenAs as) {
  std::string_view head = first_bytes.substr(0, kFileKindBytes);
  if (BeginsAsSafetensors(head))
    return as == GivenAs::kModel ? "" : absl::StrCat("a safetensors file; ", kNoData);
  for (const Kind& kind : kKinds)
    if (head.starts_with(kind.mark)) return Told(kind, as);
  head = WithoutMark(head);
  head.remove_prefix(std::min(head.find_first_not_of(kSpace), head.size()));
  for (const Kind& kind : kTextKinds) {
    if (absl::StartsWithIgnoreCase({head.data(), head.size()},
                                   {kind.mark.data(), kind.mark.size()}))
      return Told(kind, as);
  }
  return "";
}

}  // namespace signvote
