#!/usr/bin/env python3
"""Makes man pages and shell completions from what the programs say of themselves (`PROGRAM --describe`, JSON).

    describe.py --help2man PATH --includes DIR --version X --out OUT [--script FILE] PROGRAM...

writes OUT/bash/NAME, OUT/zsh/_NAME, OUT/fish/NAME.fish and OUT/man/NAME.SECTION for each program: the man page by help2man,
which gets the help in the form that it knows, and DIR/NAME.h2m for what no --help says. --script FILE names a script that
already speaks that form: it gets a man page alone. A key of the JSON that this does not know is an error: nothing is left
out in silence. Python's standard library only.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

TEXT_COLUMN = 30  # where the descriptions stand in what help2man reads
FILE_KINDS = {"file", "path", "new file", "new model", "log"}
FOLDER_KINDS = {"folder", "new folder"}
MACHINE_DEFAULTS = {"--threads": "all processors"}  # what --help shows is the number of the machine that builds
ADMINISTRATION = {"signvote-server", "signvote-libtorch"}  # man section 8; the others 1
OWN_EXIT_STATUS = {"signvote-libtorch"}  # its --help has the table

class DescribeError(Exception):
    """A description that cannot be read, or a tool that failed; the text names which."""


@dataclasses.dataclass
class Option:
    """common/flags/describe.h says what each field means."""
    names: list[str]
    text: str
    group: str
    type: str
    kind: str
    choices: list[str]
    least: str
    most: str
    default: str
    many: bool
    required: bool
    env: str
    needs: list[str]
    excludes: list[str]

    @property
    def long_names(self):
        return [n for n in self.names if n.startswith("--")]


@dataclasses.dataclass
class Command:
    """A program, or one of its subcommands."""
    name: str
    text: str
    options: list[Option]
    positionals: list[Option]
    subcommands: list["Command"]

    @property
    def usage(self):
        words = [self.name, "[OPTIONS]", *(p.names[0] for p in self.positionals)]
        return " ".join([*words, *(["SUBCOMMAND"] if self.subcommands else [])])


# ---- reading --------------------------------------------------------------------------------------------------------


def made(kind, json_object, of):
    """A dataclass of a JSON object that has exactly its fields."""
    wanted = {f.name for f in dataclasses.fields(kind)}
    if not isinstance(json_object, dict) or set(json_object) != wanted:
        found = sorted(json_object) if isinstance(json_object, dict) else json_object
        raise DescribeError(f"{of}: expected an object of {', '.join(sorted(wanted))}, found {found}")
    return kind(**json_object)


def read_command(json_object, of):
    """The command that the JSON of `PROGRAM --describe` says; `of` names it in errors."""
    command = made(Command, json_object, of)
    of = f"{of} {command.name}"
    command.options = [made(Option, o, of) for o in command.options]
    command.positionals = [made(Option, o, of) for o in command.positionals]
    command.subcommands = [read_command(c, of) for c in command.subcommands]
    if not command.options:
        raise DescribeError(f"{of} has no option")
    return command


def read_program(path):
    done = subprocess.run([path, "--describe"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise DescribeError(f"{path} --describe ended with {done.returncode}: {done.stderr.strip()}")
    try:
        program = read_command(json.loads(done.stdout), path)
    except json.JSONDecodeError as error:
        raise DescribeError(f"{path} --describe is no JSON: {error}") from error
    program.name = pathlib.Path(path).name
    return program


# ---- man pages ------------------------------------------------------------------------------------------------------


def summary(command):
    """What follows the program's name: 'signvote: look after a run. Exit codes: …' → 'look after a run'."""
    text = command.text.removeprefix(command.name + ":").strip()
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]


def sentence(text):
    return text[:1].upper() + text[1:].rstrip(".") + "."


def remark(option):
    """What is to be said of an option beside its text, in words."""
    words = []
    if option.least:
        words.append(f"{option.least} to {option.most}")
    if option.many and "repeatable" not in option.text:
        words.append("repeatable")
    if option.default:
        of_machine = [MACHINE_DEFAULTS[n] for n in option.names if n in MACHINE_DEFAULTS]
        words.append(f"default {(of_machine or [option.default])[0]}")
    if option.env:
        words.append(f"else from ${option.env}")
    if option.needs:
        words.append(f"only with {' and '.join(option.needs)}")
    if option.excludes:
        words.append(f"not with {' or '.join(option.excludes)}")
    return f" ({'; '.join(words)})" if words else ""


def value_name(option):
    if option.choices:
        return "|".join(option.choices)
    return {"UINT": "N", "INT": "N", "FLOAT": "X"}.get(option.type, option.type)


def gnu_option(option):
    value = value_name(option)
    names = ", ".join(option.names)
    if value and option.long_names:
        names += "=" + value
    return f"  {names}\n{' ' * TEXT_COLUMN}{option.text}{remark(option)}"


def gnu_help(program):
    """The program's help as help2man expects it."""
    out = [f"Usage: {program.usage}\n", sentence(summary(program)) + "\n"]

    def groups(options):
        for group in dict.fromkeys(o.group for o in options):
            out.append(f"{group}:")
            out.extend(gnu_option(o) for o in options if o.group == group)
            out.append("")

    if program.subcommands:
        out.append("Commands:")
        for sub in program.subcommands:
            # `signvote journal verify DIR`: a command of commands is told by those.
            for words, command in [([sub.name, s.name], s) for s in sub.subcommands] or [([sub.name], sub)]:
                names = " ".join([*words, *(p.names[0] for p in command.positionals)])
                out.append(f"  {names}\n{' ' * TEXT_COLUMN}{command.text}")
        out.append("")
    groups(program.options)
    for sub in program.subcommands:
        own = [o for o in sub.options if "--help" not in o.names]
        if own:
            out.append(f"Options of {sub.name}:")
            out.extend(gnu_option(o) for o in own)
            out.append("")
    return "\n".join(out) + "\n"


def run_help2man(help2man, script, name, includes, version, out):
    section = "8" if name in ADMINISTRATION else "1"
    common = [] if name in OWN_EXIT_STATUS else ["exit_status"]
    command = [help2man, "--no-info", "--no-discard-stderr", f"--section={section}", f"--version-string={version}",
               "--source=signvote", f"--manual={'System Administration' if section == '8' else 'User Commands'}",
               *[f"--include={pathlib.Path(includes, part + '.h2m')}" for part in [*common, name]],
               f"--output={pathlib.Path(out, f'{name}.{section}')}", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise DescribeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")


def man_page(program, help2man, includes, version, out):
    with tempfile.TemporaryDirectory() as folder:
        # help2man runs a program; this one says what gnu_help() made of the real one's words.
        speaker = pathlib.Path(folder, program.name)
        speaker.write_text(f"#!/bin/sh\ncat <<'END_OF_HELP'\n{gnu_help(program)}END_OF_HELP\n")
        speaker.chmod(0o755)
        include = pathlib.Path(folder, f"{program.name}.h2m")
        include.write_text(f"[NAME]\n{program.name} \\- {summary(program)}\n\n" +
                           pathlib.Path(includes, f"{program.name}.h2m").read_text())
        (include.parent / "exit_status.h2m").write_text(pathlib.Path(includes, "exit_status.h2m").read_text())
        run_help2man(help2man, speaker, program.name, folder, version, out)


# ---- bash -----------------------------------------------------------------------------------------------------------


def function_name(program):
    return "_" + re.sub(r"\W", "_", program.name)


def bash_values(options):
    """The branches of `case $previous` that complete the value of an option."""
    out = []
    plain = []
    for option in options:
        if not option.type and not option.choices:
            continue
        pattern = "|".join(option.names)
        if option.choices:
            out.append(f"    {pattern}) mapfile -t COMPREPLY < <(compgen -W {shlex.quote(' '.join(option.choices))} -- "
                       '"$current"); return ;;')
        elif option.kind in FILE_KINDS | FOLDER_KINDS:
            action = "-d" if option.kind in FOLDER_KINDS else "-f"
            out.append(f"    {pattern}) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen {action} -- "
                       '"$current"); return ;;')
        else:
            plain.extend(option.names)
    if plain:
        out.append(f"    {'|'.join(plain)}) return ;;")
    return out


def bash_words(command, inherited=()):
    return " ".join(n for o in [*command.options, *inherited] for n in o.long_names)


def bash(program):
    every = list({n: o for c in [*program.subcommands, program] for o in c.options for n in o.names}.values())
    every = [o for i, o in enumerate(every) if o not in every[:i]]
    lines = [
        f"# bash completion of {program.name}, made from its --describe.",
        f"{function_name(program)}() {{",
        "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words",
        "  COMPREPLY=()",
        "  # --flag=value comes as three words.",
        "  [ \"$previous\" != = ] || previous=${COMP_WORDS[COMP_CWORD-2]}",
        "  [ \"$current\" != = ] || current=",
        "  case $previous in",
        *bash_values(every),
        "  esac",
    ]
    if program.subcommands:
        lines += [
            "  local index command=",
            "  for ((index = 1; index < COMP_CWORD; index++)); do",
            "    case ${COMP_WORDS[index]} in",
            f"      {'|'.join(s.name for s in program.subcommands)}) command=${{COMP_WORDS[index]}}; break ;;",
            "    esac",
            "  done",
            "  case $command in",
        ]
        for sub in program.subcommands:
            own = [o for o in program.options if not set(o.names) & {n for s in sub.options for n in s.names}]
            lines.append(f"    {sub.name})")
            lines.append(f"      words='{' '.join([*(s.name for s in sub.subcommands), bash_words(sub, own)])}'")
            if any(p.kind in FILE_KINDS | FOLDER_KINDS for c in [sub, *sub.subcommands] for p in c.positionals):
                lines.append('      [[ $current == -* ]] || { compopt -o filenames 2>/dev/null; '
                             'mapfile -t COMPREPLY < <(compgen -f -- "$current"); return; }')
            lines.append("      ;;")
        lines.append(f"    *) words='{' '.join(s.name for s in program.subcommands)} {bash_words(program)}' ;;")
        lines.append("  esac")
    else:
        lines.append(f"  words='{bash_words(program)}'")
    lines += ['  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")', "}",
              f"complete -F {function_name(program)} {program.name}", ""]
    return "\n".join(lines)


# ---- zsh ------------------------------------------------------------------------------------------------------------


def zsh_text(text):
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def zsh_action(option):
    if option.choices:
        return f"({' '.join(option.choices)})"
    if option.kind in FOLDER_KINDS:
        return "_files -/"
    return "_files" if option.kind in FILE_KINDS else " "


def zsh_specs(options):
    options = list(options)
    for option in options:
        # What is not offered any more once this option is there: itself, and what it excludes, under all their names.
        closed = [] if option.many else list(option.names)
        closed += [n for name in option.excludes for o in options if name in o.names for n in o.names]
        exclusion = f"({' '.join(closed)})" if closed else ""
        value = f":{zsh_text(option.type)}:{zsh_action(option)}" if option.type or option.choices else ""
        for name in option.names:
            equals = "=" if value and name.startswith("--") else ""
            yield f"{exclusion}{'*' if option.many else ''}{name}{equals}[{zsh_text(option.text)}]{value}"


def zsh_positionals(command):
    return [f":{zsh_text(p.names[0])}:{zsh_action(p)}" for p in command.positionals]


def zsh(program):
    def quoted(specs, indent):
        return " \\\n".join(indent + shlex.quote(s) for s in specs)

    lines = [f"#compdef {program.name}", f"# Made from {program.name} --describe."]
    if not program.subcommands:
        lines += ["_arguments -s -S \\", quoted(zsh_specs(program.options), "  "), ""]
        return "\n".join(lines)
    lines += ["local context state state_descr line", "typeset -A opt_args", "local -a subcommands", "subcommands=("]
    lines += [f"  {shlex.quote(s.name + ':' + s.text)}" for s in program.subcommands]
    lines += [")", "_arguments -s -S -C \\", quoted(zsh_specs(program.options), "  ") + " \\",
              "  '1:command:->command' '*::argument:->argument'", "case $state in",
              "  command) _describe command subcommands ;;", "  argument)", "    case $line[1] in"]
    for sub in program.subcommands:
        own = [o for o in program.options if not set(o.names) & {n for s in sub.options for n in s.names}]
        specs = [*zsh_specs(sub.options), *zsh_specs(own), *zsh_positionals(sub)]
        lines += [f"      {sub.name})", "        _arguments -s -S \\", quoted(specs, "          "), "        ;;"]
    lines += ["    esac", "    ;;", "esac", ""]
    return "\n".join(lines)


# ---- fish -----------------------------------------------------------------------------------------------------------


def fish_quote(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fish_option(program, option, condition):
    words = ["complete", "-c", program.name]
    if condition:
        words += ["-n", fish_quote(condition)]
    for name in option.names:
        words += ["-l", name[2:]] if name.startswith("--") else ["-s", name[1:]]
    if option.choices:
        words += ["-x", "-a", fish_quote(" ".join(option.choices))]
    elif option.kind in FILE_KINDS:
        words += ["-r", "-F"]
    elif option.kind in FOLDER_KINDS:
        words += ["-x", "-a", "'(__fish_complete_directories)'"]
    elif option.type:
        words.append("-x")
    return " ".join([*words, "-d", fish_quote(option.text)])


def fish(program):
    lines = [f"# fish completion of {program.name}, made from its --describe.", f"complete -c {program.name} -f"]
    lines += [fish_option(program, o, "") for o in program.options]
    names = " ".join(s.name for s in program.subcommands)
    for sub in program.subcommands:
        lines.append(f"complete -c {program.name} -n {fish_quote('not __fish_seen_subcommand_from ' + names)} "
                     f"-a {sub.name} -d {fish_quote(sub.text)}")
        seen = f"__fish_seen_subcommand_from {sub.name}"
        lines += [fish_option(program, o, seen) for o in sub.options if "--help" not in o.names]
        if any(p.kind in FILE_KINDS | FOLDER_KINDS for p in sub.positionals):
            lines.append(f"complete -c {program.name} -n {fish_quote(seen)} -F")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--help2man", required=True)
    parser.add_argument("--includes", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--script", action="append", default=[])
    parser.add_argument("programs", nargs="+")
    flags = parser.parse_args()
    out = pathlib.Path(flags.out)
    try:
        for folder in ("man", "bash", "zsh", "fish"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        for path in flags.programs:
            program = read_program(path)
            (out / "bash" / program.name).write_text(bash(program))
            (out / "zsh" / f"_{program.name}").write_text(zsh(program))
            (out / "fish" / f"{program.name}.fish").write_text(fish(program))
            man_page(program, flags.help2man, flags.includes, flags.version, out / "man")
        for path in flags.script:
            run_help2man(flags.help2man, path, pathlib.Path(path).name, flags.includes, flags.version, out / "man")
    except (DescribeError, OSError, subprocess.SubprocessError) as error:
        print(f"describe.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
