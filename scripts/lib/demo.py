#!/usr/bin/env python3
"""Runs the demonstration: scripts/demo --help. Standard library only; matplotlib, where installed, draws curves.png."""

import argparse
import contextlib
import csv
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.02
DRAW_SECONDS = 0.5          # between updates of the live table
LINE_SECONDS = 5.0          # between progress lines where there is no terminal
PORTS_SECONDS = 30          # for the server to listen
FIRST_ROUND_SECONDS = 300   # loading the data and the first held-out loss may take this long
STANDSTILL_SECONDS = 180    # without a commit in this time the run has failed
EXIT_SECONDS = 120          # for every process to end after the last commit
LOG_TAIL_LINES = 30
ROUNDS_MIN = 12
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
WORKERS_MAX = 63            # signvote-server --workers-max, less the one that attaches late
EVALUATIONS = 10              # of the held-out loss during the run, beside its start and end
TERMINAL = sys.stdout.isatty()
COLOUR = TERMINAL and not os.environ.get("NO_COLOR")


class DemoError(Exception):
    """Something went wrong; the text says what, `process` whose log to show."""

    def __init__(self, text, process=None):
        super().__init__(text)
        self.process = process


def paint(code, text):
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


@contextlib.contextmanager
def held_signals():
    """Ctrl-C and SIGTERM take effect at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Process:
    def __init__(self, name, command, log):
        self.name, self.log_path = name, log
        self.killed_on_purpose = False
        with open(log, "wb") as out:
            # A session of its own: Ctrl-C reaches this script only, which then stops everything in order.
            self.popen = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out,
                                          stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=lambda:
                                          signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS))
        self.pid = self.popen.pid
        self.started = time.time()

    def code(self):
        return self.popen.poll()

    def tail(self):
        try:
            return self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        except OSError:
            return []


class JsonLines:
    """Reads the new whole lines of a file that grows."""

    def __init__(self, path):
        self.path, self.offset = path, 0

    def read(self):
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self.offset += end
        return [json.loads(line) for line in data[:end].splitlines()]


class Demo:
    def __init__(self, options):
        self.options = options
        self.bin = pathlib.Path(options.bin).resolve()
        self.out = options.out.resolve()
        self.tls = self.out / "tls"
        self.logs = self.out / "logs"
        self.processes = []
        self.workers = {}
        self.rounds = []          # lines of the server's round log
        self.events = []          # what this script did: kind, worker, time
        self.status = {}          # the last `signvote status --json`
        self.drawn_lines = 0
        self.prepared = False     # the out folder is ours

    # ---- processes ----------------------------------------------------------------------------------------------

    def spawn(self, name, command):
        with held_signals():  # or a process that has just begun would be in no list of those to stop
            process = Process(name, command, self.logs / f"{name}.log")
            self.processes.append(process)
        return process

    def start_worker(self, name):
        o, mine = self.options, self.tls / "workers" / name
        command = [self.bin / "signvote-worker", "--server", f"127.0.0.1:{self.ports['grpc']}", "--name", name,
                   "--token-file", mine / "token", "--tls-ca", mine / "ca.crt", "--tls-certificate", mine / "worker.crt",
                   "--tls-key", mine / "worker.key", "--model", o.model, "--threads", o.threads,
                   "--http", "127.0.0.1:0", "--report", self.out / f"{name}.report.json",
                   "--round-log", self.out / f"{name}.rounds.jsonl"]
        # The server asks one of those that can; here it is the one whose report is read, which nobody kills.
        if name != self.names[0]:
            command += ["--eval", "off"]
        for flag in ("data", "batch", "sequence"):
            if getattr(o, flag) is not None:
                command += [f"--{flag}", getattr(o, flag)]
        self.workers[name] = self.spawn(name, command)
        return self.workers[name]

    def check_processes(self):
        """Raises when a process ended that should not have."""
        for process in self.processes:
            code = process.code()
            if code is None or process.killed_on_purpose or code == 0:
                continue
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise DemoError(f"{process.name} (pid {process.pid}) {how}", process)

    def stop_everything(self):
        for process in self.processes:
            if process.code() is None:
                process.popen.kill()
        for process in self.processes:
            try:
                process.popen.wait(10)
            except subprocess.TimeoutExpired:
                print(f"{process.name} (pid {process.pid}) does not die", file=sys.stderr)

    # ---- the run ------------------------------------------------------------------------------------------------

    def prepare(self):
        for program in ("signvote", "signvote-server", "signvote-worker"):
            if not os.access(self.bin / program, os.X_OK):
                raise DemoError(f"{self.bin / program} is missing; build it (scripts/demo without --no-build)")
        if self.out.exists():
            if any(self.out.iterdir()) and not (self.out / ".signvote-demo").exists():
                raise DemoError(f"--out {self.out}: not empty and not the folder of an earlier demo; choose another")
            shutil.rmtree(self.out)
        self.logs.mkdir(parents=True)
        (self.out / ".signvote-demo").write_text("made by scripts/demo, which may remove this folder\n")
        self.prepared = True
        n = self.options.workers
        self.names = [f"worker-{k}" for k in range(1, n + 1)]
        self.late = f"worker-{n + 1}"
        # With a single worker there is nobody to kill but the one that attaches late.
        self.victim = self.names[1] if n > 1 else self.late
        command = [self.bin / "signvote", "certs", self.tls]
        for name in [*self.names, self.late]:
            command += ["--worker", name]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise DemoError(f"signvote certs: {done.stderr.strip()}")

    def start(self):
        o = self.options
        port_file = self.out / "ports.json"
        command = [self.bin / "signvote-server", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
                   "--port-file", port_file, "--rounds", o.rounds, "--workers-min", o.workers, "--seed", o.seed,
                   "--rule", o.rule, "--eval-every", max(1, o.rounds // EVALUATIONS),
                   "--tls-ca", self.tls / "ca.crt", "--tls-certificate", self.tls / "server.crt",
                   "--tls-key", self.tls / "server.key", "--tokens", self.tls / "tokens",
                   "--journal", self.out / "journal", "--export", self.out / "model.safetensors",
                   "--round-log", self.out / "rounds.jsonl", "--event-log", self.out / "events.jsonl"]
        if o.stepsize is not None:
            command += ["--stepsize", o.stepsize]
        self.server = self.spawn("server", command)
        self.round_lines = JsonLines(self.out / "rounds.jsonl")
        deadline = time.monotonic() + PORTS_SECONDS
        while True:
            self.check_processes()
            try:
                self.ports = json.loads(port_file.read_text())
                break
            except (OSError, json.JSONDecodeError):
                if time.monotonic() > deadline:
                    raise DemoError(f"the server does not listen after {PORTS_SECONDS} s", self.server) from None
                time.sleep(POLL_SECONDS)
        for name in self.names:
            self.start_worker(name)

    def poll_status(self):
        """Asks the server as an operator would. Between two rounds of drawing it may just have ended."""
        command = [self.bin / "signvote", "--server", f"127.0.0.1:{self.ports['grpc']}", "--tls-dir", self.tls,
                   "--timeout", "5", "status", "--json"]
        try:
            done = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=10)
        except subprocess.TimeoutExpired:
            return
        if done.returncode == 0:
            self.status = json.loads(done.stdout)

    def note(self, kind, worker):
        self.events.append({"kind": kind, "worker": worker, "time": time.time(), "after_round": len(self.rounds)})

    def run(self):
        o = self.options
        attach_at, kill_at = max(1, o.rounds // 3), max(2, o.rounds // 2)
        attached = killed = False
        last_progress = time.monotonic()
        last_draw = 0.0
        while self.server.code() is None:
            self.check_processes()
            fresh = self.round_lines.read()
            if fresh:
                self.rounds += fresh
                last_progress = time.monotonic()
            done = self.main_rounds()
            if not attached and done >= attach_at:
                attached = True
                self.start_worker(self.late)
                self.note("worker_started", self.late)
            # The newcomer shall be a member before another one is killed.
            if attached and not killed and done >= kill_at and self.is_member(self.late):
                killed = True
                victim = self.workers[self.victim]
                victim.killed_on_purpose = True
                victim.popen.send_signal(signal.SIGKILL)
                self.note("worker_killed", self.victim)
            limit = FIRST_ROUND_SECONDS if not self.rounds else EXIT_SECONDS if done >= o.rounds else STANDSTILL_SECONDS
            if time.monotonic() - last_progress > limit:
                raise DemoError(f"no progress for {limit} s in round {done}", self.server)
            if time.monotonic() - last_draw > (DRAW_SECONDS if TERMINAL else LINE_SECONDS):
                last_draw = time.monotonic()
                self.poll_status()
                self.draw()
            time.sleep(POLL_SECONDS)
        self.rounds += self.round_lines.read()
        self.check_processes()
        deadline = time.monotonic() + EXIT_SECONDS
        while any(p.code() is None for p in self.processes):
            self.check_processes()
            if time.monotonic() > deadline:
                still = next(p for p in self.processes if p.code() is None)
                raise DemoError(f"{still.name} (pid {still.pid}) still runs {EXIT_SECONDS} s after the server ended", still)
            time.sleep(POLL_SECONDS)
        self.check_processes()
        self.draw()
        if not killed:
            raise DemoError(f"the run ended before {self.late} was a member; use more --rounds")
        if self.main_rounds() != o.rounds:
            raise DemoError(f"{self.main_rounds()} of {o.rounds} main rounds were committed", self.server)

    def master_digest(self):
        """Of the server's own replica after the last commit."""
        lines = [e for e in JsonLines(self.out / "events.jsonl").read() if e["kind"] == "digest" and e["worker"] == ""]
        if not lines:
            raise DemoError("the server wrote no digest of its replica", self.server)
        return lines[-1]["digest"]

    def main_rounds(self):
        """Those that --rounds counts: the trials of a race of stepsizes come on top."""
        return self.rounds[-1]["main_rounds"] if self.rounds else 0

    def is_member(self, name):
        return bool(self.rounds) and name in self.rounds[-1]["voters"]

    # ---- what is shown while it runs ----------------------------------------------------------------------------

    def draw(self):
        if not self.rounds:
            if not TERMINAL:
                print(f"waiting for {self.options.workers} workers", flush=True)
            return
        last = self.rounds[-1]
        done, total = self.main_rounds(), self.options.rounds
        race = last["race"]
        race_left = race["rounds_max"] - race["rounds"] if race and not race["over"] else 0
        recent = self.rounds[-20:]
        pace = (recent[-1]["unix_time"] - recent[0]["unix_time"]) / max(1, len(recent) - 1)
        left = pace * (total - done + race_left)
        racing = f"race {race['rounds']}/{race['rounds_max']}  " if race_left else ""
        if not TERMINAL:
            print(f"{racing}round {done}/{total}  loss {number(last['loss'], '.4f')}  stepsize {last['stepsize']:.3g}  "
                  f"voters {len(last['voters'])}  {pace * 1e3:.0f} ms/round  {left:.0f} s left", flush=True)
            return
        width = 40
        filled = int(width * done / total)
        lines = [
            paint("1", "signvote demo") + f"   {self.options.model}, {self.options.rule}, seed {self.options.seed}",
            "[" + paint("32", "█" * filled) + "·" * (width - filled)
            + f"] {racing}{done}/{total}   {pace * 1e3:.0f} ms a round, {left:.0f} s left",
            f"loss {paint('1', number(last['loss'], '.4f'))} nats/byte   stepsize {last['stepsize']:.4g}   voters {len(last['voters'])}",
        ]
        wire = self.status.get("wire", {})
        moved = wire.get("up_rounds_bytes", 0) + wire.get("down_rounds_bytes", 0)
        if moved:
            lines.append(f"moved {moved / 1e6:.1f} MB where fp32 would have moved {2 * wire['fp32_equivalent_bytes'] / 1e6:.0f} MB"
                         f"   ({2 * wire['fp32_equivalent_bytes'] / moved:.1f} x less)")
        lines.append("")
        lines.append(f"{'worker':<12}{'pid':>8}  {'role':<10}{'ballots':>8}{'agree':>8}{'up':>10}{'down':>10}{'arrival':>10}")
        known = {w["name"]: w for w in self.status.get("workers", [])}
        for name, process in self.workers.items():
            w = known.get(name, {})
            if process.code() is not None:
                role, colour = ("killed", "31") if process.killed_on_purpose else ("done", "2")
            elif not w.get("connected"):
                role, colour = "joining", "33"
            else:
                role, colour = w["role"], "32"
            lines.append(f"{name:<12}{process.pid:>8}  {paint(colour, f'{role:<10}')}{w.get('ballots', 0):>8}"
                         f"{number(w.get('agreement'), '.1%'):>8}"
                         f"{w.get('wire', {}).get('up_rounds_bytes', 0) / 1e6:>7.1f} MB"
                         f"{w.get('wire', {}).get('down_rounds_bytes', 0) / 1e6:>7.1f} MB"
                         f"{number(w.get('arrival_seconds'), '.3f'):>8} s")
        for event in self.events:
            text = {"worker_started": "attaches", "worker_killed": "killed with SIGKILL"}[event["kind"]]
            lines.append(paint("33", f"after round {event['after_round']}: {event['worker']} {text}"))
        if self.drawn_lines:
            sys.stdout.write(f"\x1b[{self.drawn_lines}F")
        sys.stdout.write("".join(line + "\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
        self.drawn_lines = len(lines)


def number(value, form):
    return "-" if value is None or not math.isfinite(value) else format(value, form)


# ---- the report --------------------------------------------------------------------------------------------------


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def seconds_to_next_commit(rounds, moment):
    """From `moment` to the first commit after it; None when there was none."""
    return next((r["unix_time"] - moment for r in rounds if r["unix_time"] > moment), None)


def members_by_round(rounds):
    """[{round, members, voters}]: one entry where the run starts and wherever one of the two sets changed."""
    changes = []
    for line in rounds:
        entry = {"round": line["round"], "members": sorted(line["members"]), "voters": sorted(line["voters"])}
        if not changes or any(changes[-1][key] != entry[key] for key in ("members", "voters")):
            changes.append(entry)
    return changes


def events_of(demo):
    """What happened to whom, by this script's clock and the round log's; both are of this machine."""
    rounds, events = demo.rounds, []
    for name in [*demo.names, demo.late]:
        first = next((r for r in rounds if name in r["members"]), None)
        if first is None:
            continue
        opened = first["unix_time"] - first["seconds"]
        # seconds_to_next_commit: from the opening of its first round to that round's commit.
        events.append({"kind": "joined", "worker": name, "round": first["round"],
                       "seconds_from_start": opened - demo.workers[name].started,
                       "seconds_to_next_commit": first["seconds"]})
    for event in demo.events:
        before = sorted(r["seconds"] for r in rounds[max(0, event["after_round"] - 20):event["after_round"]])
        events.append({"kind": event["kind"], "worker": event["worker"], "round": event["after_round"],
                       "seconds_to_next_commit": seconds_to_next_commit(rounds, event["time"]),
                       "normal_round_seconds": before[len(before) // 2]})
    return sorted(events, key=lambda e: (e["round"], e["kind"]))


def make_report(demo):
    rounds = demo.rounds
    reports = {name: json.loads((demo.out / f"{name}.report.json").read_text())
               for name, process in demo.workers.items() if not process.killed_on_purpose}
    first = reports[demo.names[0]]
    coordinates = first["coordinates"]
    digests = {"server": demo.master_digest(), **{name: r["digest"] for name, r in reports.items()}}
    splits = [r["time_split"] for r in reports.values()]
    votes = [r["rounds_voted"] for r in reports.values()]
    return {
        "rounds": len(rounds),
        "main_rounds": demo.main_rounds(),
        "race_rounds": next((r["race"]["rounds"] for r in reversed(rounds) if r["race"]), 0),
        "coordinates": coordinates,
        "model": demo.options.model,
        "data": first["data"],
        "rule": demo.options.rule,
        "seed": demo.options.seed,
        "loss": {"first": rounds[0]["loss"], "last": rounds[-1]["loss"],
                 "held_out_first": first["held_out"]["first"]["loss"], "held_out_last": first["held_out"]["last"]["loss"],
                 "held_out_error": first["held_out"]["last"]["error"],
                 "unit": "nats per " + first["target_unit"]},
        # Per worker and round, of the workers that lived to the end: TCP payload of their own sockets, TLS and HTTP/2
        # included; handshakes, joining and state transfer are in "setup".
        "wire": {"up_bytes_per_round": mean(r["wire"]["sent_bytes_per_round"] for r in reports.values()),
                 "down_bytes_per_round": mean(r["wire"]["received_bytes_per_round"] for r in reports.values()),
                 "fp32_bytes_per_round": first["wire"]["fp32_bytes_per_round"],
                 "setup": {name: {"up_bytes": r["wire"]["setup_sent_bytes"], "down_bytes": r["wire"]["setup_received_bytes"]}
                           for name, r in reports.items()}},
        "stepsize": {"first": rounds[0]["stepsize"], "last": rounds[-1]["stepsize"],
                     "largest": max(r["stepsize"] for r in rounds)},
        "members": members_by_round(rounds),
        "events": events_of(demo),
        "digests": digests,
        "replicas_equal": len(set(digests.values())) == 1,
        # Seconds per round, means over the run: of the server's rounds, and of the workers' parts of them.
        "time_split": {"round": mean(r["seconds"] for r in rounds), "wait": mean(r["wait_seconds"] for r in rounds),
                       "tally": mean(r["tally_seconds"] for r in rounds),
                       "commit": mean(r["commit_seconds"] for r in rounds),
                       **{f"worker_{part}": mean(split[part] / max(1, n) for split, n in zip(splits, votes))
                          for part in splits[0]}},
        "survivors": {name: {"pid": demo.workers[name].pid, "reconnects": r["reconnects"], "rounds_voted": r["rounds_voted"]}
                      for name, r in reports.items()},
        "seconds": rounds[-1]["unix_time"] - (rounds[0]["unix_time"] - rounds[0]["seconds"]),
    }


def write_curves(demo, report):
    """curves.csv always; curves.png where matplotlib is installed. A held-out loss stands at the rounds before it."""
    held_out = {0: report["loss"]["held_out_first"]}
    lines = JsonLines(demo.out / f"{demo.names[0]}.rounds.jsonl").read()
    for line in lines:
        if line["held_out"] is not None:
            held_out[line["held_out"]["round"]] = line["held_out"]["loss"]
    held_out[len(demo.rounds)] = report["loss"]["held_out_last"]
    with open(demo.out / "curves.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["round", "seconds", "loss", "held_out_loss", "stepsize", "voters", "round_seconds"])
        start = demo.rounds[0]["unix_time"] - demo.rounds[0]["seconds"]
        for r in demo.rounds:  # each as of its opening
            table.writerow([r["round"], f"{r['unix_time'] - start:.3f}", r["loss"], held_out.get(r["round"], ""),
                            r["stepsize"], len(r["voters"]), f"{r['seconds']:.4f}"])
    try:
        import matplotlib
    except ImportError:
        return ["curves.csv"]
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, (top, middle, bottom) = pyplot.subplots(3, 1, sharex=True, figsize=(8, 7),
                                                    gridspec_kw={"height_ratios": [3, 2, 1]})
    numbers = [r["round"] for r in demo.rounds]
    top.plot(numbers, [r["loss"] for r in demo.rounds], linewidth=0.8, label="training")
    top.plot(list(held_out), list(held_out.values()), "o-", markersize=3, label="held out")
    top.set_ylabel("nats per byte")
    middle.semilogy(numbers, [r["stepsize"] for r in demo.rounds], linewidth=0.8, color="tab:green")
    middle.set_ylabel("stepsize")
    bottom.step(numbers, [len(r["voters"]) for r in demo.rounds], where="post", color="tab:purple")
    bottom.set_ylabel("voters")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("round")
    for event in demo.events:
        text = {"worker_started": "attached", "worker_killed": "killed"}[event["kind"]]
        for axis in (top, middle, bottom):
            axis.axvline(event["after_round"], color="grey", linestyle=":", linewidth=1)
        top.annotate(f" {event['worker']} {text}", (event["after_round"], top.get_ylim()[1]), fontsize=8, va="top")
    top.legend(loc="upper right")
    for axis in (top, middle, bottom):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(demo.out / "curves.png", dpi=120)
    return ["curves.csv", "curves.png"]


def print_report(report, out, files):
    loss, wire = report["loss"], report["wire"]
    packed = report["coordinates"] / 8
    unit = loss["unit"]
    print()
    rounds = f"{report['rounds']} rounds"
    if report["race_rounds"]:
        rounds = f"{report['main_rounds']} main rounds, and {report['race_rounds']} of a race of stepsizes,"
    print(paint("1", f"{rounds} of {report['coordinates']:,} coordinates in {report['seconds']:.1f} s"))
    print(f"  held-out loss   {number(loss['held_out_first'], '.4f')} -> {number(loss['held_out_last'], '.4f')} {unit}")
    print(f"  training loss   {number(loss['first'], '.4f')} -> {number(loss['last'], '.4f')} {unit}")
    print(f"  stepsize        {report['stepsize']['first']:.3g} -> {report['stepsize']['last']:.3g}, chosen by rule {report['rule']}")
    for way in ("up", "down"):
        moved = wire[f"{way}_bytes_per_round"]
        print(f"  {way + ' per round':<15} {moved:,.0f} bytes a worker = {moved / packed:.4f} x d/8; "
              f"fp32 needs {wire['fp32_bytes_per_round'] / moved:.1f} times as much")
    print("  time per round  " + ", ".join(f"{name.replace('worker_', 'worker ')} {seconds * 1e3:.1f} ms"
                                           for name, seconds in report["time_split"].items() if seconds is not None))
    for event in report["events"]:
        cost = number(event["seconds_to_next_commit"], ".3f")
        print(f"  round {event['round']:<8}  {event['worker']} {event['kind'].replace('_', ' ')}; next commit after {cost} s")
    for name, digest in report["digests"].items():
        print(f"  {'replica of ' + name:<22} {digest}")
    print("  " + (paint("32", "all replicas are equal") if report["replicas_equal"] else paint("31", "REPLICAS DIFFER")))
    print(f"  files           {out}: report.json, {', '.join(files)}, model.safetensors, logs/")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="scripts/demo", usage="scripts/demo [options]; see scripts/demo --help",
                                     allow_abbrev=False)

    def at_least_one(text):
        if not (text.isascii() and text.isdigit()) or int(text) == 0:
            raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
        return int(text)

    def natural(text):
        if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 64:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to {(1 << 64) - 1}")
        return int(text)

    parser.add_argument("--bin", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--check-options", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=at_least_one, default=300)
    parser.add_argument("--workers", type=at_least_one, default=3)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--data")
    parser.add_argument("--rule", default="auto", choices=["auto", "alias", "fixed", "lever"])
    parser.add_argument("--stepsize", type=float)
    parser.add_argument("--seed", type=natural, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", default=ROOT / "out" / "demo", type=pathlib.Path)
    parser.add_argument("--batch", type=at_least_one)
    parser.add_argument("--sequence", type=at_least_one)
    parser.add_argument("--threads", type=at_least_one)
    options = parser.parse_args(arguments)
    if options.rounds < ROUNDS_MIN:
        parser.error(f"--rounds {options.rounds}: at least {ROUNDS_MIN}, so that a worker can attach and another be killed")
    if options.workers > WORKERS_MAX:
        parser.error(f"--workers {options.workers}: at most {WORKERS_MAX}; one more attaches, and the server takes "
                     f"{WORKERS_MAX + 1}")
    if options.stepsize is not None and not 0 < options.stepsize < math.inf:
        parser.error(f"--stepsize {options.stepsize}: a finite number above 0")
    if options.stepsize is not None and options.rule != "fixed":
        parser.error("--stepsize needs --rule fixed: the other rule chooses by itself")
    if options.threads is None:
        options.threads = max(1, (os.cpu_count() or 1) // options.workers)
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out}: not a folder")
    if options.data is not None and not os.path.exists(options.data):
        parser.error(f"--data {options.data}: no such file or folder")
    return options


def main(arguments):
    options = parse(arguments)
    if options.check_options:
        return 0
    demo = Demo(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        demo.prepare()
        demo.start()
        demo.run()
        report = make_report(demo)
        (demo.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        print_report(report, demo.out, write_curves(demo, report))
        if not report["replicas_equal"]:
            raise DemoError("the replicas differ")
        return 0
    except DemoError as error:
        print(f"\nscripts/demo: {error}", file=sys.stderr)
        if error.process is not None:
            print(f"the end of {error.process.log_path}:", file=sys.stderr)
            for line in error.process.tail():
                print(f"  {line}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\nscripts/demo: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nscripts/demo: interrupted", file=sys.stderr)
        return 130
    finally:
        demo.stop_everything()
        if demo.prepared and not options.keep:
            shutil.rmtree(demo.tls, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
