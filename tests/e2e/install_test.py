#!/usr/bin/env python3
"""What the packages install, from the packages that CPack makes of this build: the .tar.gz in a prefix of its own, the .deb
in an empty root of dpkg's. Real runs of what was installed, as an unprivileged user; and nothing left after the removal.
"""

import json
import os
import pathlib
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

import harness

BUILD = harness.BIN.parent
SOURCE = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = {"signvote": 1, "signvote-server": 8, "signvote-worker": 1, "signvote-lab": 1, "signvote-lab-run": 1,
            "signvote-synthetic-worker": 1}
OF_LIBTORCH = ("signvote-worker", "signvote-lab")
SERVICES = ("signvote-server", "signvote-worker")
WITH_COMMANDS = ("signvote", "signvote-lab")
EXPOSURE_MAX = 3.0  # systemd-analyze security: below 3 is "OK"
DEB_BYTES_MAX = 20 << 20  # LibTorch alone is 1.2 GB
DPKG_OWN = {"var/lib/dpkg", "etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/.pwd.lock"}
FLAG = re.compile(r"^  (?:-\w,)?(--[a-z0-9-]+)(?:,(--[a-z0-9-]+))?", re.MULTILINE)


def run(*command, code=0, timeout=300, **options):
    """Runs a command to its end; its stdout. Raises when it ends with another status than `code`."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout, check=False, **options)
    if code is not None and done.returncode != code:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}, not {code}:\n"
                             f"{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def files_under(root):
    return {p.relative_to(root).as_posix() for p in pathlib.Path(root).rglob("*") if p.is_file() or p.is_symlink()}


def dockerfile():
    """The stages of deploy/compose/Dockerfile in order, the words of each one's entry point, and its health check."""
    stages, entries, probes = [], {}, {}
    for line in (SOURCE / "deploy/compose/Dockerfile").read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append(rest.split()[-1])
        elif word == "ENTRYPOINT":
            entries[stages[-1]] = json.loads(rest)
        elif word == "HEALTHCHECK":
            probes[stages[-1]] = rest
    return stages, entries, probes


def worker_libtorch():
    """The folder of the LibTorch that the build's worker runs with."""
    for line in run("ldd", harness.BIN / "signvote-worker").splitlines():
        if "libtorch_cpu.so" in line:
            return pathlib.Path(line.split("=>")[1].split("(")[0].strip()).parents[2]
    raise AssertionError("the worker does not name libtorch_cpu.so")


class Installed(harness.ProcessTest):
    """Packages, a prefix and a root, made once for all tests of this file."""

    made = None

    @classmethod
    def setUpClass(cls):
        if Installed.made is None:
            Installed.made = cls.make()
        for name, value in Installed.made.items():
            setattr(cls, name, value)

    @staticmethod
    def make():
        top = pathlib.Path(tempfile.mkdtemp(prefix="signvote-install."))
        unittest.addModuleCleanup(shutil.rmtree, top)
        top.chmod(0o755)  # an unprivileged user has to come through
        packages = top / "packages"
        run("cpack", "--config", BUILD / "CPackConfig.cmake", "-B", packages)
        (deb,), (archive,) = packages.glob("*.deb"), packages.glob("*.tar.gz")
        prefix = top / "a prefix"  # with a space
        prefix.mkdir()
        run("tar", "--extract", "--file", archive, "--directory", prefix, "--strip-components=1", "--no-same-owner")
        root = top / "root"
        root.mkdir()
        run("dpkg-deb", "--extract", deb, root)
        return {"top": top, "deb": deb, "prefix": prefix, "root": root, "worker": (prefix / "bin/signvote-worker").exists()}

    def programs(self):
        return {name: section for name, section in PROGRAMS.items() if self.worker or name not in OF_LIBTORCH}

    def help(self, program, *words):
        return run(harness.BIN / program, *words, "--help")

    def flags(self, program, *words):
        return {name for found in FLAG.findall(self.help(program, *words)) for name in found if name}

    def subcommands(self, program):
        if program not in WITH_COMMANDS:
            return []
        listed = self.help(program).partition("Subcommands:\n")[2]
        return re.findall(r"^  ([a-z]+)", listed, re.MULTILINE)


class Package(Installed):
    def test_the_deb_needs_what_its_programs_load_and_no_libtorch(self):
        depends = run("dpkg-deb", "--field", self.deb, "Depends")
        for library in ("libgrpc++1.51", "libprotobuf32", "libc6", "libstdc++6", "libprometheus-cpp-core1.0"):
            self.assertIn(library, depends)
        self.assertNotIn("torch", depends)
        self.assertNotIn("cuda", depends)
        self.assertLess(self.deb.stat().st_size, DEB_BYTES_MAX)
        for line in run("dpkg-deb", "--contents", self.deb).splitlines():
            mode, owner, _, _, _, name = line.split(None, 5)
            self.assertEqual(owner, "root/root", name)
            self.assertNotIn("w", mode[5:], f"{name} is writable by others")
        control = run("dpkg-deb", "--info", self.deb, "conffiles").split()
        self.assertEqual(set(control), {"/" + f for f in files_under(self.root) if f.startswith("etc/")})

    def test_files_are_where_a_distribution_looks_for_them(self):
        expected = ["etc/logrotate.d/signvote", "etc/signvote/server.toml", "usr/bin/signvote", "usr/bin/signvote-server",
                    "usr/bin/signvote-lab-run", "usr/bin/signvote-synthetic-worker", "usr/share/signvote/deploy/lab/spot_churn.toml",
                    "usr/lib/systemd/system/signvote-server.service", "usr/lib/sysusers.d/signvote.conf",
                    "usr/lib/tmpfiles.d/signvote.conf", "usr/share/doc/signvote/copyright",
                    "usr/share/doc/signvote/docs/operations.md", "usr/share/signvote/proto/signvote/v1/training.proto"]
        if self.worker:
            expected += ["etc/signvote/worker.toml", "usr/bin/signvote-worker", "usr/bin/signvote-lab", "usr/bin/signvote-libtorch",
                         "usr/lib/signvote/signvote-worker", "usr/lib/signvote/signvote-lab",
                         "usr/lib/signvote/signvote-lab-report", "usr/share/signvote/deploy/lab/sweep_quick.toml", "usr/lib/systemd/system/signvote-worker@.service",
                         "usr/share/signvote/libtorch.sh", "usr/share/signvote/wheels.sh",
                         "usr/share/man/man8/signvote-libtorch.8"]
        for program, section in self.programs().items():
            expected += [f"usr/share/man/man{section}/{program}.{section}",
                         f"usr/share/bash-completion/completions/{program}",
                         f"usr/share/zsh/vendor-completions/_{program}",
                         f"usr/share/fish/vendor_completions.d/{program}.fish"]
        for folder in ("dashboards", "deploy/prometheus", "deploy/grafana"):
            shared = [f for f in files_under(SOURCE / folder) if not f.startswith("tests/") and f.endswith((".json", ".yml"))]
            self.assertTrue(shared)
            expected += [f"usr/share/signvote/{folder}/{f}" for f in shared]
        self.assertEqual([f for f in expected if f not in files_under(self.root)], [])
        inside = {f.removeprefix("usr/") for f in files_under(self.root)}
        self.assertEqual(files_under(self.prefix) - {"lib/signvote/libtorch"}, inside)

    def test_nothing_names_the_machine_that_built_it(self):
        secret = [str(BUILD).encode(), str(SOURCE).encode(), str(self.top).encode()]
        if self.worker:
            secret.append(str(worker_libtorch()).encode())
            for program in OF_LIBTORCH:
                path = run("readelf", "--dynamic", self.root / "usr/lib/signvote" / program)
                found = re.search(r"R(?:UN)?PATH.*\[(.*)\]", path).group(1).split(":")
                self.assertTrue(all(entry.startswith("$ORIGIN/") for entry in found), found)
        for root in (self.root, self.prefix):
            for name in files_under(root):
                text = (root / name).read_bytes()
                self.assertEqual([s for s in secret if s in text], [], name)

    def test_pages_format_without_warnings_and_describe_every_flag(self):
        codes = re.search(r"enum class ExitCode[^{]*\{(.*?)\};", (SOURCE / "common/exit_codes.h").read_text(), re.DOTALL)
        codes = re.findall(r"= (\d+),", codes.group(1))
        self.assertGreater(len(codes), 5)
        pages = dict(self.programs(), **({"signvote-libtorch": 8} if self.worker else {}))
        for program, section in pages.items():
            page = self.root / f"usr/share/man/man{section}/{program}.{section}"
            self.assertEqual(run("groff", "-man", "-Tutf8", "-ww", "-z", page), "", page)
            text = run("groff", "-man", "-Tutf8", "-P-cbou", "-rLL=200n", page)
            for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "FILES", "SEE ALSO"):
                if heading != "FILES" or program != "signvote":
                    self.assertRegex(text, rf"(?m)^{heading}$", page)
            if program == "signvote-libtorch":
                continue
            words = [()] + [(s,) for s in self.subcommands(program)]
            for word in words:
                for flag in self.flags(program, *word):
                    self.assertRegex(text, rf"(?m)^ +(?:-\w, |--[a-z-]+, )?{flag}\b", f"{page}: {word} {flag}")
            status = text.partition("EXIT STATUS")[2]
            for code in codes:
                self.assertRegex(status, rf"(?m)^ +{code} ", f"{page}: exit code {code}")


class Completions(Installed):
    def bash(self, program, *words):
        """What bash offers for the last word."""
        script = f"""
            . {self.root}/usr/share/bash-completion/completions/{program}
            COMP_WORDS=({program} "$@") COMP_CWORD=$#
            $(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            printf '%s\\n' "${{COMPREPLY[@]}}" """
        return set(run("bash", "-uc", script, "bash", *words, cwd=self.folder).split())

    def fish(self, program, *words):
        script = f"source {self.root}/usr/share/fish/vendor_completions.d/{program}.fish; complete -C \"$argv\""
        # A home of its own: fish writes there. The program has to exist for it to complete.
        environment = dict(os.environ, HOME=str(self.folder), PATH=f"{harness.BIN}:{os.environ['PATH']}")
        text = run("fish", "--no-config", "-c", script, " ".join([program, *words]), env=environment)
        return {line.split("\t")[0] for line in text.splitlines() if line}

    def zsh(self, program, *words):
        """The options that zsh's function hands to _arguments: alone, or after the subcommand."""
        script = f"""
            _arguments() {{ print -rl -- "$@"; state={'argument' if words else ''} line=({' '.join(words)}) }}
            _describe() {{ }}
            _files() {{ }}
            fpath=({self.root}/usr/share/zsh/vendor-completions)
            autoload -Uz _{program} && _{program} """
        text = run("zsh", "-fc", script)
        if words:  # the last call
            text = text[text.rfind("\n-s\n"):]
        return {f for line in text.splitlines() for f in re.findall(r"^(?:\([^)]*\))?\*?(--[a-z0-9-]+)=?\[", line)}

    def test_every_shell_offers_exactly_the_flags(self):
        for program in self.programs():
            for word in [()] + [(s,) for s in self.subcommands(program)]:
                flags = self.flags(program, *word)
                if word:
                    flags |= self.flags(program)
                self.assertEqual(self.bash(program, *word, "--"), flags, (program, word))
                self.assertEqual({f for f in self.fish(program, *word, "--") if f.startswith("--")}, flags, (program, word))
                self.assertEqual(self.zsh(program, *word), flags, (program, word))

    def test_values_are_offered_too(self):
        self.assertEqual(self.bash("signvote-server", "--deadline", ""), {"auto", "off"})
        self.assertEqual(self.bash("signvote-server", "--deadline", "=", "a"), {"auto"})
        self.assertEqual(self.fish("signvote-server", "--deadline", "a"), {"auto"})
        (self.folder / "ca.crt").write_text("")
        self.assertIn("ca.crt", self.bash("signvote-server", "--tls-ca", "ca"))
        self.assertEqual(self.bash("signvote-server", "--seed", ""), set())
        self.assertEqual(self.bash("signvote", "dr"), {"drain"})
        self.assertEqual(self.fish("signvote", "dr"), {"drain"})
        self.assertIn("ca.crt", self.bash("signvote", "export", "ca"))


class Services(Installed):
    def units(self):
        return ["signvote-server.service"] + (["signvote-worker@alice.service"] if self.worker else [])

    def unit(self, name):
        return (self.root / "usr/lib/systemd/system" / name.replace("@alice", "@")).read_text()

    def value(self, unit, key):
        return re.findall(rf"(?m)^{key}=(.*)$", self.unit(unit))

    def with_targets(self):
        """A copy of the root that has the units which every service stands on, and the programs of this system that they call."""
        root = self.folder / "root"
        shutil.copytree(self.root, root, symlinks=True)
        (root / "bin").mkdir(exist_ok=True)
        for program in ("/bin/kill", "/bin/sh"):
            shutil.copy(program, root / "bin")
        for target in pathlib.Path("/usr/lib/systemd/system").resolve().glob("*.target"):
            shutil.copy(target, root / "usr/lib/systemd/system")
        return root

    def exposure(self, root, unit):
        text = run("systemd-analyze", f"--root={root}", "--no-pager", "--offline=true",
                   f"--threshold={EXPOSURE_MAX * 10:.0f}", "security", unit)
        return float(re.search(r"Overall exposure level for \S+ ([\d.]+)", text).group(1))

    def page_row(self, title):
        """The cells of a row in docs/install.md's table of the two services."""
        (row,) = re.findall(rf"(?m)^\| {re.escape(title)} \| (.*) \| (.*) \|$", (SOURCE / "docs/install.md").read_text())
        return row

    def test_units_are_sound_and_hardened(self):
        root = self.with_targets()
        exposures = []
        for unit in self.units():
            self.assertEqual(run("systemd-analyze", f"--root={root}", "--man=no", "verify", unit), "", unit)
            exposures.append(self.exposure(root, unit))
        if self.worker:
            folder = root / "etc/systemd/system/signvote-worker@.service.d"
            folder.mkdir(parents=True)
            shutil.copy(root / "usr/share/signvote/systemd/signvote-worker-cuda.conf", folder / "cuda.conf")
            unit = "signvote-worker@alice.service"
            self.assertEqual(run("systemd-analyze", f"--root={root}", "--man=no", "verify", unit), "")
            exposures.append(self.exposure(root, unit))
        self.assertLessEqual(max(exposures), EXPOSURE_MAX)
        named = [float(n) for cell in self.page_row("`systemd-analyze security`") for n in re.findall(r"\d+\.\d", cell)]
        self.assertEqual(exposures, named[:len(exposures)], "docs/install.md names others")

    def test_an_unhardened_unit_would_be_found(self):
        root = self.with_targets()
        unit = root / "usr/lib/systemd/system/signvote-server.service"
        unit.write_text("\n".join(line for line in unit.read_text().splitlines()
                                  if not line.startswith(("Protect", "Private", "SystemCall", "Restrict", "User=", "Cap"))))
        with self.assertRaises(AssertionError):
            self.exposure(root, unit.name)

    def test_units_name_flags_pages_and_exit_codes_that_exist(self):
        codes = set(range(len(re.findall(r"(?m)^\| \d+ \| k", (SOURCE / "docs/operations.md").read_text()))))
        for unit in self.units():
            (start,) = self.value(unit, "ExecStart")
            program = pathlib.Path(start.split()[0])
            self.assertTrue(os.access(self.root / str(program).lstrip("/"), os.X_OK), program)
            self.assertEqual(set(re.findall(r"--[a-z-]+", start)) - self.flags(program.name), set())
            for page in self.value(unit, "Documentation"):
                name, section = re.match(r"man:(\S+)\((\d)\)", page).groups()
                self.assertTrue((self.root / f"usr/share/man/man{section}/{name}.{section}").exists(), page)
            listed = self.value(unit, "RestartPreventExitStatus") + self.value(unit, "RestartForceExitStatus")
            numbers = {int(n) for line in listed for n in line.split()}
            self.assertTrue(numbers and numbers <= codes, numbers)

    def test_the_page_says_when_units_start_again_and_how_long_they_take_to_stop(self):
        stops, again = self.page_row("`systemctl stop`"), self.page_row("started again")
        for unit, stop in zip(self.units(), stops):
            self.assertEqual(self.value(unit, "TimeoutStopSec"), re.findall(r"(\d+) s at most", stop), unit)
        self.assertEqual(self.value("signvote-server.service", "Restart"), ["on-abnormal"])
        self.assertEqual(self.value("signvote-server.service", "RestartForceExitStatus"), re.findall(r"exit code (\d+)", again[0]))
        if self.worker:
            unit = "signvote-worker@alice.service"
            self.assertEqual(self.value(unit, "Restart"), ["on-failure"])
            kept_down = re.search(r"not after ([\d, ]+),", again[1]).group(1)
            self.assertEqual(self.value(unit, "RestartPreventExitStatus"), [kept_down.replace(",", "")])

    def test_an_archives_services_are_those_of_usr_local(self):
        for unit in self.units():
            text = (self.prefix / "lib/systemd/system" / unit.replace("@alice", "@")).read_text()
            self.assertRegex(text, r"(?m)^ExecStart=/usr/local/bin/signvote-\w+ --config /usr/local/etc/signvote/\w+\.toml")

    def test_example_configurations_are_taken_whole(self):
        for program in [p for p in self.programs() if p in SERVICES]:
            path = self.root / f"etc/signvote/{program.removeprefix('signvote-')}.toml"
            shown = run(harness.BIN / program, "--config", path, "--print-config")
            for name, value in re.findall(r"(?m)^([a-z-]+) = (.*)$", path.read_text()):
                self.assertIn(f"{name}={value}\n", shown)
            commented = set(re.findall(r"(?m)^#([a-z-]+) = ", path.read_text()))
            self.assertEqual({f"--{name}" for name in commented} - self.flags(program), set())


class Containers(Installed):
    """No container engine runs here: what can be read is checked."""

    def compose(self, text, code=0, **environment):
        """What docker-compose makes of a compose file, without an engine. Debian's knows no `name` at the top yet."""
        self.assertTrue(shutil.which("docker-compose"), "docker-compose is missing: run scripts/setup, or install Debian's package")
        text, found = re.subn(r"(?m)^name: signvote$", "", text)
        self.assertEqual(found, 1)
        path = self.folder / "compose.yml"
        path.write_text(text)
        plain = {k: v for k, v in os.environ.items() if k != "GRAFANA_PASSWORD"}
        return run("docker-compose", "--project-directory", SOURCE / "deploy/compose", "--file", path, "config", code=code,
                   env=dict(plain, **environment))

    def test_compose_takes_the_file(self):
        import yaml
        text = (SOURCE / "deploy/compose/compose.yml").read_text()
        taken = yaml.safe_load(self.compose(text, GRAFANA_PASSWORD="secret"))
        self.assertEqual(set(taken["services"]), set(yaml.safe_load(text)["services"]))
        self.assertEqual(taken["services"]["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"], "secret")
        self.assertIn("give Grafana an admin password", self.compose(text, code=1))
        for right, wrong, message in (("read_only: true", "readonly: true", "Unsupported config option"),
                                      ("condition: service_healthy", "condition: healthy", "depends_on.server.condition"),
                                      ("- server-certs:/certs:ro", "- server-cert:/certs:ro", "no declaration was found")):
            self.assertIn(right, text)
            self.assertIn(message, self.compose(text.replace(right, wrong), code=1, GRAFANA_PASSWORD="secret"))

    def test_the_compose_file_names_what_exists(self):
        import yaml
        folder = SOURCE / "deploy/compose"
        compose = yaml.safe_load((folder / "compose.yml").read_text())
        services, stages = compose["services"], dockerfile()[0]
        volumes = set(compose["volumes"])
        used = set()
        for name, service in services.items():
            if "build" in service:
                self.assertEqual((folder / service["build"]["context"]).resolve(), SOURCE)
                self.assertTrue((SOURCE / service["build"]["dockerfile"]).is_file())
                self.assertIn(service["build"]["target"], stages)
            self.assertEqual(set(service.get("depends_on", {})) - set(services), set(), name)
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((folder / source).exists(), f"{name}: {source}")
                else:
                    used.add(source)
                    self.assertIn(source, volumes)
            image = service["image"]
            program = {"signvote-server": "signvote-server", "signvote-worker": "signvote-worker"}.get(image)
            words = [*service.get("entrypoint", []), *service.get("command", [])]
            if name == "ctl":
                program = "signvote"
            if name != "certs" and program in self.programs():
                flags = {word.split("=")[0] for word in words if word.startswith("--")}
                self.assertTrue(flags)
                self.assertEqual(flags - self.flags(program), set(), name)
        self.assertEqual(used, volumes)

    def test_prometheus_is_sent_to_the_ports_that_the_programs_serve(self):
        import yaml
        folder = SOURCE / "deploy/compose"
        services = yaml.safe_load((folder / "compose.yml").read_text())["services"]
        entry = dockerfile()[1]["worker"]
        for job in ("server", "workers"):
            for group in json.loads((folder / f"targets/{job}.json").read_text()):
                for target in group["targets"]:
                    host, port = target.split(":")
                    words = services[host].get("command", []) + entry if job == "workers" else services[host]["command"]
                    self.assertTrue(any(word.endswith(f"0.0.0.0:{port}") for word in words), target)
        # As Prometheus sees it: the installed folder with the targets mounted over its own.
        seen = self.folder / "prometheus"
        shutil.copytree(self.root / "usr/share/signvote/deploy/prometheus", seen)
        self.assertEqual(files_under(seen / "targets"), files_under(folder / "targets"))
        shutil.rmtree(seen / "targets")
        shutil.copytree(folder / "targets", seen / "targets")
        run("promtool", "check", "config", seen / "prometheus.yml")

    def test_grafana_finds_what_its_provisioning_names(self):
        import yaml
        installed = self.root / "usr/share/signvote"
        provisioning = installed / "deploy/grafana/provisioning"
        (source,) = yaml.safe_load((provisioning / "datasources/signvote.yml").read_text())["datasources"]
        (provider,) = yaml.safe_load((provisioning / "dashboards/signvote.yml").read_text())["providers"]
        # Grafana takes $__rate_interval from it.
        scrapes = yaml.safe_load((installed / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
        self.assertEqual(source["jsonData"]["timeInterval"], scrapes)
        # The dashboard asks whichever data source is of this type.
        dashboard = json.loads((installed / "dashboards/signvote.json").read_text())
        (choice,) = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
        self.assertEqual(source["type"], choice["query"])
        folder = provider["options"]["path"]
        self.assertEqual(provider["type"], "file")

        page = (SOURCE / "docs/dashboards.md").read_text()
        self.assertIn(f"install -D -m 644 dashboards/signvote.json {folder}/signvote.json\n", page)
        services = yaml.safe_load((SOURCE / "deploy/compose/compose.yml").read_text())["services"]
        self.assertIn(f"../../dashboards:{folder}:ro", services["grafana"]["volumes"])
        # Grafana lives in Prometheus' network there.
        self.assertEqual(services["grafana"]["network_mode"], "service:prometheus")
        port = source["url"].removeprefix("http://localhost:")
        self.assertIn(f"127.0.0.1:{port}:{port}", services["prometheus"]["ports"])

    def test_the_dockerfile_copies_what_exists_and_ends_unprivileged(self):
        stages, user, probes = [], {}, dockerfile()[2]
        for line in (SOURCE / "deploy/compose/Dockerfile").read_text().replace("\\\n", " ").splitlines():
            word, _, rest = line.partition(" ")
            if word == "FROM":
                base, *_ = rest.split()
                stages.append(rest.split()[-1])
                user[stages[-1]] = user.get(base, "root")
                self.assertTrue(base in stages or base.startswith("debian:12"), base)
            elif word == "USER":
                user[stages[-1]] = rest.strip()
            elif word == "COPY":
                origin = re.match(r"--from=(\S+) ", rest)
                if origin:
                    self.assertIn(origin.group(1), stages)
                else:
                    for source in rest.split()[:-1]:
                        self.assertTrue((SOURCE / source).exists(), source)
        for stage in ("server", "worker"):
            self.assertEqual(user[stage], "signvote")
            self.assertIn("/healthz", probes[stage])


class Runs(Installed):
    def as_nobody(self):
        """Words before a command that run it as an unprivileged user."""
        if os.geteuid() != 0:
            return []
        return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all"]

    def libtorch(self):
        """A LibTorch that any user can read: what a worker needs of the build's own, without a copy where possible."""
        own, target = worker_libtorch(), self.top / "libtorch"
        for name in ["torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1",
                     "nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcupti.so.13",
                     "torch/include/torch/csrc/api/include/torch/torch.h"]:
            if (own / name).exists() and not (target / name).exists():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(own / name, target / name)
                except OSError:
                    shutil.copy(own / name, target / name)
        return target

    def program(self, name):
        return self.prefix / "bin" / name

    def test_a_missing_libtorch_is_one_error_with_a_remedy(self):
        if not self.worker:
            self.skipTest("built without LibTorch")
        worker, fetch = self.program("signvote-worker"), self.program("signvote-libtorch")
        plain = {k: v for k, v in os.environ.items() if k != "LIBTORCH"}

        def expect(code, *needles, program=worker, arguments=("--version",), **environment):
            text = run(program, *arguments, code=code, env=dict(plain, **environment))
            for needle in needles:
                self.assertIn(needle, text)
            self.assertEqual(len(text.splitlines()), 1, text)

        run(fetch, "--remove")
        expect(harness.BAD_INPUT, "LibTorch is not installed in", "signvote-libtorch")
        expect(harness.BAD_INPUT, "signvote-lab: error: LibTorch is not installed in", program=self.program("signvote-lab"))
        expect(7, "lacks torch/include", "run signvote-libtorch", program=fetch, arguments=["--check"])
        expect(harness.BAD_INPUT, f"LIBTORCH={self.folder} has no lib/libtorch_cpu.so", LIBTORCH=str(self.folder))
        (self.folder / "lib").mkdir()
        # Else a machine without a CUDA toolkit misses that first.
        shutil.copy(self.libtorch() / "nvidia/cu13/lib/libcudart.so.13", self.folder / "lib")
        stranger = self.folder / "lib/libtorch_cpu.so"
        stranger.write_text("")
        expect(harness.BAD_INPUT, "a library does not load", "file too short", "does not fit", LIBTORCH=str(self.folder))
        shutil.copy(self.libtorch() / "torch/lib/libc10.so", stranger)  # a library, but another one
        expect(harness.BAD_INPUT, "undefined symbol", "built for LibTorch 2.", LIBTORCH=str(self.folder))
        expect(0, "signvote-worker", LIBTORCH=str(self.libtorch() / "torch"))
        expect(7, "lacks torch/include", program=fetch, arguments=["--link", self.folder])
        expect(0, "is now", program=fetch, arguments=["--link", self.libtorch()])
        expect(0, "all there", program=fetch, arguments=["--check"])
        expect(0, "all there", program=fetch, arguments=[])
        expect(0, "signvote-worker")
        expect(2, "unknown option", program=fetch, arguments=["--torch"])
        if os.geteuid() == 0:
            text = run(*self.as_nobody(), fetch, "--remove", code=4, env=plain)
            self.assertIn("may not write to", text)
        run(fetch, "--remove")
        self.assertFalse((self.prefix / "lib/signvote/libtorch").exists())

    def test_a_run_of_what_was_installed_ends_well(self):
        """From the prefix, as an unprivileged user, over mTLS; certificates by the installed program."""
        user = self.as_nobody()
        home = self.folder / "home"
        home.mkdir()
        self.folder.chmod(0o755)
        if user:
            shutil.chown(home, "nobody", "nogroup")
        run(*user, self.program("signvote"), "certs", home / "tls", "--worker", "w1", "--worker", "w2")
        key = (home / "tls/server.key").stat()
        self.assertEqual((stat.S_IMODE(key.st_mode), key.st_uid), (0o600, pwd.getpwnam("nobody").pw_uid if user else os.getuid()))
        server = self.start("server", [
            *user, self.program("signvote-server"), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--rounds", 12,
            "--workers-min", 2, "--port-file", home / "ports.json", "--export", home / "model.safetensors",
            "--tls-ca", home / "tls/ca.crt", "--tls-certificate", home / "tls/server.crt",
            "--tls-key", home / "tls/server.key", "--tokens", home / "tls/tokens"], harness.Server)
        server.port_file = home / "ports.json"
        if user:
            server.ports()
            owner = re.search(r"(?m)^Uid:\s+(\d+)", pathlib.Path(f"/proc/{server.pid}/status").read_text()).group(1)
            self.assertEqual(int(owner), pwd.getpwnam("nobody").pw_uid)
        if self.worker:
            run(self.program("signvote-libtorch"), "--link", self.libtorch())
            corpus = home / "corpus.txt"
            corpus.write_text("to vote is to count, to count is to vote. " * 500)
            workers = [self.start(name, [
                *user, self.program("signvote-worker"), "--server", server.address, "--tls-dir", home / "tls/workers" / name,
                "--model", "micro", "--threads", 1, "--batch", 2, "--data", corpus, "--report", home / f"{name}.json"])
                for name in ("w1", "w2")]
            # From the operator's command to the lab's launcher, the lab, and its report.
            sweep = home / "sweep.toml"
            sweep.write_text('tasks = ["logistic"]\nrules = ["alias2"]\n[run]\nmax-rounds = 20\n')
            run(*user, self.program("signvote"), "lab", "sweep", sweep, "--output", home / "results")
            self.assertIn("logistic", (home / "results/report.html").read_text())
        else:
            workers = [self.start(name, [
                harness.BIN / "signvote-synthetic-worker", "--server", server.address, "--name", name,
                *[f"--{flag}={home / 'tls/workers' / name / file}" for flag, file in
                  (("token-file", "token"), ("tls-ca", "ca.crt"), ("tls-certificate", "worker.crt"), ("tls-key", "worker.key"))],
                "--report", home / f"{name}.json"]) for name in ("w1", "w2")]
        self.assertEqual(server.wait(60), harness.OK)
        for worker in workers:
            self.assertEqual(worker.wait(30), harness.OK)
        digests = {json.loads((home / f"{name}.json").read_text())["digest"] for name in ("w1", "w2")}
        self.assertEqual(len(digests), 1)
        self.assertGreater((home / "model.safetensors").stat().st_size, 1000)


class Removal(Installed):
    def dpkg(self, root, *arguments):
        # The empty root has neither a shell nor the libraries: maintainer scripts run outside and honour $DPKG_ROOT.
        return run("dpkg", f"--root={root}", f"--log={self.folder}/dpkg.log", "--force-depends", "--force-script-chrootless",
                   *arguments)

    @unittest.skipUnless(os.geteuid() == 0, "dpkg installs as root only")
    def test_dpkg_leaves_nothing_but_what_people_made(self):
        root = self.folder / "root"
        for folder in ("info", "updates"):
            (root / "var/lib/dpkg" / folder).mkdir(parents=True)
        (root / "var/lib/dpkg/status").write_text("")
        (root / "etc").mkdir()
        self.dpkg(root, "--install", self.deb)
        self.assertIn("signvote:x:", (root / "etc/passwd").read_text())
        for folder, mode in (("etc/signvote/server", 0o700), ("etc/signvote/workers", 0o700), ("var/lib/signvote", 0o750)):
            status = (root / folder).stat()
            self.assertEqual(stat.S_IMODE(status.st_mode), mode, folder)
            self.assertEqual(str(status.st_uid), (root / "etc/passwd").read_text().split(":")[2], folder)
        self.assertEqual(self.dpkg(root, "--verify", "signvote"), "")
        (root / "usr/lib/signvote/libtorch/torch/lib").mkdir(parents=True)
        (root / "usr/lib/signvote/libtorch/torch/lib/libtorch_cpu.so").write_text("fetched after the installation")
        (root / "etc/signvote/server/server.key").write_text("a key")
        (root / "var/lib/signvote/model.safetensors").write_text("a model")

        def left():
            return {f for f in files_under(root) if not any(f == own or f.startswith(own + "/") or f == own + "-"
                                                            for own in DPKG_OWN)}

        self.dpkg(root, "--remove", "signvote")
        configuration = {f"etc/signvote/{name}.toml" for name in ("server", "worker") if self.worker or name == "server"}
        configuration.add("etc/logrotate.d/signvote")
        self.assertEqual(left(), configuration | {"etc/signvote/server/server.key", "var/lib/signvote/model.safetensors"})
        self.dpkg(root, "--purge", "signvote")
        self.assertEqual(left(), {"var/lib/signvote/model.safetensors"})
        self.assertFalse((root / "usr/lib/signvote").exists())

    def test_the_uninstall_target_removes_what_was_installed(self):
        manifest = BUILD / "install_manifest.txt"
        before = manifest.read_bytes() if manifest.exists() else None
        prefix = self.folder / "prefix"
        try:
            run("cmake", "--install", BUILD, "--prefix", prefix)
            self.assertTrue((prefix / "bin/signvote-server").exists())
            unit = (prefix / "lib/systemd/system/signvote-server.service").read_text()
            self.assertIn(f"ExecStart={prefix}/bin/signvote-server --config {prefix}/etc/signvote/server.toml", unit)
            if self.worker:
                (prefix / "lib/signvote/libtorch").mkdir()
            (prefix / "share/mine").write_text("not signvote's")
            run("cmake", "-P", BUILD / "deploy/package/uninstall.cmake")
        finally:
            if before is None:
                manifest.unlink(missing_ok=True)
            else:
                manifest.write_bytes(before)
        self.assertEqual(files_under(prefix), {"share/mine"})
        self.assertEqual(sorted(p.name for p in prefix.iterdir()), ["share"])


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))
