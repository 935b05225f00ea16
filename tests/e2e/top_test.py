"""`signvote top`: on a terminal (tmux), and where its output is piped."""

import json
import os
import re
import signal
import subprocess
import unittest

import harness
from harness import BIN, OK, UNAVAILABLE, USAGE

ROUND = re.compile("([0-9,]+) of [0-9,]+")
BRAILLE = re.compile("[\u2801-\u28ff]")
SECONDS = 30  # that a picture may take on a busy machine
COLOUR = re.compile(r"\x1b\[[0-9;]*3[1-7][;m]")


class Tmux:
    """One window with an interactive shell, on a tmux server of its own."""

    def __init__(self, folder, columns, rows, environment):
        self.base = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("LC_") and k not in ("LANG", "TMUX", "NO_COLOR")}
        env |= {"PS1": "$ ", "HISTFILE": "", "LANG": "C.UTF-8"} | environment
        subprocess.run([*self.base, "-u", "new-session", "-d", "-x", str(columns), "-y", str(rows),
                        "bash --norc --noprofile"], check=True, env=env, timeout=SECONDS)

    def run(self, *words):
        done = subprocess.run([*self.base, *words], check=True, capture_output=True, text=True, timeout=SECONDS)
        return done.stdout

    def keys(self, *keys):
        self.run("send-keys", *keys)

    def type(self, text):
        self.run("send-keys", "-l", text)
        self.keys("Enter")

    def screen(self, *flags):
        return self.run("capture-pane", "-p", *flags)

    def resize(self, columns, rows):
        self.run("resize-window", "-x", str(columns), "-y", str(rows))

    def state(self):
        """(cursor is visible, the alternate screen is on)"""
        cursor, alternate = self.run("display-message", "-p", "#{cursor_flag} #{alternate_on}").split()
        return cursor == "1", alternate == "1"

    def shell_reads(self):
        """The terminal is as a shell leaves it and no program is before the shell: what is typed now, the shell reads."""
        in_front = self.run("display-message", "-p", "#{pane_current_command}").strip()
        return self.state() == (True, False) and in_front == "bash"

    def close(self):
        subprocess.run([*self.base, "kill-server"], capture_output=True, timeout=SECONDS)


class Top(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.tmux = None
        self.certify("a", "b", "c")

    def tearDown(self):
        if self.tmux is not None:
            self.tmux.close()

    # ---- helpers ----

    def open_terminal(self, columns=100, rows=30, **environment):
        self.tmux = Tmux(self.folder, columns, rows, {
            "SIGNVOTE_SERVER": self.server.address, "SIGNVOTE_TLS_DIR": str(self.tls),
            "PATH": f"{BIN}:{os.environ['PATH']}", **environment})

    def start_server(self, *flags, **options):
        # A busy machine makes no abstentions, whose events would push others off the screen.
        return super().start_server("--deadline", "off", *flags, **options)

    def top_command(self):
        return [BIN / "signvote", "--server", self.server.address, "--tls-dir", self.tls, "top", "--interval", 0.2]

    def wait_screen(self, what, *texts, holds=lambda shown: True):
        """Waits until one look at the screen holds every text and whatever `holds` asks for, and returns it."""
        shown = ""

        def there():
            nonlocal shown
            shown = self.tmux.screen()
            return all(text in shown for text in texts) and holds(shown)
        try:
            self.wait_until(what, there, SECONDS)
        except AssertionError:
            print(f"---- the screen, without {what} {texts}:\n{shown}", flush=True)
            raise
        return shown

    def expect_shell_back(self, status):
        """The program has ended with this status and the terminal is as it was."""
        self.wait_until("cursor visible, alternate screen left, the program gone", self.tmux.shell_reads, SECONDS)
        self.tmux.keys("C-l")
        self.tmux.type("echo status=$?; stty -a")
        self.wait_screen("a shell in order", f"status={status}", "erase", " echo ", " icanon ")

    def round_shown(self):
        shown = self.wait_screen("a round", holds=ROUND.search)
        return int(ROUND.search(shown).group(1).replace(",", ""))

    def top_pid(self):
        shell = self.tmux.run("display-message", "-p", "#{pane_pid}").strip()
        return int(subprocess.run(["pgrep", "-P", shell], capture_output=True, text=True, check=True).stdout)

    # ---- on a terminal ----

    def test_the_screen_follows_the_run_and_the_terminal(self):
        self.start_server(rounds=100_000, workers_min=2)
        self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(5)
        self.open_terminal(100, 30)
        self.tmux.type("signvote top --interval 0.2")
        shown = self.wait_screen("a table with members", "round open", "a is a member", "b is a member", "compute")
        self.assertRegex(shown, r"(?m)^a +member")
        self.assertRegex(shown, BRAILLE)
        self.assertRegex(shown, r"up [0-9.]+ kB a ballot, (2[5-9]|3[0-2])\.[0-9] x")
        self.assertRegex(self.tmux.screen("-e"), COLOUR)
        self.assertEqual(self.tmux.state(), (False, True), "cursor hidden, alternate screen")

        # Events: one comes, and is killed.
        late = self.start_worker("c", "--compute-ms", 20)
        self.wait_screen("c's arrival", "c joined", "c is a member")
        late.kill()
        shown = self.wait_screen("c's end", "c lost", holds=re.compile(r"(?m)^c +lost").search)

        # The layout follows the terminal.
        def bar(shown):
            return len(re.findall("[█░]", "".join(shown.splitlines()[1:2])))

        def quit_in(shown, line):
            return "q quit" in "".join(shown.splitlines()[line:line + 1])
        narrow = bar(shown)
        self.tmux.resize(150, 45)
        self.wait_screen("addresses and a longer bar on a wide terminal", "address", "127.0.0.1:",
                         holds=lambda shown: bar(shown) - narrow == 50 and quit_in(shown, 44))
        self.tmux.resize(60, 16)
        self.wait_screen("no addresses on a narrow one",
                         holds=lambda shown: "address" not in shown and bar(shown) < narrow and quit_in(shown, 15))
        self.tmux.resize(30, 8)
        self.wait_screen("words for a tiny one", "too small: 30x8")
        self.tmux.resize(100, 30)
        self.wait_screen("the picture again", "a is a member")

        # Keys.
        self.tmux.keys("s")
        self.wait_screen("another order", "sort: share")
        self.tmux.keys("h")
        self.wait_screen("help", "freeze what is shown")
        self.tmux.keys("x")
        self.wait_screen("the picture again", "round open")
        self.tmux.keys("p")
        shown = self.wait_screen("a mark", "FROZEN", holds=ROUND.search)
        frozen = int(ROUND.search(shown).group(1).replace(",", ""))
        self.wait_round(frozen + 30)
        self.assertEqual(self.round_shown(), frozen)
        self.tmux.keys("p")
        self.wait_until("it goes on", lambda: self.round_shown() > frozen)

        # The shell's job control.
        self.tmux.keys("C-z")
        self.wait_screen("the shell", "Stopped")
        self.assertEqual(self.tmux.state(), (True, False))
        self.tmux.type("fg")
        self.wait_screen("the picture again", "round open", "q quit")
        self.assertEqual(self.tmux.state(), (False, True))
        self.tmux.keys("q")
        self.expect_shell_back(OK)

    def test_signals_give_the_terminal_back(self):
        self.start_server(rounds=100_000)
        self.start_worker("a", "--compute-ms", 20)
        self.wait_round(3)
        self.open_terminal(80, 24)
        for end in (lambda: self.tmux.keys("C-c"), lambda: os.kill(self.top_pid(), signal.SIGTERM),
                    lambda: os.kill(self.top_pid(), signal.SIGHUP)):
            # Characters and colours that are not there are not used.
            self.tmux.type("clear; LC_ALL=C NO_COLOR=1 signvote top --interval 0.2")
            shown = self.wait_screen("a table", "round open", "a is a member", "compute")
            self.assertTrue(shown.isascii(), shown)
            self.assertNotRegex(self.tmux.screen("-e"), COLOUR)
            end()
            self.expect_shell_back(OK)
        # A terminal without a screen gets lines, and is told why.
        self.tmux.type("clear; TERM=dumb signvote top --interval 0.2")
        self.wait_screen("lines", "showing lines", "TIME", "event: a joined")
        self.tmux.keys("C-c")
        self.expect_shell_back(OK)

    def test_a_lost_server_is_looked_for(self):
        self.start_server(rounds=100_000)
        first = self.server
        self.start_worker("a", "--compute-ms", 20)
        self.wait_round(3)
        port = first.ports()["grpc"]
        lines = self.start("lines", self.top_command())
        impatient = self.start("impatient", [*self.top_command(), "--server-timeout", 0.5])
        self.open_terminal(80, 24)
        self.tmux.type("signvote top --interval 0.2")
        self.wait_screen("a table", "round open", "a is a member")
        for process in (lines, impatient):
            self.wait_until(f"{process.name} shows rounds", lambda: "round-open" in process.log())
        first.kill()
        self.wait_screen("the loss", f"reconnecting to {first.address} since", "round open")
        self.assert_exit(impatient, UNAVAILABLE)
        self.assertIn("no answer for 0.5 s (--server-timeout)", impatient.log())
        # Another run on the same port.
        self.start_server(rounds=100_000, name="second", listen=f"127.0.0.1:{port}")
        self.wait_screen("the new run", self.server.ports()["run_id"], "none yet",
                         holds=lambda shown: "reconnecting" not in shown)
        self.wait_until("lines of the new run", lambda: "answers: another run" in lines.log())
        self.assertIn("top: reconnecting to", lines.log())
        lines.signal(signal.SIGTERM)
        self.assert_exit(lines, OK)
        self.tmux.keys("q")
        self.expect_shell_back(OK)

    # ---- piped ----

    def test_piped_output_is_plain_lines_to_the_end_of_the_run(self):
        rounds = 400  # enough for --once to come while they go on
        self.start_server(rounds=rounds, workers_min=2)
        lines, objects = self.start("lines", self.top_command()), self.start("json", [*self.top_command(), "--json"])
        self.wait_until("both ask", lambda: lines.log() and objects.log())
        workers = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(20)
        code, once, err = self.ctl("top", "--interval", 0.2, "--once")
        self.assertEqual(code, OK, err)
        self.assertRegex(once, r"(?m)^a +member")
        self.assertNotIn("\x1b", once)
        self.assertLessEqual(max(len(line) for line in once.splitlines()), 80)
        self.assert_all_end_well(workers.values())
        for process in (lines, objects):
            self.assert_exit(process, OK)

        text = lines.log()
        self.assertNotIn("\x1b", text)
        self.assertTrue(text.isascii())
        head, *rest = text.splitlines()
        self.assertEqual(head.split()[:4], ["TIME", "MAIN", "OF", "RACE"])
        rows = [line for line in rest if " event: " not in line]
        self.assertEqual({len(row.split()) for row in rows}, {len(head.split()) + 1}, "the time is two words")
        self.assertEqual({len(row) for row in rows}, {len(head)}, "stable columns")
        for event in ("a joined", "b is a member", "the last round is committed", "the run has ended"):
            self.assertEqual(text.count(f"event: {event}\n"), 1, text)
        self.assertEqual(rows[-1].split()[2:6], [str(rounds), str(rounds), "-", "ended"])

        answers = [json.loads(line) for line in objects.log().splitlines()]
        self.assertEqual(answers[-1]["phase"], "ended")
        self.assertEqual(answers[-1]["round"], rounds)
        events = [event for answer in answers for event in answer["events"]]
        self.assertEqual([e["sequence"] for e in events], list(range(1, len(events) + 1)))
        self.assertEqual([e["kind"] for e in events][-2:], ["finished", "ended"])

    def test_what_cannot_work_is_an_error_at_once(self):
        code, out, err = self.command("signvote", "--server", "127.0.0.1:1", "--tls-dir", self.tls, "top")
        self.assertEqual(code, UNAVAILABLE)
        self.assertEqual(out, "")
        self.assertIn("127.0.0.1:1 does not answer as a TLS server", err)
        code, _, err = self.command("signvote", "top", "--lines", "--json")
        self.assertEqual(code, USAGE)
        self.assertIn("--lines, --json and --once exclude one another", err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
