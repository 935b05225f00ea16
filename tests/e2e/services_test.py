"""The services of the .deb under a systemd that is process 1 (machine.py): docs/install.md's section "Services", its blocks
executed as they stand, from the package's installation to its removal; and `signvote top` over SSH.

Where this system allows no such machine the test says why and ends as skipped: ctest shows it so, scripts/test lists it.
"""

import json
import re
import shlex
import tempfile

import harness
import machine
import top_test
from install_test import BUILD, SOURCE, run, worker_libtorch

SERVER, ALICE = "signvote-server.service", "signvote-worker@alice.service"
LIBTORCH = "/opt/torch-here"
PACKAGE = "/opt/signvote.deb"
WORK = "/var/local"  # where the page's commands are typed
OPERATOR = ["--server=127.0.0.1:7070", f"--tls-dir={WORK}/certs"]
# What a person would do where the page says `editor`: a round becomes a matter of milliseconds, their number large.
EDITOR = r"""editor() {
  case "$1" in
    */server.toml) sed -i 's/^max-rounds = .*/max-rounds = 1000000/' "$1" ;;
    */worker.toml) sed -i 's/^model = .*/model = "micro"/' "$1"; printf '%s\n' 'batch = 2' 'sequence = 32' >>"$1" ;;
    *) return 1 ;;
  esac
}
"""
SSH_PORT, SSH_KEY = "2222", "/run/operator.key"
SSH_SERVER = f"""
dropbearkey -t ed25519 -f /run/host.key >/run/host.pub 2>&1
dropbearkey -t ed25519 -f {SSH_KEY} 2>&1 | grep ^ssh- >/run/operator.pub
home=$(getent passwd root | cut -d: -f6)
install -D -m 0600 /run/operator.pub "$home/.ssh/authorized_keys"
chmod 0700 "$home" "$home/.ssh"
systemd-run --quiet --unit=ssh-server dropbear -F -E -s -r /run/host.key -p 127.0.0.1:{SSH_PORT} -P /run/dropbear.pid
"""
RESTART_SECONDS_MAX = 60  # RestartSec is 10; the rest is the programs' start on a busy machine


def page_blocks():
    """The shell blocks of docs/install.md's section "Services", in order."""
    text = (SOURCE / "docs/install.md").read_text()
    section = re.search(r"^## Services\n(.*?)^## ", text, re.MULTILINE | re.DOTALL).group(1)
    return re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


class Services(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        packages = self.folder / "packages"
        run("cpack", "--config", BUILD / "CPackConfig.cmake", "-G", "DEB", "-B", packages)
        (deb,) = packages.glob("*.deb")
        try:
            self.machine = machine.Machine(self, (deb, PACKAGE), (worker_libtorch(), LIBTORCH))
        except machine.Unavailable as why:
            self.skipTest(f"no machine with a systemd of its own: {why}")

    # ---- what the machine says --------------------------------------------------------------------------------------

    def type_in(self, block, wd):
        """A block of the page, in the folder in which the page means it."""
        self.machine.do("bash", "-euc", EDITOR + block, wd=wd)

    def property(self, unit, name):
        return self.machine.do("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def active(self, unit):
        return self.property(unit, "ActiveState")

    def journal(self, unit):
        return self.machine.do("journalctl", "--no-pager", f"--unit={unit}")

    def assert_ended(self, unit, result, status):
        self.assertEqual((self.property(unit, "Result"), self.property(unit, "ExecMainStatus")), (result, str(status)),
                         self.journal(unit))

    def status(self):
        return json.loads(self.machine.do("signvote", *OPERATOR, "status", "--json"))

    def role(self):
        return {w["name"]: w["role"] for w in self.status()["workers"] if w["connected"]}.get("alice")

    def incarnation(self):
        return {w["name"]: w["incarnation"] for w in self.status()["workers"]}["alice"]

    def process(self, unit):
        """/proc/PID/status of a service's program, as a dictionary."""
        text = self.machine.do("cat", f"/proc/{self.property(unit, 'MainPID')}/status")
        return dict(re.findall(r"(?m)^(\w+):\s+(.*)$", text))

    # ---- the section ------------------------------------------------------------------------------------------------

    def test_the_services_start_run_and_stop(self):
        certify, serve, attach, open_devices = page_blocks()
        # On a running systemd the package's scripts tell it of the units; nothing is started.
        self.machine.do("dpkg", "--install", PACKAGE)
        self.assertEqual((self.active(SERVER), self.active(ALICE)), ("inactive", "inactive"))

        self.type_in(certify, WORK)
        self.type_in(serve, f"{WORK}/certs")
        self.assertEqual(self.active(SERVER), "active", self.journal(SERVER))
        self.machine.do("tee", "/etc/signvote/workers/alice.env", stdin=self.file(
            f"LIBTORCH={LIBTORCH}/torch\nSIGNVOTE_WORKER_FLAGS=--threads 1 --eval off\n"))
        self.type_in(attach, f"{WORK}/certs/workers/alice")
        self.wait_until("alice is a member", lambda: self.role() == "member")
        words = self.machine.do("cat", f"/proc/{self.property(ALICE, 'MainPID')}/cmdline").split("\0")
        self.assertEqual(words[-5:], ["--threads", "1", "--eval", "off", ""], "the flags of its .env file")
        self.assertEqual(self.property(ALICE, "UnitFileState"), "enabled")
        self.wait_until("rounds are committed", lambda: self.status()["round"] > 20)
        user = self.machine.do("id", "--user", "signvote").strip()
        for unit in (SERVER, ALICE):
            seen = self.process(unit)
            self.assertEqual(set(seen["Uid"].split()), {user}, unit)
            self.assertEqual((int(seen["CapEff"], 16), int(seen["CapBnd"], 16)), (0, 0), unit)
            self.assertEqual((seen["NoNewPrivs"], seen["Seccomp"]), ("1", "2"), unit)

        self.the_live_view_works_over_ssh()
        self.the_logs_are_rotated()
        self.a_crashed_worker_comes_back()
        self.a_killed_server_goes_on_with_its_run()
        self.the_drop_in_for_cuda_opens_the_devices(open_devices)
        self.an_evicted_worker_stays_away()
        self.stopping_the_server_exports_the_model(user)
        self.a_taken_address_is_tried_again()
        self.the_removal_stops_what_runs()

    def file(self, text):
        handle = tempfile.TemporaryFile(mode="w+", dir=self.folder)
        self.addCleanup(handle.close)
        handle.write(text)
        handle.seek(0)
        return handle

    def the_live_view_works_over_ssh(self):
        """The screen follows the run and the terminal at this end; it ends by `q`, and with the connection."""
        self.machine.do("bash", "-euc", SSH_SERVER)
        self.wait_until("the SSH server listens", lambda: f":{SSH_PORT} " in self.machine.do("ss", "-Hltn"))
        top = shlex.join(["env", "LANG=C.UTF-8", "signvote", *OPERATOR, "top", "--interval", "0.2"])
        ssh = shlex.join(self.machine.enter(["dbclient", "-y", "-y", "-t", "-i", SSH_KEY, "-p", SSH_PORT, "root@127.0.0.1", top],
                                            TERM="screen", HOME="/run"))
        terminal = top_test.Tmux(self.folder, 100, 30, {})
        self.addCleanup(terminal.close)
        terminal.type(ssh)
        self.wait_until("the run is shown", lambda: re.search(r"(?m)^alice +member", terminal.screen())
                        and top_test.BRAILLE.search(terminal.screen()))
        self.assertNotIn("address", terminal.screen())
        terminal.resize(150, 45)
        self.wait_until("it is as wide as the terminal", lambda: re.search(r"address.*\n.*127\.0\.0\.1:", terminal.screen())
                        and "q quit" in terminal.screen().splitlines()[44])
        terminal.keys("q")
        # The picture is gone before the connection is, and until then the SSH client reads what is typed.
        self.wait_until("the terminal is as it was", terminal.shell_reads)
        terminal.keys("C-l")
        terminal.type("echo status=$?")
        self.wait_until("it ended well", lambda: "status=0" in terminal.screen())
        terminal.type(ssh)
        self.wait_until("the run is shown again", lambda: self.machine.run("pgrep", "--exact", "signvote")[0] == 0
                        and "q quit" in terminal.screen())
        self.machine.do("pkill", "--exact", "dbclient")
        self.wait_until("nothing is left", lambda: self.machine.run("pgrep", "--exact", "signvote")[0] == 1)

    def the_logs_are_rotated(self):
        """What logrotate does by the installed file, one step after the other."""
        text = self.machine.do("cat", "/etc/logrotate.d/signvote")
        patterns = re.search(r"(?m)^(/.*) {$", text).group(1).split()
        tell = re.search(r"(?s)\tpostrotate\n(.*?)\tendscript\n", text).group(1)
        logs = self.machine.do("sh", "-c", f"ls {' '.join(patterns)} 2>/dev/null || true").split()
        self.assertEqual(sorted(logs), [f"/var/lib/signvote/{name}.jsonl" for name in ("events", "rounds")])
        for log in logs:
            self.machine.do("mv", log, f"{log}.1")
        self.machine.do("sh", "-c", tell)
        self.wait_until("the round log is there again", lambda: self.machine.run(
            "test", "-s", "/var/lib/signvote/rounds.jsonl")[0] == 0)
        self.assertEqual((self.active(SERVER), self.active(ALICE)), ("active", "active"))

    def a_crashed_worker_comes_back(self):
        before = self.incarnation()
        self.machine.do("systemctl", "kill", "--signal=KILL", ALICE)
        self.wait_until("alice is back", lambda: self.role() == "member" and self.incarnation() > before, RESTART_SECONDS_MAX)
        self.assertEqual(self.property(ALICE, "NRestarts"), "1")

    def a_killed_server_goes_on_with_its_run(self):
        before = self.status()
        self.machine.do("systemctl", "kill", "--signal=KILL", SERVER)

        def goes_on():
            if self.active(SERVER) != "active":
                return False
            code, out, _ = self.machine.run("signvote", *OPERATOR, "status", "--json")
            if code != harness.OK:
                return False
            now = json.loads(out)
            return now["epoch"] == before["epoch"] + 1 and now["round"] > before["round"] and self.role() == "member"
        self.wait_until("the run goes on", goes_on, RESTART_SECONDS_MAX)
        self.assertEqual(self.status()["run_id"], before["run_id"])
        self.assertEqual((self.property(SERVER, "NRestarts"), self.property(ALICE, "NRestarts")), ("1", "1"))

    def the_drop_in_for_cuda_opens_the_devices(self, block):
        self.machine.do("systemctl", "stop", ALICE)
        self.assert_ended(ALICE, "success", harness.OK)
        report = json.loads(self.machine.do("cat", "/var/lib/signvote/alice/report.json"))
        self.assertEqual(report["outcome"], "drained")
        saved = self.machine.do("sha256sum", "/var/lib/signvote/alice/replica.safetensors").split()[0]
        self.type_in(block, "/")
        self.machine.do("systemctl", "start", ALICE)
        self.assertEqual(self.machine.do("sha256sum", "/var/lib/signvote/alice/replica.safetensors").split()[0], saved,
                         "it stays until there is a newer one of this run")
        self.assertEqual((self.property(ALICE, "PrivateDevices"), self.property(ALICE, "DevicePolicy")), ("no", "closed"))
        self.wait_until("alice is a member", lambda: self.role() == "member")

    def an_evicted_worker_stays_away(self):
        self.machine.do("signvote", *OPERATOR, "evict", "alice")
        self.wait_until("alice ends", lambda: self.active(ALICE) == "failed")
        self.assert_ended(ALICE, "exit-code", harness.REFUSED)

    def stopping_the_server_exports_the_model(self, user):
        rounds = self.status()["round"]
        self.machine.do("systemctl", "stop", SERVER)
        self.assert_ended(SERVER, "success", harness.OK)
        self.assertEqual(self.active(SERVER), "inactive")
        for name in ("model.safetensors", "config.json", "rounds.jsonl", "events.jsonl"):
            owner, mode, size = self.machine.do("stat", "--format=%u %a %s", f"/var/lib/signvote/{name}").split()
            self.assertEqual((owner, mode), (user, "640"), name)
            self.assertGreater(int(size), 0, name)
        written = self.machine.do("sh", "-c", "cat /var/lib/signvote/rounds.jsonl* | wc --lines")
        self.assertGreaterEqual(int(written), rounds)

    def a_taken_address_is_tried_again(self):
        self.machine.do("systemd-run", "--quiet", "--unit=squatter", "/usr/bin/python3", "-m", "http.server",
                        "7070")
        self.wait_until("the address is taken", lambda: ":7070 " in self.machine.do("ss", "-Hltn"))
        self.machine.run("systemctl", "start", SERVER)
        self.wait_until("the server waits to start again", lambda: self.property(SERVER, "SubState") == "auto-restart")
        self.assert_ended(SERVER, "exit-code", harness.PORT_IN_USE)
        self.machine.do("systemctl", "stop", "squatter")
        self.wait_until("the server runs", lambda: self.property(SERVER, "SubState") == "running"
                        and "listening" in self.journal(SERVER), RESTART_SECONDS_MAX)

    def the_removal_stops_what_runs(self):
        self.machine.do("dpkg", "--remove", "signvote")
        self.assertEqual(self.machine.run("pgrep", "signvote")[1], "")
        self.assertEqual(self.property(SERVER, "LoadState"), "not-found")


if __name__ == "__main__":
    harness.run_tests()
