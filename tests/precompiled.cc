// Nothing but the precompiled header's owner.
int main() { return 0; }
