"""Small wrong changes to a C++ source: what scripts/mutate compiles and holds the tests against.

A mutant replaces one stretch of the text. It keeps the number of lines, so that nothing but the change itself can alter the
object code. The mutators know tokens, not C++: what they write may not compile, and is then dropped by whoever asked. They rely
on the repository's layout (.clang-format): a binary operator has blanks around it, the angle bracket of a template has not.

Left alone: comments, literals of text, preprocessor lines, static_assert; SIGNVOTE_CHECK, which states what cannot happen; log
lines; and calls that change cost alone (reserve).
"""

import re
from typing import Iterator, NamedTuple

TOKEN = re.compile(r"""
    (?P<skip>\s+|//[^\n]*|/\*.*?\*/|^[ \t]*\#(?:[^\n\\]|\\.|\\\n)*)
  | (?P<text>(?:u8|[uUL])?R"(?P<delimiter>[^()\s]*)\(.*?\)(?P=delimiter)"|(?:u8|[uUL])?"(?:\\.|[^"\\\n])*"|(?:u8|[uUL])?'(?:\\.|[^'\\\n])+')
  | (?P<number>(?:0[xX][0-9a-fA-F'.]+(?:[pP][-+]?\d+)?|\.?\d(?:[\d'.]|[eE][-+]?\d)*)[uUlLzZfF]*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<op><=>|<<=|>>=|\.\.\.|->\*|::|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|.)
""", re.VERBOSE | re.DOTALL | re.MULTILINE)

# An operator with blanks around it, and what it becomes.
SWAPPED = {
    "comparison": {"<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"), "==": ("!=",), "!=": ("==",)},
    "logic": {"&&": ("||",), "||": ("&&",)},
    "arithmetic": {"+": ("-",), "-": ("+",), "*": ("/",), "/": ("*",), "%": ("/",), "<<": (">>",), ">>": ("<<",), "&": ("|",),
                   "|": ("&",), "^": ("|",), "+=": ("-=",), "-=": ("+=",), "*=": ("/=",), "/=": ("*=",), "|=": ("&=",),
                   "&=": ("|=",)},
}
UNCHECKED = re.compile(r"SIGNVOTE_CHECK|static_assert|Log(?:Debug|Info|Warning|Error)?$")
COST_ONLY = ("reserve", "shrink_to_fit")
# What no statement that may be dropped begins with.
NO_STATEMENT = {"if", "for", "while", "do", "switch", "case", "default", "else", "using", "namespace", "class", "struct", "enum",
                "template", "public", "private", "protected", "static", "constexpr", "const", "auto", "explicit", "friend", "typedef",
                "extern", "goto", "inline", "virtual", "return"}
CONTROL = {"if", "for", "while", "switch", "catch"}
OPEN, CLOSE = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


class Mutant(NamedTuple):
    mutator: str
    begin: int  # of the text that is replaced
    end: int
    text: str

    def apply(self, source: str) -> str:
        return source[:self.begin] + self.text + source[self.end:]

    def line(self, source: str) -> int:
        return source.count("\n", 0, self.begin) + 1

    def change(self, source: str) -> tuple[str, str]:
        """The lines that it touches, before and after, each as one line with single blanks: its name in docs/testing.md."""
        first = source.rfind("\n", 0, self.begin) + 1
        last = source.find("\n", self.end)
        last = len(source) if last < 0 else last
        return (" ".join(source[first:last].split()),
                " ".join((source[first:self.begin] + self.text + source[self.end:last]).split()))


class Token(NamedTuple):
    kind: str
    text: str
    begin: int
    end: int


def tokens_of(source: str) -> list[Token]:
    found = []
    for match in TOKEN.finditer(source):
        if match.lastgroup != "skip" and match.group("skip") is None:
            kind = next(k for k in ("text", "number", "name", "op") if match.group(k) is not None)
            found.append(Token(kind, match.group(), match.start(), match.end()))
    return found


class Source:
    """A source as tokens with the partner of each bracket."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = tokens_of(text)
        self.partner: dict[int, int] = {}
        stack = []
        for i, token in enumerate(self.tokens):
            if token.kind != "op":
                continue
            if token.text in OPEN:
                stack.append(i)
            elif token.text in CLOSE and stack:
                j = stack.pop()
                self.partner[i], self.partner[j] = j, i
        self.left_alone = [False] * len(self.tokens)
        for i, token in enumerate(self.tokens):
            if token.kind == "name" and UNCHECKED.match(token.text) and self.is_op(i + 1, "("):
                for k in range(i, self.partner.get(i + 1, i) + 1):
                    self.left_alone[k] = True

    def is_op(self, i: int, *texts: str) -> bool:
        return 0 <= i < len(self.tokens) and self.tokens[i].kind == "op" and self.tokens[i].text in texts

    def is_name(self, i: int, *texts: str) -> bool:
        return 0 <= i < len(self.tokens) and self.tokens[i].kind == "name" and self.tokens[i].text in texts

    def spaced(self, i: int) -> bool:
        """Blanks stand on both sides of token i."""
        token = self.tokens[i]
        return self.text[token.begin - 1:token.begin].isspace() and self.text[token.end:token.end + 1].isspace()

    def after_expression(self, i: int) -> bool:
        """Token i stands behind an operand, so that an operator there is binary."""
        if i == 0:
            return False
        before = self.tokens[i - 1]
        return (before.kind in ("number", "text") or before.kind == "name" and before.text not in ("return", "case", "else")
                or before.kind == "op" and before.text in (")", "]", "}", "++", "--"))

    def statement_end(self, i: int) -> int | None:
        """The token that ends the statement which begins at i: its `;`, or the `}` of its block."""
        if self.is_op(i, "{"):
            return self.partner.get(i)
        if self.is_name(i, "if", "for", "while", "switch"):
            head = i + 1 + (1 if self.is_name(i + 1, "constexpr") else 0)
            if head not in self.partner:
                return None
            end = self.statement_end(self.partner[head] + 1)
            if end is not None and self.is_name(i, "if") and self.is_name(end + 1, "else"):
                return self.statement_end(end + 2)
            return end
        while i < len(self.tokens):
            if self.is_op(i, ";"):
                return i
            if self.is_op(i, *CLOSE):
                return None
            i = self.partner.get(i, i) + 1
        return None

    def arguments(self, opening: int) -> list[tuple[int, int]]:
        """The token ranges [first, last] of what stands between commas in a bracket."""
        closing = self.partner.get(opening)
        found, first, i = [], opening + 1, opening + 1
        if closing is None:
            return []
        while i <= closing:
            if i == closing or self.is_op(i, ","):
                if i > first:
                    found.append((first, i - 1))
                first = i + 1
            i = self.partner.get(i, i) + 1 if i < closing else i + 1
        return found

    def span(self, first: int, last: int) -> tuple[int, int]:
        return self.tokens[first].begin, self.tokens[last].end

    def of(self, first: int, last: int) -> str:
        begin, end = self.span(first, last)
        return self.text[begin:end]

    def gone(self, first: int, last: int, instead: str = "") -> tuple[int, int, str]:
        """Tokens replaced by `instead`, with as many lines as before."""
        begin, end = self.span(first, last)
        return begin, end, instead + "\n" * self.text.count("\n", begin, end)


def operators(s: Source) -> Iterator[Mutant]:
    for i, token in enumerate(s.tokens):
        if token.kind == "op":
            for mutator, table in SWAPPED.items():
                for other in table.get(token.text, ()):
                    if s.spaced(i) and s.after_expression(i):
                        yield Mutant(mutator, token.begin, token.end, other)
            if token.text in ("++", "--"):
                yield Mutant("arithmetic", token.begin, token.end, "--" if token.text == "++" else "++")
            if token.text == "!" and not s.spaced(i):
                yield Mutant("negation", token.begin, token.end, "")


def constants(s: Source) -> Iterator[Mutant]:
    for i, token in enumerate(s.tokens):
        if s.is_name(i, "true", "false"):
            yield Mutant("constant", token.begin, token.end, "false" if token.text == "true" else "true")
        elif s.is_name(i, "min", "max") and s.is_op(i - 1, "::") and s.is_name(i - 2, "std"):
            yield Mutant("min/max", token.begin, token.end, "max" if token.text == "min" else "min")
        if token.kind != "number":
            continue
        whole = re.fullmatch(r"(\d[\d']*)([uUlLzZ]*)", token.text)
        if whole and not (len(whole.group(1)) > 1 and whole.group(1).startswith("0")):
            value, suffix = int(whole.group(1).replace("'", "")), whole.group(2)
            for other in ([value + 1, value - 1] if value > 1 else [1 - value, 2] if value == 1 else [1]):
                yield Mutant("constant", token.begin, token.end, f"{other}{suffix}")
        elif re.fullmatch(r"\d*\.\d*(?:e-?\d+)?f?", token.text):
            suffix = "f" if token.text.endswith("f") else ""
            value = float(token.text.rstrip("f"))
            for other in ([value * 2, value / 2] if value else [1.0]):
                yield Mutant("constant", token.begin, token.end, f"{other!r}{suffix}")


def conditions(s: Source) -> Iterator[Mutant]:
    for i in range(len(s.tokens)):
        if not s.is_name(i, "if", "while") or not s.is_op(i + 1, "(") or i + 1 not in s.partner:
            continue
        closing = s.partner[i + 1]
        first = i + 2
        for k in range(i + 2, closing):  # `if (auto x = f(); condition)`
            if s.is_op(k, ";"):
                first = k + 1
        if first < closing:
            begin, end = s.span(first, closing - 1)
            yield Mutant("negation", begin, end, f"!({s.text[begin:end]})")


def statements(s: Source) -> Iterator[Mutant]:
    for i, token in enumerate(s.tokens):
        begins = s.is_op(i - 1, ";", "{", "}", ":") or s.is_name(i - 1, "else") or (
            s.is_op(i - 1, ")") and s.is_name(s.partner.get(i - 1, 0) - 1, *CONTROL))
        if not begins or s.left_alone[i]:
            continue
        if token.kind == "name" and token.text in ("return", "break", "continue"):
            end = s.statement_end(i)
            if end is not None:
                yield Mutant("early return", *s.gone(i, end, ";"))
        elif token.kind == "name" and token.text not in NO_STATEMENT or s.is_op(i, "*", "++", "--", "("):
            end = s.statement_end(i)
            if end is not None and s.is_op(end, ";") and has_effect(s, i, end):
                yield Mutant("dropped statement", *s.gone(i, end, ";"))


def has_effect(s: Source, first: int, end: int) -> bool:
    """The tokens are a call or an assignment, not a declaration."""
    i = first
    if any(s.is_name(k, *COST_ONLY) for k in range(first, end)):
        return False
    while i < end:
        if s.tokens[i].kind == "name" and i + 1 < end and s.tokens[i + 1].kind == "name":
            return False  # `Type name`
        if s.is_op(i, "++", "--") or s.is_op(i, "=", "+=", "-=", "*=", "/=", "|=", "&=", "<<") and i > first:
            return True
        if s.is_op(i, ">", "&", "*") and i > first and not s.spaced(i) and i + 1 < end and s.tokens[i + 1].kind == "name":
            return False  # `Type<T> name`, `Type& name`
        if s.is_op(i, "("):
            return True
        i = s.partner.get(i, i) + 1
    return False


def branches(s: Source) -> Iterator[Mutant]:
    for i in range(len(s.tokens)):
        if s.is_name(i, "else"):
            end = s.statement_end(i + 1)
            if end is not None:
                yield Mutant("removed else", *s.gone(i, end))


def arguments(s: Source) -> Iterator[Mutant]:
    for i, token in enumerate(s.tokens):
        if not s.is_op(i, "(", "{") or i == 0 or s.tokens[i - 1].kind != "name" or s.tokens[i - 1].text in CONTROL:
            continue
        if s.is_name(i - 1, "min", "max", "StrFormat", "StrCat", "operator"):
            continue
        found = s.arguments(i)
        for (a, b), (c, d) in zip(found, found[1:]):
            one, two = s.of(a, b), s.of(c, d)
            # Designated initialisers keep their order; statements of a block are no arguments.
            if one != two and not one.startswith(".") and ";" not in one + two:
                begin, end = s.tokens[a].begin, s.tokens[d].end
                between = s.text[s.tokens[b].end:s.tokens[c].begin]
                yield Mutant("swapped arguments", begin, end, two + between + one)


def early_returns(s: Source) -> Iterator[Mutant]:
    for i in range(len(s.tokens)):
        if not s.is_op(i, "{") or i not in s.partner or s.partner[i] == i + 1:
            continue
        k = i - 1
        while s.is_name(k, "const", "noexcept", "override", "final"):
            k -= 1
        if s.is_op(k, ")") and k in s.partner and not s.is_name(s.partner[k] - 1, *CONTROL):
            at = s.tokens[i].end
            yield Mutant("early return", at, at, " return;")
            yield Mutant("early return", at, at, " return {};")


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a source, in the order of its text."""
    s = Source(source)
    spans = [s.span(k, k) for k in range(len(s.tokens)) if s.left_alone[k]]
    left_alone = {position for begin, end in spans for position in range(begin, end)}
    found = {mutant for make in (operators, constants, conditions, statements, branches, arguments, early_returns)
             for mutant in make(s) if mutant.begin not in left_alone}
    # Two mutators may write the same text.
    return sorted({(m.begin, m.end, m.text): m for m in sorted(found)}.values(), key=lambda m: (m.begin, m.end, m.text))


# ---- many mutants in one source


def bodies(s: Source) -> Iterator[tuple[int, int]]:
    """The outermost function bodies as token ranges, from brace to brace; not of constexpr functions, which cannot ask."""
    head = i = 0
    while i < len(s.tokens):
        if s.is_op(i, ";", "}") or s.is_op(i, "{") and i not in s.partner:
            head = i + 1
        elif s.is_op(i, "{"):
            k = i - 1
            while s.is_name(k, "const", "noexcept", "override", "final"):
                k -= 1
            if s.is_op(k, ")"):
                if not any(s.is_name(t, "constexpr", "consteval", "operator") for t in range(head, i)):
                    yield i, s.partner[i]
                i = s.partner[i]
            head = i + 1
        i += 1


def switchable(s: Source, mutant: Mutant) -> bool:
    """It lies in a function body and leaves every end of it standing: where a `return` with a value is gone, the end of a function
    may be reached that no compiler expects there."""
    if mutant.mutator == "early return" and mutant.text.strip() == ";" and s.text[mutant.begin:mutant.end] != "return;":
        return False
    return any(s.tokens[first].end <= mutant.begin and mutant.end <= s.tokens[last].begin for first, last in bodies(s))


def switched(s: Source, mutants: dict[int, Mutant], variable: str, name: str) -> str:
    """A source that holds all of these, each in a copy of its function; `variable` in the environment holds the number of the one
    that it shall be, and with any other number it is the source. A compiler's complaint names `mutant:NUMBER` as its file."""
    out = [f"#include <cstdlib>\nstatic const int mutant_number = [] {{ const char* text = std::getenv(\"{variable}\"); "
           f"return text != nullptr ? std::atoi(text) : 0; }}();\n#line 1 \"{name}\"\n"]
    done = 0
    for first, last in bodies(s):
        begin, end = s.tokens[first].begin, s.tokens[last].end
        inside = {number: m for number, m in mutants.items() if begin < m.begin and m.end < end}
        if not inside:
            continue
        line = s.text.count("\n", 0, begin) + 1
        out.append(s.text[done:begin] + "{\n")
        for number, m in inside.items():
            out.append(f"if (mutant_number == {number})\n#line {line} \"mutant:{number}\"\n"
                       f"{s.text[begin:m.begin]}{m.text}{s.text[m.end:end]}\nelse\n")
        out.append(f"\n#line {line} \"{name}\"\n{s.text[begin:end]}}}")
        done = end
    return "".join(out) + s.text[done:]


def blamed(output: str) -> tuple[set[int], set[int]]:
    """The numbers of the mutants whose lines do not compile, and of those that ask for a template in which something is wrong."""
    wrong = {int(number) for number in re.findall(r"mutant:(\d+):\d+:\d+: (?:fatal )?error", output)}
    return wrong, {int(number) for number in re.findall(r"mutant:(\d+):\d+:\d+: +required from", output)} - wrong
