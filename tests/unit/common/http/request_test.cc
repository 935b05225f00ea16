#include "common/http/request.h"

#include <string>

#include <gtest/gtest.h>

namespace signvote {
namespace {

TEST(HttpRequestTest, TheHeadIsWholeWithItsEmptyLine) {
  const std::string head = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
  for (size_t size = 0; size < head.size(); ++size) EXPECT_FALSE(IsWholeHead(head.substr(0, size)));
  EXPECT_TRUE(IsWholeHead(head));
  EXPECT_TRUE(IsWholeHead(head + "more"));
}

TEST(HttpRequestTest, MethodAndPathAreTakenAndTheQueryIsNot) {
  const auto request = ParseHttpRequest("HEAD /a/b?x=1&y HTTP/1.0\r\n\r\n");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->method, "HEAD");
  EXPECT_EQ(request->path, "/a/b");
}

TEST(HttpRequestTest, WhatIsNoRequestIsRefused) {
  for (const char* head :
       {"", "\r\n\r\n", "GET\r\n\r\n", "GET /\r\n\r\n", " / HTTP/1.1\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n", "GET / HTTP/2.0\r\n\r\n", "GET / a HTTP/1.1\r\n\r\n",
        "GET http://x/ HTTP/1.1\r\n\r\n", "PRI * HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\r\n\r\n"}) {
    EXPECT_EQ(ParseHttpRequest(head).status().code(), absl::StatusCode::kInvalidArgument) << head;
  }
}

}  // namespace
}  // namespace signvote
