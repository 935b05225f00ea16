#pragma once
// The test vectors of a documentation page: lines `kind a=1 b=2 word = result` in its ```vectors
// blocks, so that page and code are held to each other. tests/interop reads the same lines.

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace signvote {

struct PageVector {
  std::string line;
  std::string kind;
  std::map<std::string, std::string> arguments;  // a word without '=' under ""
  std::string result;

  uint64_t number(const std::string& name) const { return std::stoull(arguments.at(name)); }
};

inline std::map<std::string, std::string> VectorArguments(const std::string& text) {
  std::map<std::string, std::string> out;
  size_t begin = 0;
  while (begin < text.size()) {
    size_t end = text.find(' ', begin);
    if (end == std::string::npos) end = text.size();
    const std::string word = text.substr(begin, end - begin);
    const size_t equals = word.find('=');
    if (equals == std::string::npos) {
      if (!word.empty()) out[""] = word;
    } else {
      out[word.substr(0, equals)] = word.substr(equals + 1);
    }
    begin = end + 1;
  }
  return out;
}

// Fails the test for a page that cannot be read or a line of another form.
inline std::vector<PageVector> PageVectors(const std::string& path) {
  std::vector<PageVector> out;
  std::ifstream page(path);
  EXPECT_TRUE(page.is_open()) << path;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("```")) {
      inside = line == "```vectors";
      continue;
    }
    if (!inside) continue;
    const size_t space = line.find(' ');
    const size_t equals = line.rfind(" = ");
    if (space == std::string::npos || equals == std::string::npos || space >= equals) {
      ADD_FAILURE() << path << ": no vector: " << line;
      continue;
    }
    out.push_back({line, line.substr(0, space),
                   VectorArguments(line.substr(space + 1, equals - space - 1)),
                   line.substr(equals + 3)});
  }
  return out;
}

}  // namespace signvote
