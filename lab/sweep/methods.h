#pragma once
// Directions and stepsize rules by the short names that sweeps and results.csv know them by.
// docs/lab.md, "Short names".

#include <span>
#include <string_view>

namespace signvote::lab {

struct MethodFlag {
  std::string_view name, value;  // of signvote-server, without dashes; a switch has "true"
};

struct Method {
  std::string_view name;
  std::span<const MethodFlag> flags;
};

// In the order of the page.
std::span<const Method> NamedDirections();
std::span<const Method> NamedRules();

// Null: none has this name.
const Method* FindMethod(std::span<const Method> methods, std::string_view name);

}  // namespace signvote::lab
