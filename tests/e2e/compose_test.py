"""deploy/compose without an engine: every service of ours as the compose file and its Dockerfile start it, on a machine of its
own that bears the service's name (hosts.py), with folders for volumes; and Prometheus with the files that the compose file
mounts. What containers add (images, users, limits) is not shown.
"""

import json
import re
import shlex
import shutil
import signal
import unittest

import harness
import hosts
from install_test import SOURCE, dockerfile

FOLDER = SOURCE / "deploy/compose"
OURS = ("server", "worker-1", "worker-2")


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class Compose(hosts.HostsTest):
    def setUp(self):
        super().setUp()
        import yaml
        self.services = yaml.safe_load((FOLDER / "compose.yml").read_text())["services"]
        _, self.entries, self.probes = dockerfile()
        self.network = self.connect("prometheus", "ctl", *OURS)

    def volume(self, name):
        folder = self.folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def words(self, name):
        """The command of a service; paths on its volumes are those of our folders."""
        service = self.services[name]
        words = service.get("entrypoint", self.entries.get(service["image"].removeprefix("signvote-"))) + service["command"]
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            words = [re.sub(rf"(?<![\w/.-]){target}(?=/|\s|$)", str(self.volume(source)), word) for word in words]
        program = harness.BIN / words[0]
        return [program if program.exists() else words[0], *words[1:]]

    def healthy(self, name):
        """What the image's health check asks."""
        (url,) = re.findall(r"http://\S+(?=\")", self.probes[self.services[name]["image"].removeprefix("signvote-")])
        return self.network[name].get(url)[0] == 200

    def up(self):
        """{instance: up} of what Prometheus scrapes."""
        try:
            answer = json.loads(self.network["prometheus"].get("http://localhost:9090/api/v1/query?query=up")[1])
        except (AssertionError, json.JSONDecodeError):
            return {}  # it has just started
        return {s["metric"]["instance"]: s["value"][1] for s in answer.get("data", {}).get("result", [])}

    def make_certificates(self):
        # The user is the image's.
        stubs = self.folder / "stubs"
        stubs.mkdir()
        (stubs / "chown").write_text(f'#!/bin/sh\necho "$@" >{stubs}/chowned\n')
        (stubs / "chown").chmod(0o755)
        shell, flags, script = self.words("certs")
        code, out, err = self.network["server"].run("env", f"PATH={stubs}:{harness.BIN}:/usr/bin:/bin", shell, flags, script)
        self.assertEqual(code, 0, out + err)
        owned = shlex.split((stubs / "chowned").read_text())
        self.assertEqual(owned[:2], ["-R", "signvote:signvote"])
        given = {name: self.volume(name) for name in ("server-certs", "admin-certs", "worker-1-certs", "worker-2-certs")}
        self.assertEqual(set(owned[2:]), {str(folder) for folder in given.values()})
        self.assertTrue((self.volume("ca") / "ca.key").exists())
        for name, folder in given.items():
            self.assertFalse((folder / "ca.key").exists(), name)

    def test_the_services_are_a_run_that_prometheus_sees(self):
        self.make_certificates()
        words = self.words("server")
        (rounds,) = [word for word in words if str(word).startswith("--max-rounds=")]
        server = self.start_on(self.network["server"], "server", [
            f"--max-rounds={harness.FOREVER}" if word == rounds else word for word in words])
        mounted = self.folder / "prometheus"
        shutil.copytree(SOURCE / "deploy/prometheus", mounted)
        shutil.rmtree(mounted / "targets")
        shutil.copytree(FOLDER / "targets", mounted / "targets")
        text = (mounted / "prometheus.yml").read_text()
        (mounted / "prometheus.yml").write_text(text.replace("_interval: 15s", "_interval: 500ms"))
        self.start_on(self.network["prometheus"], "prometheus", [
            "prometheus", "--config.file", mounted / "prometheus.yml", "--storage.tsdb.path", self.volume("prometheus"),
            "--log.level=warn"])

        def server_answers():
            try:
                return self.healthy("server")
            except AssertionError:
                return False  # nobody listens yet
        self.wait_until("the server is healthy", server_answers)
        workers = [self.start_on(self.network[name], name, self.words(name)) for name in OURS[1:]]
        targets = {"server:9151": "1", "worker-1:9152": "1", "worker-2:9152": "1"}
        self.wait_until("Prometheus sees all of them", lambda: self.up() == targets, timeout=60)
        for name in OURS[1:]:
            self.assertTrue(self.healthy(name), name)
        code, out, err = self.network["ctl"].run(*self.words("ctl"))
        self.assertEqual(code, harness.OK, err)
        self.assertIn("worker-2", out)
        # As `docker compose stop` does it, which waits as long as stop_grace_period says.
        for process in (*workers, server):
            process.signal(signal.SIGTERM)
            self.assert_exit(process, harness.OK, timeout=60)
        state = self.volume("state")
        self.assertTrue(self.lines(state / "rounds.jsonl"))
        for saved in (state / "model.safetensors", *(self.volume(f"{name}-state") / "replica.safetensors" for name in OURS[1:])):
            self.assertGreater(saved.stat().st_size, 1000, saved)


if __name__ == "__main__":
    hosts.main()
