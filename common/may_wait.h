#pragma once
// Some threads decide for everybody and must wait for nothing. In builds for tests
// (SIGNVOTE_CHECK_WAITS) such a thread says so, and whatever may wait (a condition variable, a
// file, the sink of a log, a sleep) aborts the program on it, with its name. Other builds check
// nothing.

namespace signvote {

#if defined(SIGNVOTE_CHECK_WAITS)

// While it lives, the calling thread may not wait. Scopes nest.
class NoWaitScope {
 public:
  NoWaitScope();
  ~NoWaitScope();
  NoWaitScope(const NoWaitScope&) = delete;
  NoWaitScope& operator=(const NoWaitScope&) = delete;
};

// Said by `what` before it waits: a few words for the message.
void CheckMayWait(const char* what);

#else

class NoWaitScope {
 public:
  NoWaitScope() {}
  ~NoWaitScope() {}
  NoWaitScope(const NoWaitScope&) = delete;
  NoWaitScope& operator=(const NoWaitScope&) = delete;
};

inline void CheckMayWait(const char* /*what*/) {}

#endif

}  // namespace signvote
