#pragma once
// What a program's command line takes, as JSON for programs: man pages and completions are made
// from it (deploy/package/describe.py).

#include <string>

#include <CLI/CLI.hpp>

namespace signvote {

// One JSON object and a newline: {"name", "text", "options": [...], "positionals": [...],
// "subcommands": [the same again]}. An option has
//   names     as typed, short ones first; a positional: its one name
//   text      what it is for, one line
//   group     its heading in --help
//   type      of its value ("FILE", "UINT", "HOST:PORT"); "": it takes none
//   kind      what the value is: a kind of flags.h, "number", "word" (one of `choices`), "switch" (it
//             takes none); "": nobody has said, and a test fails
//   choices   the words it takes; empty: any of its type
//   least, most   bounds as texts; "": none
//   default   the value without it, as text; "": none
//   many      it may be given more than once
//   required  it must be given
//   env       the environment variable that stands in for it; "": none
//   needs, excludes   one name of each option that must, or must not, be given too; sorted
std::string DescribeJson(const CLI::App& app);

// The kind of flags.h that the option's value was given; "": none.
std::string KindNameOf(const CLI::Option& option);

}  // namespace signvote
