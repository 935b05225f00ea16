"""A run that is stopped as a whole and taken up again ends as one that nobody stopped, bit for bit: the server has its journal,
each worker its checkpoint. And what a worker does with a checkpoint that is older, of another run, or not there."""

import os
import signal
import unittest

import harness
from harness import BAD_INPUT, OK, ProcessTest

COORDINATES = 20_000
NAMES = ["w1", "w2", "w3"]


class CheckpointRuns(ProcessTest):
    insecure = True

    def setUp(self):
        super().setUp()
        self.certify("w1", "w2", "w3", "w4")

    def journal_server(self, *flags, rounds, listen="127.0.0.1:0", workers_min=3):
        return self.start_server("--journal", self.folder / "journal", "--deadline", "off", "--return-wait", 60, *flags,
                                 listen=listen, rounds=rounds, workers_min=workers_min)

    def workers(self, *flags, names=NAMES, checkpoint=True, program="signvote-synthetic-worker"):
        state = ["--checkpoint", self.folder / "state"] if checkpoint else []
        size = ["--coordinates", COORDINATES] if program == "signvote-synthetic-worker" else []
        return self.start_workers(names, *size, *state, *flags, program=program)

    def undisturbed(self, *flags, rounds, worker_flags=(), program="signvote-synthetic-worker"):
        """Digest and losses of a run that nobody stops, without journal and checkpoints."""
        self.start_server("--deadline", "off", *flags, rounds=rounds, workers_min=3, name="undisturbed")
        workers = self.workers(*worker_flags, checkpoint=False, program=program)
        return self.assert_all_end_well(workers.values(), timeout=240), self.losses(self.rounds())

    @staticmethod
    def losses(lines):
        return {line["round"]: (line["loss"], line["stepsize_bits"], line["payload_hash"]) for line in lines}

    def stop_everything(self, workers):
        """The server first, so that all workers stand at one round; returns that round and the address."""
        address = self.server.address
        self.server.signal(signal.SIGTERM)
        self.wait_end()
        for process in workers.values():
            process.signal(signal.SIGTERM)
        for process in workers.values():
            self.assert_exit(process, OK)
        rounds = {name: self.report(name)["next_round"] for name in workers}
        self.assertEqual(len(set(rounds.values())), 1, rounds)
        return next(iter(rounds.values())), address

    def stopped_and_taken_up(self, stops, *flags, rounds, worker_flags=(), program="signvote-synthetic-worker"):
        """A run that is stopped as a whole behind each of `stops` rounds."""
        self.journal_server(*flags, rounds=rounds)
        workers = self.workers(*worker_flags, program=program)
        lines = []
        for count in stops:
            self.wait_round(count - (max(lines, key=lambda l: l["round"])["round"] + 1 if lines else 0), timeout=120)
            at, address = self.stop_everything(workers)
            lines += self.rounds()
            self.assertGreaterEqual(at, count)
            self.journal_server(*flags, rounds=rounds, listen=address)
            workers = self.workers(*worker_flags, program=program)
            resumed_at = at
        digest = self.assert_all_end_well(workers.values(), timeout=240)
        lines += self.rounds()
        for name in workers:
            self.assertEqual(self.report(name)["checkpoint"]["resumed"],
                             {"how": "exactly", "round": resumed_at, "age_rounds": 0}, name)
        return digest, self.losses(lines)

    def assert_exact(self, *flags, rounds, stops, compute_ms=5, worker_flags=(), program="signvote-synthetic-worker"):
        slow = ["--compute-ms", compute_ms] if program == "signvote-synthetic-worker" else []
        digest, losses = self.undisturbed(*flags, rounds=rounds, worker_flags=worker_flags, program=program)
        again, taken_up = self.stopped_and_taken_up(stops, *flags, rounds=rounds, worker_flags=[*slow, *worker_flags],
                                                    program=program)
        self.assertEqual(taken_up, losses)
        self.assertEqual(again, digest)


class ExactResume(CheckpointRuns):
    def test_momentum_and_alias(self):
        self.assert_exact("--direction", "signum", "--rule", "alias", rounds=40, stops=[7, 20])

    def test_alias_with_a_probe_along_the_last_verdict(self):
        self.assert_exact("--rule", "alias", "--alias-probe", "directional", rounds=30, stops=[15])

    def test_lion_in_bfloat16(self):
        self.assert_exact("--direction", "lion", "--state-dtype", "bf16", "--rule", "fixed", "--stepsize", "1e-3", rounds=30,
                          stops=[15])

    def test_adam_with_noise(self):
        self.assert_exact("--direction", "adam", "--rule", "fixed", "--stepsize", "1e-3", rounds=30, stops=[15])

    def test_an_average_of_the_signs(self):
        self.assert_exact("--aggregate", "average", "--rule", "alias", rounds=30, stops=[15])

    def test_a_stop_within_a_race(self):
        self.assert_exact("--rule", "lever", "--lever-race", "on", rounds=320, stops=[13, 150], compute_ms=3)

    def test_a_paused_run_whose_workers_are_stopped_before_the_server(self):
        flags = ["--rule", "alias"]
        digest, _ = self.undisturbed(*flags, rounds=30)
        self.journal_server(*flags, rounds=30)
        workers = self.workers("--compute-ms", 5)
        self.wait_round(10)
        self.pause()
        for process in workers.values():
            process.signal(signal.SIGTERM)
            self.assert_exit(process, OK)
        address = self.server.address
        self.server.signal(signal.SIGTERM)
        self.wait_end()
        self.journal_server(*flags, rounds=30, listen=address)
        workers = self.workers()
        self.wait_until("all are back", lambda: all("joined" in p.log() for p in workers.values()))
        self.assertEqual(self.ctl("resume")[0], OK)
        self.assertEqual(self.assert_all_end_well(workers.values()), digest)

    def test_local_steps_with_stops_within_their_race(self):
        flags = ["--direction", "lion", "--rule", "lever", "--local-steps", "16"]
        self.assert_exact(*flags, rounds=60, stops=[3, 6, 30], compute_ms=3)


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class RealWorkers(CheckpointRuns):
    FLAGS = ["--model", "mlp", "--threads", 1, "--http", "off", "--progress", "off"]

    def test_error_feedback(self):
        self.assert_exact("--direction", "signsgd", "--error-feedback", "--rule", "fixed", "--stepsize", "1e-3", rounds=24,
                          stops=[9], program="signvote-worker", worker_flags=self.FLAGS)

    def test_alias_with_a_second_gradient_at_the_previous_replica(self):
        self.assert_exact("--rule", "alias", rounds=24, stops=[9], program="signvote-worker", worker_flags=self.FLAGS)

    def test_muon_and_the_change_between_two_gradients(self):
        self.assert_exact("--direction", "muon", "--rule", "alias", "--alias-probe", "previous", rounds=24, stops=[9],
                          program="signvote-worker", worker_flags=self.FLAGS)

    def test_local_steps(self):
        self.assert_exact("--rule", "lever", "--local-steps", "4", rounds=40, stops=[5], program="signvote-worker",
                          worker_flags=self.FLAGS)


class OtherNumbers(CheckpointRuns):
    def test_fewer_and_more_workers_go_on_and_each_has_its_own(self):
        flags = ["--rule", "fixed", "--stepsize", "1e-3", "--warm-in", 2]

        def resumed(workers, at):
            for name in workers:
                self.assertEqual(self.report(name)["checkpoint"]["resumed"], {"how": "exactly", "round": at, "age_rounds": 0})

        def shares():
            return {v["name"]: v["share"] for v in self.rounds()[-1]["workers"]}

        self.journal_server(*flags, rounds=harness.FOREVER)
        workers = self.workers("--compute-ms", 10)
        self.wait_round(8)
        before = shares()
        first, address = self.stop_everything(workers)

        self.journal_server(*flags, rounds=harness.FOREVER, listen=address, workers_min=2)
        workers = self.workers("--compute-ms", 10, names=["w1", "w2"])
        # w3 is waited for until --return-wait is over, or an operator says that it will not come.
        self.assertEqual(self.ctl("evict", "w3")[0], OK)
        self.wait_round(8)
        self.assertEqual(shares(), {name: before[name] for name in ("w1", "w2")})
        second, address = self.stop_everything(workers)
        self.assertGreater(second, first)
        resumed(workers, first)

        self.journal_server(*flags, rounds=harness.FOREVER, listen=address)
        workers = self.workers("--compute-ms", 10, names=["w1", "w2"])
        self.wait_round(2)
        workers |= self.workers("--compute-ms", 10, names=["w4"])
        self.wait_until("w4 is counted", lambda: "w4" in shares())
        self.assertEqual(shares(), {**{name: before[name] for name in ("w1", "w2")}, "w4": before["w3"]})
        self.stop_everything(workers)
        self.one_digest(workers.values())
        resumed(["w1", "w2"], second)
        self.assertIsNone(self.report("w4")["checkpoint"]["resumed"], "a newcomer begins without one")
        warmed = [line for line in self.server.log().splitlines() if "warm it up" in line]
        self.assertEqual(len(warmed), 1, warmed)
        self.assertIn("w4 joins", warmed[0])
        self.assertTrue((self.folder / "state/w3.state").exists(), "what is of nobody here stays")


class OlderAndOther(CheckpointRuns):
    def test_a_killed_worker_goes_on_from_what_it_wrote_and_says_how_old_that_is(self):
        self.start_server("--deadline", "off", "--rule", "fixed", "--stepsize", "1e-3", rounds=harness.FOREVER, workers_min=3)
        workers = self.workers("--compute-ms", 10, "--checkpoint-every", 4)
        self.wait_until("a checkpoint", lambda: (self.folder / "state/w1.state").exists())
        workers["w1"].kill()
        committed = len(self.rounds())
        self.wait_round(committed + 8)
        workers["w1"] = self.start_worker("w1", "--coordinates", COORDINATES, "--checkpoint", self.folder / "state")
        self.wait_until("w1 is back", lambda: "joined" in workers["w1"].log())
        self.end_run(*workers.values())
        resumed = self.report("w1")["checkpoint"]["resumed"]
        self.assertEqual(resumed["how"], "as it was")
        self.assertGreaterEqual(resumed["age_rounds"], 4)
        self.assertIn("age_rounds=", workers["w1"].log())

    def test_a_checkpoint_of_another_run_is_put_aside(self):
        for run in range(2):
            self.start_server("--rule", "fixed", "--stepsize", "1e-3", rounds=6, workers_min=3)
            workers = self.workers()
            self.assert_all_end_well(workers.values())
            self.assertIsNone(self.report("w1")["checkpoint"]["resumed"])
        self.assertIn("of another run", workers["w1"].log())
        self.assertEqual(sorted(os.listdir(self.folder / "state")),
                         sorted(f"{w}{kind}.state" for w in NAMES for kind in ("", ".earlier-1")))

    def test_damage_ends_a_worker_before_it_joins_and_names_the_remedy(self):
        self.start_server("--rule", "fixed", "--stepsize", "1e-3", rounds=4, workers_min=3)
        self.assert_all_end_well(self.workers().values())
        path = self.folder / "state/w1.state"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        self.start_server("--rule", "fixed", "--stepsize", "1e-3", rounds=4, workers_min=3)
        worker = self.start_worker("w1", "--coordinates", COORDINATES, "--checkpoint", self.folder / "state")
        self.assert_exit(worker, BAD_INPUT)
        self.assertIn("w1.state is damaged", worker.log())
        self.assertIn("move it away", worker.log())
        self.assertEqual(path.read_bytes(), bytes(data))


if __name__ == "__main__":
    harness.run_tests()
