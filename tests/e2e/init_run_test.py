"""A server without a journal is killed, and another one goes on with the run from what a worker has saved of its replica: bit for bit
as if nothing had happened. And what it does with those who are ahead of that save."""

import signal
import unittest

import harness
from harness import BAD_INPUT, OK, ProcessTest

COORDINATES = 20_000
NAMES = ["w1", "w2", "w3"]


class GoesOn(ProcessTest):
    insecure = True

    def setUp(self):
        super().setUp()
        self.certify(*NAMES)

    def serve(self, *flags, rounds, **how):
        return self.start_server("--deadline", "off", *flags, rounds=rounds, workers_min=3, **how)

    def worker(self, name, *flags):
        return self.start_worker(name, "--coordinates", COORDINATES, "--checkpoint", self.folder / "state",
                                 "--save", self.saved(name), "--round-log", self.folder / f"{name}.rounds", *flags)

    def saved(self, name):
        return self.folder / f"{name}.safetensors"

    @staticmethod
    def losses(lines):
        return {line["round"]: (line["loss"], line["stepsize_bits"], line["payload_hash"]) for line in lines}

    def stand_still(self, workers):
        """Between two rounds, of which every worker has the last; returns how many there were."""
        self.pause()
        committed = len(self.rounds())
        for name in workers:
            self.wait_until(f"{name} has every commit",
                            lambda n=name: self.lines(self.folder / f"{n}.rounds")[-1]["round"] == committed - 1)
        return committed

    def assert_goes_on(self, *flags, rounds, at, second=()):
        self.serve(*flags, rounds=rounds, name="undisturbed")
        undisturbed = {name: self.start_worker(name, "--coordinates", COORDINATES) for name in NAMES}
        digest = self.assert_all_end_well(undisturbed.values(), timeout=120)
        losses = self.losses(self.rounds())

        first = self.serve(*flags, rounds=rounds)
        workers = {name: self.worker(name, "--compute-ms", 5) for name in NAMES}
        self.wait_round(at, timeout=120)
        committed = self.stand_still(workers)
        workers["w1"].signal(signal.SIGTERM)
        self.assert_exit(workers["w1"], OK)
        first.kill()
        lines = self.rounds()
        again = self.serve(*flags, "--init", self.saved("w1"), "--return-wait", 60, *second, rounds=rounds,
                            listen=first.address)
        self.assertEqual(again.ports()["run_id"], first.ports()["run_id"])
        self.assertIn("the run goes on from a worker's replica", again.log())
        self.assertEqual(self.ctl("resume")[0], OK, "where the pause is older than the last round")
        workers["w1"] = self.worker("w1")
        self.assertEqual(self.assert_all_end_well(workers.values(), timeout=120), digest)
        self.assertEqual(self.losses(lines + self.rounds()), losses)
        self.assertEqual(self.rounds()[0]["round"], committed)
        self.assertEqual(self.report("w1")["checkpoint"]["resumed"], {"how": "exactly", "round": committed, "age_rounds": 0})
        for name in ("w2", "w3"):
            self.assertLessEqual(self.report(name)["state_transfers"], 1, f"{name} kept what it had")
        return again

    def test_momentum_and_alias(self):
        self.assert_goes_on("--rule", "alias", rounds=40, at=15)

    def test_within_a_race_and_with_a_journal_from_then_on(self):
        journal = self.folder / "journal"
        self.assert_goes_on("--rule", "lever", "--lever-race", "on", rounds=320, at=30, second=["--journal", journal])
        self.assertTrue((self.folder / "w1.x0.safetensors").exists())
        code, out, err = self.command("signvote", "journal", "verify", journal)
        self.assertEqual(code, OK, out + err)

    def test_those_who_are_ahead_of_the_save_fetch_it(self):
        flags = ["--rule", "fixed", "--stepsize", "1e-3"]
        first = self.serve(*flags, rounds=harness.FOREVER)
        workers = {name: self.worker(name, "--compute-ms", 5) for name in NAMES}
        self.wait_round(6)
        workers["w1"].signal(signal.SIGTERM)
        self.assert_exit(workers["w1"], OK)
        saved = self.report("w1")["next_round"]
        self.wait_round(saved + 6)
        first.kill()
        self.serve(*flags, "--init", self.saved("w1"), rounds=saved + 10, listen=first.address)
        workers["w1"] = self.worker("w1")
        self.assert_all_end_well(workers.values())
        self.assertEqual(self.rounds()[0]["round"], saved)
        self.assertIn("is ahead of the commits", self.server.log())

    def test_a_run_that_is_over_begins_a_new_one_and_other_settings_are_refused(self):
        flags = ["--rule", "fixed", "--stepsize", "1e-3"]
        first = self.serve(*flags, rounds=6)
        workers = {name: self.worker(name) for name in NAMES}
        self.assert_all_end_well(workers.values())
        init = ["--init", self.saved("w1")]
        again = self.serve(*flags, *init, rounds=6)
        self.assertNotEqual(again.ports()["run_id"], first.ports()["run_id"])
        again.kill()
        code, _, err = self.command("signvote-server", "--insecure", "--listen", "127.0.0.1:0", "--http", "off", "--rounds", 6, *flags,
                                    "--seed", 8, *init, "--init-as", "continue")
        self.assertEqual(code, BAD_INPUT, err)
        self.assertIn("start it with --seed 7; or begin a new run with these parameters (--init-as new)", err)


if __name__ == "__main__":
    harness.run_tests()
