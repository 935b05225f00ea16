#include "common/file_kind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace signvote {
namespace {

using testing::HasSubstr;

std::string Kind(const std::string& head) { return ForeignKind(head, GivenAs::kModel); }
std::string AsData(const std::string& head) { return ForeignKind(head, GivenAs::kData); }

TEST(FileKindTest, WhatPeopleDownloadByMistakeIsCalledByItsNameWithTheRemedy) {
  EXPECT_THAT(Kind("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
              HasSubstr("git lfs pull"));
  for (const char* page :
       {"<!DOCTYPE html>", "<!doctype HTML>", "\n  <html lang=en>", "\xef\xbb\xbf<!DOCTYPE html>"})
    EXPECT_THAT(Kind(page), HasSubstr("a web page")) << page;
  EXPECT_THAT(Kind("<?xml version=\"1.0\"?><Error><Code>AccessDenied"), HasSubstr("XML"));
  EXPECT_THAT(Kind(std::string("PK\x03\x04\x14\x00", 6)), HasSubstr("PyTorch pickle"));
  EXPECT_THAT(Kind("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19."), HasSubstr("PyTorch pickle"));
  EXPECT_THAT(Kind("GGUF\x03"), HasSubstr("GGUF"));
  EXPECT_THAT(Kind("\x89HDF\r\n\x1a\n"), HasSubstr("HDF5"));
  EXPECT_THAT(Kind("\x93NUMPY\x01"), HasSubstr("NumPy"));
  EXPECT_THAT(Kind("\x1f\x8b\x08"), HasSubstr("gzip"));
  EXPECT_THAT(Kind("\x28\xb5\x2f\xfd"), HasSubstr("zstd"));
}

TEST(FileKindTest, WhatHelpsDependsOnWhatAFileWasGivenAs) {
  EXPECT_THAT(Kind("%PDF-1.7"), HasSubstr("a PDF file; give a safetensors file"));
  EXPECT_THAT(AsData("%PDF-1.7"), HasSubstr("a PDF file; write its text"));
  EXPECT_THAT(AsData("version https://git-lfs.github.com/spec/v1\n"), HasSubstr("git lfs pull"));
  EXPECT_THAT(AsData("\xfd"
                     "7zXZ"),
              HasSubstr("an xz file; unpack it first"));
  EXPECT_THAT(AsData(std::string("\x10\0\0\0\0\0\0\0{\"a\"", 12)), HasSubstr("a safetensors file"));
  for (const char* head : {"<html>", "<?xml version=\"1.0\"?>", "\x80\x02"})
    EXPECT_EQ(AsData(head), "") << head << ": a text, or a token";
}

TEST(FileKindTest, WhatMayBeRightIsNothingElse) {
  for (const char* head : {"", "{", "{\"model_type\": 1}", "<", "P", "\x80", "some words"}) {
    EXPECT_EQ(Kind(head), "") << head;
    EXPECT_EQ(AsData(head), "") << head;
  }
}

// Its length is a number like any other: 640 bytes begin as a pickle does.
TEST(FileKindTest, AHeaderOfAnyLengthIsASafetensorsFiles) {
  for (const uint64_t bytes : {uint64_t{640}, uint64_t{0x380}, uint64_t{0x10280}, uint64_t{0x8b1f},
                               uint64_t{0x04034b50}}) {
    std::string head(sizeof(bytes), '\0');
    std::memcpy(head.data(), &bytes, sizeof(bytes));
    EXPECT_FALSE(BeginsAsSafetensors(head));
    head += "{\"a\"";
    EXPECT_TRUE(BeginsAsSafetensors(head));
    EXPECT_EQ(Kind(head), "") << bytes;
  }
  EXPECT_FALSE(BeginsAsSafetensors("<!DOCTYP{"));
  // A shard of tokens that begins with padding.
  EXPECT_EQ(AsData(std::string("\0\0\0\0\0\0\0\0{\0", 10)), "");
}

}  // namespace
}  // namespace signvote
