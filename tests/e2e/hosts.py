"""Machines for tests: network namespaces on one bridge, each with an address, a name, and a link that can be slow or down.

A host is a process that does nothing but hold a network and a mount namespace. Nothing has a name outside this process, so
two runs never meet, and whatever ends this process (an exception, SIGTERM, SIGKILL) ends the holders and everything that was
started on a host; the kernel then takes the namespaces, links and mounts away.

Root is needed, or unprivileged user namespaces: prepare() enters one. Where neither is there a test fails and says so, unless
SIGNVOTE_TEST_NAMESPACES=skip.
"""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import harness

SKIP = os.environ.get("SIGNVOTE_TEST_NAMESPACES") == "skip"
NETWORK = "192.0.2"  # TEST-NET-1, RFC 5737
HOSTS_MAX = 250
# A shaped link's queue: what a switch's port holds before it drops.
QUEUE_MS = 30
# Debian's own choice, whatever this machine's is, so that figures can be compared.
CONGESTION_CONTROL = "cubic"
BURST_BYTES_MIN = 16 << 10

_PR_SET_PDEATHSIG = 1
_NEEDED = ("ip", "tc", "unshare", "nsenter", "setpriv", "mount")


class Unavailable(Exception):
    """This machine gives no network namespaces."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C: unittest stops at it, and everything is cleaned up on the way out."""

    EXIT_STATUS = 128 + signal.SIGTERM


def _refuse(what):
    raise Unavailable(f"cannot make network namespaces: {what}. Run the test as root in a place that allows them (in a "
                      "container: --cap-add=SYS_ADMIN,NET_ADMIN), or leave it out with SIGNVOTE_TEST_NAMESPACES=skip")


def _run(command):
    done = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        _refuse(f"{' '.join(str(c) for c in command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _end_with_parent():
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Namespace:
    """A holder process and its namespaces."""

    def __init__(self):
        missing = [program for program in _NEEDED if shutil.which(program) is None]
        if missing:
            _refuse(f"no {', '.join(missing)} here (Debian: iproute2, util-linux)")
        # unshare executes what follows in its own process, so that the holder's id is known.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "sh", "-c", "echo held; exec sleep infinity"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_end_with_parent, start_new_session=True)
        if self._holder.stdout.readline() != "held\n":
            _, error = self._holder.communicate()
            _refuse(error.strip() or "unshare failed")

    @property
    def pid(self):
        return self._holder.pid

    def enter(self, command):
        """`command` as it must be written to run here. Its process id is that of the program; it ends with this process."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", f"--wd={os.getcwd()}",
                "setpriv", "--pdeathsig", "KILL", *[str(word) for word in command]]

    def do(self, *command):
        return _run(self.enter(command))

    def close(self):
        self._holder.kill()
        self._holder.communicate()


class Host(Namespace):
    """One machine of a Network."""

    def __init__(self, name, address, port, switch):
        super().__init__()
        self.name, self.address = name, address
        self._port, self._switch = port, switch
        self.do("hostname", name)
        self.do("ip", "link", "set", "lo", "up")
        switch.do("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.pid)
        switch.do("ip", "link", "set", port, "master", "bridge", "up")
        self.do("ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.do("ip", "link", "set", "eth0", "up")
        self.do("ip", "route", "change", f"{NETWORK}.0/24", "dev", "eth0", "src", address, "congctl", CONGESTION_CONTROL)

    def shape(self, mbit):
        """Gives the link this rate in both directions; None: as fast as the machine goes."""
        for there, device in ((self, "eth0"), (self._switch, self._port)):
            if mbit is None:
                there.do("tc", "qdisc", "del", "dev", device, "root")
                continue
            # A burst of 1 ms: the timer's grain.
            burst = max(BURST_BYTES_MIN, int(mbit * 1e6 / 8 / 1000))
            there.do("tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", f"{mbit}mbit", "burst", burst,
                     "latency", f"{QUEUE_MS}ms")

    def dropped(self):
        """Packets that the link's queues have dropped: (from the host, to the host)."""
        counts = []
        for there, device in ((self, "eth0"), (self._switch, self._port)):
            text = there.do("tc", "-s", "qdisc", "show", "dev", device)
            counts.append(int(text.split("dropped ")[1].split(",")[0]))
        return tuple(counts)

    def link(self, state):
        """state "down": a pulled cable; nothing passes, and the programs on both sides are told nothing. "up": again."""
        self._switch.do("ip", "link", "set", self._port, state)

    def run(self, *command, timeout=30, **options):
        """Runs a command here to its end; returns (exit status, stdout, stderr)."""
        done = subprocess.run(self.enter(command), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=timeout * harness.SLOWNESS, **options)
        return done.returncode, done.stdout, done.stderr

    def get(self, url, timeout=10):
        """(status, body) of an HTTP GET from here."""
        program = ("import sys, urllib.request, urllib.error\n"
                   "try:\n"
                   "    answer = urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2]))\n"
                   "except urllib.error.HTTPError as error:\n"
                   "    answer = error\n"
                   "print(answer.status)\n"
                   "sys.stdout.write(answer.read().decode())\n")
        code, out, err = self.run(sys.executable, "-c", program, url, timeout, timeout=timeout + 10)
        if code != 0:
            raise AssertionError(f"GET {url} from {self.name}: {err.strip().splitlines()[-1]}")
        status, _, body = out.partition("\n")
        return int(status), body


class Network:
    """Hosts by name on one bridge; every host knows every other's name. A context manager."""

    def __init__(self, *names):
        self.hosts = {}
        self._switch = None
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="signvote-hosts."))
        self._names = self._folder / "hosts"
        self._names.write_text("127.0.0.1 localhost\n::1 localhost\n")
        try:
            self._switch = Namespace()
            self._switch.do("ip", "link", "add", "bridge", "type", "bridge")
            self._switch.do("ip", "link", "set", "bridge", "up")
            for name in names:
                self.add(name)
        except BaseException:
            self.close()
            raise

    def add(self, name):
        """A further host; the others know its name from now on."""
        index = len(self.hosts) + 1
        if index > HOSTS_MAX:
            raise ValueError(f"at most {HOSTS_MAX} hosts")
        host = Host(name, f"{NETWORK}.{index}", f"port{index}", self._switch)
        self.hosts[name] = host
        with self._names.open("a") as file:
            file.write(f"{host.address} {name}\n")
        host.do("mount", "--bind", self._names, "/etc/hosts")
        return host

    def __getitem__(self, name):
        return self.hosts[name]

    def close(self):
        for namespace in [*self.hosts.values(), self._switch]:
            if namespace is not None:
                namespace.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class HostsTest(harness.ProcessTest):
    """Base of tests with several machines."""

    def setUp(self):
        super().setUp()
        if SKIP:
            self.skipTest("SIGNVOTE_TEST_NAMESPACES=skip: network namespaces are left out on request")

    def run(self, result=None):
        self._networks = []
        try:
            return super().run(result)
        finally:
            for network in self._networks:
                network.close()

    def start_over(self):
        super().start_over()
        while self._networks:
            self._networks.pop().close()

    def connect(self, *names):
        network = Network(*names)
        self._networks.append(network)
        return network

    def start_on(self, host, name, command, kind=harness.Process):
        process = self.start(name, host.enter(command), kind)
        process.host = host
        return process


def prepare():
    """To be called first by a program that makes a Network: SIGTERM becomes an exception, Terminated; without root the program
    starts over as root of a user namespace of its own."""
    if os.geteuid() != 0 and not SKIP:
        if shutil.which("unshare") is None or subprocess.run(
                ["unshare", "--map-root-user", "--net", "true"], capture_output=True).returncode != 0:
            print("hosts: no root, and this system allows no user namespaces; run as root, or leave this out with "
                  "SIGNVOTE_TEST_NAMESPACES=skip", file=sys.stderr)
            sys.exit(1)
        os.execvp("unshare", ["unshare", "--map-root-user", "--net", "--mount", sys.executable, *sys.orig_argv[1:]])

    def on_sigterm(number, _):
        signal.signal(number, signal.SIG_IGN)  # once: cleaning up is not to be interrupted
        raise Terminated

    signal.signal(signal.SIGTERM, on_sigterm)


def main():
    """unittest's main for tests with several machines."""
    prepare()
    try:
        harness.run_tests()
    except Terminated:
        sys.exit(Terminated.EXIT_STATUS)
