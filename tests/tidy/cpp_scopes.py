"""The types of a C++ text, as far as a scan without a compiler can tell them: where they stand and what data they hold.

The scan knows namespaces, classes and blocks by the words before a brace. It is not made for what this repository does not
write: bodies behind macros, old-style function definitions, several types in one declaration.
"""

import re
from typing import Iterator, NamedTuple


class Type(NamedTuple):
    namespace: str  # "a::b"; "" is the global one. "?" stands for a namespace without a name
    name: str  # with the types around it: "Outer::Inner"
    line: int
    members: int  # data members of its own; static ones and those of its bases are none
    nested: bool  # inside another type


_PREPROCESSOR = re.compile(r"^[ \t]*#(?:[^\n\\]|\\.|\\\n)*", re.MULTILINE)
_NAMESPACE = re.compile(r"\bnamespace(?:\s+([\w:]+))?\s*$")
_ANGLES = re.compile(r"<[^<>]*>")
_ATTRIBUTES = re.compile(r"\[\[.*?\]\]|\b(?:ABSL_\w+|SIGNVOTE_\w+|alignas)\s*\([^()]*\)|\bABSL_\w+\b", re.DOTALL)
_TYPE = re.compile(r"^(?:class|struct|union)\s+([\w:]+)\s*(?:final\s*)?(?::(?!:)[\w\s:,]*)?$")
_ACCESS = re.compile(r"^(?:\s*(?:public|private|protected)\s*:(?!:))+")
_NO_DATA = re.compile(r"^(?:using|typedef|friend|static|template|virtual|explicit|enum|extern|(?:class|struct|union)\s+\w+$)\b|\boperator\b")


def _plain(head: str) -> str:
    """A declaration without access labels, attributes and template arguments."""
    head = _ATTRIBUTES.sub(" ", _ACCESS.sub("", head))
    head = re.sub(r"<<|[<>]=|->", "  ", head)
    while True:
        shorter = _ANGLES.sub("", head)
        if shorter == head:
            return re.sub(r"^\s*(?:template\s*(?:requires\b[^{]*?)?)?", "", head).strip()
        head = shorter


def _data_members(declaration: str) -> int:
    """How many data members a declaration in a class makes; `declaration` ends before its semicolon."""
    text = _plain(declaration)
    if not text or _NO_DATA.search(text):
        return 0
    if "(" in text.split("=")[0]:  # a function, unless it points to one
        return 1 if re.search(r"\(\s*\*\s*(?:const\s+)?\w+\s*\)", text) else 0
    while "(" in text:  # arguments of an initialiser
        shorter = re.sub(r"\([^()]*\)", "", text)
        if shorter == text:
            break
        text = shorter
    names = [part.split("=")[0].strip() for part in text.split(",")]
    return len(names) if len(names[0].split()) > 1 else 0


class _Scope:
    def __init__(self, kind: str, name: str, line: int):
        self.kind = kind  # "namespace", "type" or "block"
        self.name = name
        self.line = line
        self.members = 0
        self.head = ""  # of the declaration that is being read


def types(code: str) -> Iterator[Type]:
    """Every class, struct and union with a body, outside functions. `code` is without comments and literals."""
    code = _PREPROCESSOR.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), code)
    scopes = [_Scope("namespace", "", 0)]
    line, at = 1, 0
    for match in re.finditer(r"[{};]", code):
        top = scopes[-1]
        between = code[at : match.start()]
        top.head += between
        line += between.count("\n")
        at = match.end()
        if match.group() == "{":
            head = _plain(top.head)
            namespace = _NAMESPACE.search(head)
            kind, name = "block", ""
            if top.kind != "block" and namespace:
                kind, name = "namespace", namespace.group(1) or "?"
            elif top.kind == "namespace" and re.fullmatch(r"extern\s*", head):  # its "C" is a blanked literal
                kind = "namespace"
            elif top.kind != "block" and (found := _TYPE.match(head)):
                kind, name = "type", found.group(1)
            scopes.append(_Scope(kind, name, line))
        elif match.group() == "}":
            if len(scopes) == 1:
                return  # not what this scan is made for
            done = scopes.pop()
            parent = scopes[-1]
            if done.kind == "type":
                around = [s.name for s in scopes if s.kind == "type"]
                names = "::".join(s.name for s in scopes if s.kind == "namespace" and s.name)
                yield Type(names, "::".join(around + [done.name]), done.line, done.members, bool(around))
                parent.head = "body "  # `struct A {...} a;` makes a member
            elif done.kind == "namespace" or parent.kind == "namespace":
                parent.head = ""
            elif parent.kind == "type" and "(" in _plain(parent.head).split("=")[0]:
                # A function's body ends it, unless what comes is the next of its initialisers.
                following = code[at:].lstrip()[:1]
                if following not in (",", "{"):
                    parent.head = ""
        else:
            if top.kind == "type":
                top.members += _data_members(top.head)
            top.head = ""
