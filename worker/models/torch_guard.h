#pragma once
// Internal to worker/models: where what LibTorch throws becomes a status.

#include <exception>
#include <new>
#include <string>
#include <string_view>

#include <c10/util/Exception.h>  // tidy: allow(torch) only .cc files beside it include this header

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/status.h"

namespace signvote {

inline absl::Status OutOfMemory(const char* what, const std::string& detail) {
  return WithExitCode(
      absl::ResourceExhaustedError(absl::StrCat(
          what, ": out of memory", detail.empty() ? "" : ": ", detail,
          "; a smaller --batch (with --accumulate), --sequence or --model takes less")),
      ExitCode::kNoMemory);
}

// Runs `body` and turns what LibTorch or the standard library throws into a status: the only place
// where exceptions are caught.
template <typename Body>
absl::Status Guarded(const char* what, Body&& body) {
  constexpr std::string_view kHostAllocator = "DefaultCPUAllocator";
  try {
    body();
    return absl::OkStatus();
  } catch (const c10::OutOfMemoryError& e) {
    return OutOfMemory(what, e.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return OutOfMemory(what, "");
  } catch (const c10::Error& e) {
    // A host's allocator has no type of error of its own.
    if (std::string_view(e.what_without_backtrace()).find(kHostAllocator) != std::string_view::npos)
      return OutOfMemory(what, e.what_without_backtrace());
    return absl::InternalError(absl::StrCat(what, ": ", e.what_without_backtrace()));
  } catch (const std::exception& e) {
    return absl::InternalError(absl::StrCat(what, ": ", e.what()));
  }
}

}  // namespace signvote
