#pragma once
// Programs that belong together lie in one folder, wherever that is.

#include <string>
#include <string_view>

namespace signvote {

// The path of the program `name` in this program's own folder, whether it is there or not; `name` itself
// where the kernel does not say which folder that is.
std::string ProgramBeside(std::string_view name);

}  // namespace signvote
