"""A server with a journal is killed amid rounds, and the run goes on as if it had not been: no committed round is lost, workers
are not restarted, and the final replica is that of an undisturbed run."""

import signal
import subprocess

import harness
from harness import BAD_INPUT, OK, ProcessTest, http_get, values

ROUNDS = 60
COORDINATES = 20_000


class JournalRuns(ProcessTest):
    insecure = True

    def setUp(self):
        super().setUp()
        self.certify("w1", "w2", "w3")

    def journal_server(self, *flags, listen="127.0.0.1:0", rounds=ROUNDS, workers_min=3, name="server"):
        return self.start_server("--journal", self.folder / "journal", "--deadline", "off", "--return-wait", 60, *flags,
                                 listen=listen, rounds=rounds, workers_min=workers_min, name=name)

    def workers(self, *flags):
        return self.start_workers(["w1", "w2", "w3"], "--coordinates", COORDINATES, *flags)

    def undisturbed(self, *flags, rounds=ROUNDS, worker_flags=()):
        """Digest and losses of a run without a journal that nobody disturbs."""
        self.start_server("--deadline", "off", *flags, rounds=rounds, workers_min=3, name="undisturbed")
        workers = self.workers(*worker_flags)
        digest = self.assert_all_end_well(workers.values())
        return digest, self.losses(self.rounds())

    @staticmethod
    def losses(lines):
        """By round: of two lines of one round, which an undisturbed run has not, the last."""
        return {line["round"]: (line["loss"], line["stepsize_bits"], line["payload_hash"]) for line in lines}

    def killed_and_started_again(self, kills, *flags, compute_ms=20):
        """A run whose server is killed once each of `kills` rounds is committed; returns its digest and losses."""
        server = self.journal_server(*flags)
        address = server.address
        workers = self.workers("--compute-ms", compute_ms)
        lines = []
        for round_number in kills:
            self.wait_until(f"round {round_number}", lambda: any(l["round"] >= round_number for l in self.rounds()))
            server.kill()
            lines += self.rounds()
            told = max(l["round"] for l in lines) + 1
            server = self.journal_server(*flags, listen=address)
            recovered = self.recovered(server)
            self.assertGreaterEqual(recovered, told, "rounds that were told to workers are lost")
        digest = self.assert_all_end_well(workers.values())
        lines += self.rounds()
        for name in workers:
            report = self.report(name)
            self.assertGreaterEqual(report["next_round"], ROUNDS)
            self.assertGreaterEqual(report["reconnects"], len(kills))
            # The server has what they lack: nobody fetches the state again.
            self.assertEqual(report["state_transfers"], 1, name)
        return digest, self.losses(lines)

    def recovered(self, server):
        """The round at which it took the run up."""
        line = next(l for l in server.log().splitlines() if "recovered the run from its journal" in l)
        return int(next(word for word in line.split() if word.startswith("round=")).removeprefix("round="))


class ServerKilled(JournalRuns):
    def test_the_run_ends_as_an_undisturbed_one(self):
        flags = ["--direction", "signum", "--rule", "alias"]
        digest, losses = self.undisturbed(*flags)
        again, disturbed = self.killed_and_started_again([3, 17, 18, 40], *flags)
        self.assertEqual(again, digest)
        # A round that was committed and whose line was not written before the kill is in no log.
        self.assertGreaterEqual(len(disturbed), ROUNDS - 4)
        for round_number, line in disturbed.items():
            self.assertEqual(line, losses[round_number], f"round {round_number}")

    def test_with_snapshots_in_between_and_a_race_of_stepsizes(self):
        flags = ["--rule", "lever", "--lever-race", "on", "--snapshot-every", "7", "--snapshots-keep", "1"]
        digest, _ = self.undisturbed(*flags[:4], rounds=320)
        server = self.journal_server(*flags, rounds=320)
        address = server.address
        workers = self.workers("--compute-ms", 3)
        # The race takes 80 rounds, and rewinds.
        for count in (5, 33, 52, 120):
            self.wait_until(f"round {count}", lambda: any(l["round"] >= count for l in self.rounds()))
            server.kill()
            server = self.journal_server(*flags, rounds=320, listen=address)
        self.assertEqual(self.assert_all_end_well(workers.values()), digest)
        snapshots = [p.name for p in (self.folder / "journal").glob("snapshot-*.state")]
        self.assertEqual(len(snapshots), 1, snapshots)

    def test_with_local_steps_and_the_silent_rounds_of_their_race(self):
        flags = ["--direction", "lion", "--rule", "lever", "--local-steps", "16"]
        digest, losses = self.undisturbed(*flags)
        silent = sum(line["silent"] for line in self.rounds())
        self.assertGreater(silent, 12, "the race comes first")
        again, disturbed = self.killed_and_started_again([2, 5, silent - 2, silent + 20], *flags, compute_ms=3)
        self.assertEqual(again, digest)
        for round_number, line in disturbed.items():
            self.assertEqual(line, losses[round_number], f"round {round_number}")

    def test_a_server_that_is_started_on_a_finished_run_says_so_and_ends(self):
        server = self.journal_server()
        address = server.address
        workers = self.workers()
        digest = self.assert_all_end_well(workers.values())
        server = self.journal_server("--linger", 1, listen=address)
        self.assertEqual(server.wait(60), OK)
        code, out, err = self.command("signvote", "export", self.folder / "m.safetensors", "--journal",
                                      self.folder / "journal")
        self.assertEqual(code, OK, err)
        self.assertIn(f"round {ROUNDS},", out)
        self.assertTrue(digest)


class JournalTools(JournalRuns):
    def finished_run(self):
        self.journal_server("--export", self.folder / "final.safetensors")
        workers = self.workers()
        self.assert_all_end_well(workers.values())

    def test_export_rebuilds_the_model_at_any_round(self):
        self.finished_run()
        out = self.folder / "at.safetensors"
        code, text, err = self.command("signvote", "export", out, "--journal", self.folder / "journal", "--round", ROUNDS)
        self.assertEqual(code, OK, err)
        self.assertEqual(values(out), values(self.folder / "final.safetensors"))
        self.assertEqual(self.command("signvote", "export", out, "--journal", self.folder / "journal", "--round", 5)[0], OK)
        self.assertNotEqual(values(out), values(self.folder / "final.safetensors"))
        self.assertEqual(harness.metadata(out)["signvote.round"], "5")
        code, _, err = self.command("signvote", "export", out, "--journal", self.folder / "journal", "--round", ROUNDS + 1)
        self.assertEqual(code, BAD_INPUT)
        self.assertIn(f"ends behind round {ROUNDS}", err)

    def test_damage_is_refused_with_a_remedy_that_works(self):
        self.finished_run()
        journal = self.folder / "journal"
        code, out, err = self.command("signvote", "journal", "verify", journal)
        self.assertEqual(code, OK, out + err)
        self.assertIn(f"{ROUNDS} rounds", out)
        segment = sorted(journal.glob("segment-*"))[0]
        data = bytearray(segment.read_bytes())
        dump = self.command("signvote", "journal", "dump", journal)[1]
        offset = next(int(l.split()[0]) for l in dump.splitlines() if " commit " in l and "round 30:" in l)
        data[offset + 60] ^= 1
        segment.write_bytes(data)
        server = self.start("damaged", [harness.BIN / "signvote-server", "--insecure", "--listen", "127.0.0.1:0", "--http",
                                        "off", "--rounds", ROUNDS, "--journal", journal])
        self.assertEqual(server.wait(60), BAD_INPUT)
        self.assertIn(f"{segment.name} is damaged at byte {offset}", server.log())
        self.assertIn("signvote journal truncate", server.log())
        self.assertEqual(self.command("signvote", "journal", "verify", journal)[0], BAD_INPUT)
        code, out, err = self.command("signvote", "journal", "truncate", journal)
        self.assertEqual(code, OK, out + err)
        self.assertIn("the run goes on from round 30", out)
        self.assertEqual(self.command("signvote", "journal", "verify", journal)[0], OK)

    def test_a_second_server_on_the_same_journal_is_refused(self):
        self.journal_server()
        second = self.start("second", [harness.BIN / "signvote-server", "--insecure", "--listen", "127.0.0.1:0", "--http",
                                       "off", "--rounds", ROUNDS, "--journal", self.folder / "journal"])
        self.assertEqual(second.wait(60), BAD_INPUT)
        self.assertIn("is locked by another process", second.log())

    def test_flags_that_would_make_another_run_of_it_are_refused_by_name(self):
        self.finished_run()
        for flag, wrong in (("--seed", "8"), ("--direction", "lion")):
            server = self.start("other", [harness.BIN / "signvote-server", "--insecure", "--listen", "127.0.0.1:0", "--http",
                                          "off", "--rounds", ROUNDS, "--rule", "alias", "--journal", self.folder / "journal",
                                          *[w for f, v in ({"--seed": "7"} | {flag: wrong}).items() for w in (f, v)]])
            self.assertEqual(server.wait(60), BAD_INPUT)
            self.assertIn(f"the run has {flag} ", server.log())

    def test_without_a_journal_the_server_says_what_a_crash_costs(self):
        server = self.start_server(rounds=1)
        self.assertIn("no --journal: if this server is killed", server.log())


class FullDisk(JournalRuns):
    def setUp(self):
        super().setUp()
        self.small = self.small_disk("90m")

    def test_nothing_is_told_any_more_and_readiness_says_why(self):
        server = self.start_server("--journal", self.small / "journal", "--deadline", "off", "--snapshot-every", 5,
                                   "--wait-timeout", 600, rounds=harness.FOREVER, workers_min=1)
        worker = self.start_worker("w1", "--coordinates", 1_600_000)
        self.wait_round(5)
        # What the journal has reserved is used up at last.
        harness.fill_disk(self.small)
        self.wait_until("readiness tells", lambda: http_get(server.http, "/readyz")[0] == 503 and
                        "journal cannot be written" in http_get(server.http, "/readyz")[1], timeout=180)
        self.assertIn("signvote_server_journal_failed 1", http_get(server.http, "/metrics")[1])
        committed = self.status()["round"]
        self.assertTrue(worker.alive and server.alive)
        address = server.address
        server.kill()
        subprocess.run(["mount", "-o", "remount,size=400m", self.small], check=True)
        server = self.start_server("--journal", self.small / "journal", "--deadline", "off", rounds=harness.FOREVER,
                                   workers_min=1, listen=address)
        self.assertGreaterEqual(self.recovered(server), committed)
        self.wait_round(1)
        self.assertEqual(self.ctl("drain", "w1")[0], OK)
        self.assert_exit(worker, OK)
        server.signal(signal.SIGTERM)
        self.wait_end()


if __name__ == "__main__":
    harness.run_tests()
