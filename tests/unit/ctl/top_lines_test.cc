#include "ctl/top_lines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/unit/ctl/top_sample.h"

namespace signvote::ctl {
namespace {

TEST(TopLinesTest, LinesHaveStableColumns) {
  const TopModel model = Model(Sample());
  const std::string head = LinesHeader(), row = LinesRow(model, kNoon, 3600);
  EXPECT_EQ(head.size(), row.size());
  EXPECT_EQ(
      head + row,
      R"(TIME                     MAIN        OF      RACE PHASE                     LOSS   STEPSIZE MEMBERS OBSERVERS ROUNDS/S         LEFT      UP    DOWN     SAVED
2025-11-25 13:00:00       128       300         - round-open              2.8413   0.001234       1         1      4.0        36.2s   31.8x   31.7x     2.5GB
)");
  v1::WatchReply racing = Sample();
  racing.mutable_status()->mutable_race()->set_rounds(45);
  racing.mutable_status()->mutable_race()->set_rounds_max(75);
  EXPECT_THAT(LinesRow(Model(racing), kNoon, 3600),
              testing::HasSubstr(" 300     45/75 round-open"));
  racing.mutable_status()->mutable_race()->set_over(true);
  EXPECT_THAT(LinesRow(Model(racing), kNoon, 3600),
              testing::HasSubstr(" 300        45 round-open"));
  EXPECT_EQ(LinesEvent(model.events()[2], 3600),
            "2025-11-25 12:59:03        90 event: bob abstained: no ballot in time\n");
  EXPECT_EQ(LinesNote("reconnecting", kNoon, -12 * 3600 - 1),
            "2025-11-24 23:59:59         - top: reconnecting\n");
}

}  // namespace
}  // namespace signvote::ctl
