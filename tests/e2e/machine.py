"""A machine of its own on which systemd is process 1, made of this machine's files.

New process, mount, network, control group and name namespaces, in which systemd starts on an overlay of this machine's root
folder. What happens there stays there: writes go to memory, /proc/sys and /sys are read-only, there is no network but the
loopback interface, this machine's own units are left out, and modules, clock and raw hardware cannot be touched. Whatever
ends this process ends the machine and all that runs on it.

Root is needed, and a kernel that allows all of this (a container without privileges does not): Unavailable says what it
refused.
"""

import os
import pathlib
import re
import subprocess
import time

import harness
import hosts

BOOTED = "the machine's files are ready"
BOOT_SECONDS_MAX = 30
SYSTEMD = "/lib/systemd/systemd"
# What unshare, mount and pivot_root say when the kernel does not let them. Anything else is a mistake of this file.
REFUSAL = re.compile("not permitted|permission denied|unknown filesystem type|wrong fs type|invalid argument|read-only file system",
                     re.IGNORECASE)

# $1: an empty folder; what follows are pairs of a file or folder here and where it stands, read-only, on the machine. The
# devices are those that every service may expect (systemd's PrivateDevices copies them).
_BOOT = f"""
set -eu
top=$1 root=$1/root
shift
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$top"
mkdir "$top/upper" "$top/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for folder in run tmp etc/systemd/system; do mount -t tmpfs tmpfs "$root/$folder"; done
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/dev/shm"
: >"$root/etc/fstab"
while [ $# -gt 0 ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else touch "$root$2"; fi
  mount --bind "$1" "$root$2"
  mount -o remount,bind,ro "$root$2"
  shift 2
done
ip link set lo up
mkdir "$root/outside"
cd "$root"
pivot_root . outside
umount --lazy outside
rmdir outside
echo "{BOOTED}"
exec env -i container=signvote-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
  setpriv --bounding-set=-sys_module,-sys_rawio,-sys_time {SYSTEMD} --system --unit=basic.target --log-target=console \\
  --show-status=no
"""


class Unavailable(Exception):
    """This system gives no such machine; the text says why."""


class Machine:
    """A booted machine. It ends with the process that `test` (a ProcessTest) keeps for it."""

    def __init__(self, test, *shown):
        """`shown`: (path here, path there) of what the machine sees beside this one's own files."""
        if hosts.SKIP:
            raise Unavailable("SIGNVOTE_TEST_NAMESPACES=skip leaves it out on request")
        if os.geteuid() != 0:
            raise Unavailable("only root can make one")
        if not pathlib.Path(SYSTEMD).exists():
            raise AssertionError(f"no {SYSTEMD}: run scripts/setup, or install Debian's package systemd")
        top = test.folder / "machine"
        top.mkdir()
        self._outer = test.start("machine", [
            "setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net", "--fork",
            "--kill-child", "bash", "-c", _BOOT, "bash", top, *[path for pair in shown for path in pair]])
        deadline = time.monotonic() + BOOT_SECONDS_MAX * harness.SLOWNESS
        while BOOTED not in self._outer.log():
            if not self._outer.alive:
                said = self._outer.log().strip()
                if REFUSAL.search(said):
                    raise Unavailable(said.splitlines()[-1])
                raise AssertionError(f"the machine's files cannot be made: {said}")
            if time.monotonic() > deadline:
                raise AssertionError(f"the machine is not ready after {BOOT_SECONDS_MAX} s")
            time.sleep(0.05)
        self._pid = int(pathlib.Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text())
        test.wait_until("systemd has started", lambda: self.run("systemctl", "is-system-running")[1].strip()
                        in ("running", "degraded"), BOOT_SECONDS_MAX, poll=0.2)

    def enter(self, command, wd="/", **environment):
        """`command` as it must be written to run there, as root and with a plain environment."""
        plain = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment}
        return ["nsenter", f"--target={self._pid}", "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net", "--root",
                f"--wdns={wd}", "env", "-i", *[f"{name}={value}" for name, value in plain.items()], *map(str, command)]

    def run(self, *command, timeout=60, wd="/", **options):
        """Runs a command there to its end; returns (exit status, stdout, stderr)."""
        done = subprocess.run(self.enter(command, wd), capture_output=True, text=True, timeout=timeout * harness.SLOWNESS,
                              check=False, **{"stdin": subprocess.DEVNULL, **options})
        return done.returncode, done.stdout, done.stderr

    def do(self, *command, **options):
        """The same; its stdout. Raises when it fails."""
        code, out, err = self.run(*command, **options)
        if code != 0:
            raise AssertionError(f"{' '.join(map(str, command))} ended with {code}:\n{out}{err}")
        return out
