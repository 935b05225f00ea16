#include "common/line_writer.h"

#include <gtest/gtest.h>

#include <string>

#include "common/mutex.h"

namespace signvote {
namespace {

constexpr Duration kLong = std::chrono::seconds(60);

std::string Lost(uint64_t count) { return "lost " + std::to_string(count) + "\n"; }

// A sink that takes nothing until it is told to.
class Gate {
 public:
  void Take(std::string_view lines) {
    MutexLock lock(&mu_);
    entered_ = true;
    changed_.NotifyAll();
    while (!open_) (void)changed_.WaitFor(&mu_, kLong);
    text_ += lines;
  }
  void Open() {
    MutexLock lock(&mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  void AwaitEntered() {
    MutexLock lock(&mu_);
    while (!entered_) (void)changed_.WaitFor(&mu_, kLong);
  }
  std::string text() {
    MutexLock lock(&mu_);
    return text_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  bool entered_ ABSL_GUARDED_BY(mu_) = false;
  std::string text_ ABSL_GUARDED_BY(mu_);
};

TEST(LineWriterTest, LinesComeOutInOrder) {
  std::string text;
  LineWriter writer([&](std::string_view lines) { text += lines; }, Lost, {});
  std::string expected;
  for (int i = 0; i < 1000; ++i) {
    (void)writer.Write(std::to_string(i) + "\n");
    expected += std::to_string(i) + "\n";
  }
  ASSERT_TRUE(writer.Flush(kLong));
  EXPECT_EQ(text, expected);
  EXPECT_EQ(writer.dropped(), 0u);
}

TEST(LineWriterTest, WhatASlowReaderMissesIsCountedAndTold) {
  Gate gate;
  LineWriter writer([&](std::string_view lines) { gate.Take(lines); }, Lost, {.lines_max = 2});
  (void)writer.Write("a\n");
  gate.AwaitEntered();  // "a" has left the queue and hangs
  for (const char* line : {"b\n", "c\n", "d\n", "e\n"}) {
    EXPECT_EQ(writer.Write(line), *line < 'd');
  }
  EXPECT_EQ(writer.dropped(), 2u);
  EXPECT_FALSE(writer.Flush(std::chrono::milliseconds(1)));
  gate.Open();
  ASSERT_TRUE(writer.Flush(kLong));
  EXPECT_EQ(gate.text(), "a\nb\nc\nlost 2\n") << "in their place";
  (void)writer.Write("f\n");
  ASSERT_TRUE(writer.Flush(kLong));
  EXPECT_EQ(gate.text(), "a\nb\nc\nlost 2\nf\n") << "told once";
}

TEST(LineWriterTest, WhatIsLostBetweenLinesIsToldBetweenThem) {
  Gate gate;
  LineWriter writer([&](std::string_view lines) { gate.Take(lines); }, Lost, {.bytes_max = 6});
  (void)writer.Write("a\n");
  gate.AwaitEntered();
  for (const char* line : {"b\n", "too long\n", "c\n", "d\n", "e\n"}) (void)writer.Write(line);
  gate.Open();
  ASSERT_TRUE(writer.Flush(kLong));
  EXPECT_EQ(gate.text(), "a\nb\nlost 1\nc\nd\nlost 1\n");
}

TEST(LineWriterTest, TheQueueIsBoundedInBytes) {
  Gate gate;
  LineWriter writer([&](std::string_view lines) { gate.Take(lines); }, Lost, {.bytes_max = 10});
  (void)writer.Write("a\n");
  gate.AwaitEntered();
  (void)writer.Write("12345678\n");
  (void)writer.Write("b\n");
  EXPECT_EQ(writer.dropped(), 1u);
  gate.Open();
}

TEST(LineWriterTest, ASinkThatHangsDoesNotKeepItsWriterFromGoing) {
  const auto gate = std::make_shared<Gate>();
  {
    LineWriter writer([gate](std::string_view lines) { gate->Take(lines); }, Lost,
                      {.patience = std::chrono::milliseconds(1)});
    (void)writer.Write("a\n");
    gate->AwaitEntered();
  }
  EXPECT_EQ(gate->text(), "");
  gate->Open();
}

TEST(LineWriterTest, WhatIsQueuedIsWrittenBeforeTheEnd) {
  std::string text;
  {
    LineWriter writer([&](std::string_view lines) { text += lines; }, Lost, {.patience = kLong});
    (void)writer.Write("last\n");
  }
  EXPECT_EQ(text, "last\n");
}

}  // namespace
}  // namespace signvote
