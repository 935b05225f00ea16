// The table of docs/algorithms.md against what directions say of themselves.

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "common/direction_config.h"

namespace signvote {
namespace {

// The words between backticks of a cell as a server's flags.
DirectionWords WordsOf(const std::string& cell) {
  DirectionWords words;
  std::istringstream in(cell.substr(1, cell.size() - 2));
  std::string flag;
  while (in >> flag) {
    if (flag == "--error-feedback") {
      words.error_feedback = true;
      continue;
    }
    std::string value;
    in >> value;
    if (flag == "--direction") {
      words.name = value;
    } else if (flag == "--noise") {
      words.noise = value;
    } else if (flag == "--momentum") {
      words.momentum = value;
    } else {
      ADD_FAILURE() << "the table has " << flag;
    }
  }
  return words;
}

std::vector<std::string> Cells(const std::string& row) {
  std::vector<std::string> cells;
  std::istringstream in(row.substr(1));
  std::string cell;
  while (std::getline(in, cell, '|')) {
    const size_t first = cell.find_first_not_of(' ');
    cells.push_back(first == std::string::npos
                        ? ""
                        : cell.substr(first, cell.find_last_not_of(' ') - first + 1));
  }
  return cells;
}

TEST(MemoryPage, SaysWhatEveryDirectionKeeps) {
  std::ifstream page(std::string(SIGNVOTE_SOURCE_DIR) + "/docs/algorithms.md");
  ASSERT_TRUE(page.is_open());
  std::string line;
  size_t rows = 0;
  std::vector<DirectionKind> seen;
  while (std::getline(page, line)) {
    if (!line.starts_with("| `--direction ")) continue;
    const std::vector<std::string> cells = Cells(line);
    ASSERT_EQ(cells.size(), 4u) << line;
    ++rows;
    DirectionWords words = WordsOf(cells[0]);
    const auto config = ParseDirection(words);
    ASSERT_TRUE(config.ok()) << config.status();
    seen.push_back(config->kind);
    std::string planes;
    for (const StatePlane& plane : PlanesOf(*config))
      planes += (planes.empty() ? "" : ", ") + std::string(plane.name());
    EXPECT_EQ(cells[1], planes) << line;
    EXPECT_EQ(cells[2], std::to_string(StateBytesPerCoordinate(*config))) << line;
    words.state_dtype = "bf16";
    const auto half = ParseDirection(words);
    EXPECT_EQ(cells[3], half.ok() ? std::to_string(StateBytesPerCoordinate(*half)) : "–") << line;
  }
  EXPECT_GT(rows, 10u);
  for (const DirectionKind kind : kDirectionKinds)
    EXPECT_NE(std::find(seen.begin(), seen.end(), kind), seen.end()) << DirectionName(kind);
}

}  // namespace
}  // namespace signvote
