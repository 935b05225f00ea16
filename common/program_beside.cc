#include "common/program_beside.h"

#include <unistd.h>

#include <array>
#include <climits>

namespace signvote {

std::string ProgramBeside(std::string_view name) {
  std::array<char, PATH_MAX> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length <= 0 || static_cast<size_t>(length) == path.size()) return std::string(name);
  const std::string own(path.data(), static_cast<size_t>(length));
  return own.substr(0, own.rfind('/') + 1).append(name);
}

}  // namespace signvote
