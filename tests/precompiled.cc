// Nothing but the precompiled header's owner.

#include "tests/precompiled.h"

int main() { return 0; }
