"""Files that are none, or another's: what a program writes onto, reads from and logs to."""

import fcntl
import json
import os
import signal
import stat
import unittest

import harness
from harness import BAD_INPUT, BIN, FOREVER, OK, REFUSED, USAGE, metadata, values

PIPE_BYTES_MIN = 4096


class ServerFiles(harness.ProcessTest):
    insecure = True

    def setUp(self):
        super().setUp()
        self.certify("a")
        self.server_command = [BIN / "signvote-server", "--insecure", "--listen", "127.0.0.1:0", "--http", "off", "--rounds", 3]

    def kinds(self):
        """Paths at which no file can be written, with what is said of them."""
        os.mkfifo(self.folder / "fifo")
        (self.folder / "folder").mkdir()
        (self.folder / "loop").symlink_to("loop")
        (self.folder / "device").symlink_to("/dev/null")
        return [("/dev/null", "is a device"), (self.folder / "fifo", "is a FIFO"), (self.folder / "folder", "is a folder"),
                (self.folder / "loop", "cannot follow the link"), (self.folder / "device", "is a device"),
                (self.folder / "none" / "model", "No such file or directory")]

    def test_what_is_no_file_is_refused_before_the_run_and_stays(self):
        for path, text in self.kinds():
            with self.subTest(path=path):
                code, out, err = self.command(*self.server_command, "--export", path, timeout=20)
                self.assertEqual(code, BAD_INPUT, out + err)
                self.assertEqual(err.count("\n"), 1, err)
                self.assertIn(f"--export: {path}", err)
                self.assertIn(text, err)
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/null").st_mode))
        self.assertTrue(stat.S_ISFIFO(os.stat(self.folder / "fifo").st_mode))

    def test_an_export_follows_a_link_and_so_does_signvote_export(self):
        (self.folder / "shelf").mkdir()
        for name in ("end", "now"):
            (self.folder / name).symlink_to(f"shelf/{name}")
        self.start_server("--export", self.folder / "end", rounds=FOREVER)
        worker = self.start_worker("a", "--compute-ms", 10, "--server-timeout", 1)
        self.wait_round(3)
        self.pause()
        self.assertEqual(self.ctl("export", self.folder / "now")[0], OK)
        self.server.signal(signal.SIGTERM)
        self.wait_end()
        worker.kill()
        for name in ("end", "now"):
            self.assertTrue((self.folder / name).is_symlink())
        self.assertEqual(values(self.folder / "shelf" / "end"), values(self.folder / "shelf" / "now"))
        self.assertEqual(sorted(p.name for p in (self.folder / "shelf").iterdir()), ["end", "now"])

    def test_a_run_that_is_begun_again_costs_no_model_of_the_run_before(self):
        model, kept = self.folder / "model.safetensors", self.folder / "model.earlier-1.safetensors"

        def run(rounds):
            self.start_server("--export", model, rounds=rounds)
            self.assert_all_end_well([self.start_worker("a")])
            return model.read_bytes(), metadata(model)["signvote.run_id"]
        trained, first = run(20)
        _, second = run(1)  # by mistake, with the same command
        self.assertNotEqual(first, second)
        self.assertTrue(kept.read_bytes() == trained)
        self.assertIn("kept_as=", self.server.log())
        # A service that begins again and again leaves three, and the trained one among them.
        for _ in range(4):
            run(1)
        self.assertEqual(sorted(p.name for p in self.folder.glob("model*")), [
            *(f"model.earlier-{n}.safetensors" for n in (1, 2, 3)), "model.safetensors"])
        self.assertTrue(kept.read_bytes() == trained)

    def test_one_path_is_no_two_flags_of_which_one_writes(self):
        path = self.folder / "one"
        read, written = {"file", "path"}, {"new file", "new model", "log"}
        tried = 0
        for program in ("signvote-server", "signvote-worker", "signvote"):
            if not (BIN / program).exists():
                continue
            code, out, err = self.command(program, "--describe")
            self.assertEqual(code, OK, err)
            command = json.loads(out)
            options = [(o["names"][0], o["kind"], "") for o in command["options"]]
            options += [(o["names"][0], o["kind"], sub["name"]) for sub in command["subcommands"] for o in sub["positionals"]]
            options = [o for o in options if o[1] in read | written]
            for k, (one, kind, of) in enumerate(options):
                for other, other_kind, other_of in options[k + 1:]:
                    path.write_bytes(b"")
                    words = [word for name in (one, other) if name.startswith("-") for word in (name, path)]
                    words += [word for sub in {of, other_of} - {""} for word in (sub, path)]
                    code, out, err = self.command(program, *words)
                    tried += 1
                    if {kind, other_kind} <= read:
                        self.assertNotIn("a file of its own", err, words)
                        continue
                    self.assertEqual((code, err.count("\n")), (USAGE, 1), f"{words}: {out}{err}")
                    self.assertIn("give each a file of its own", err)
                    self.assertIn(f"{one} {path}", err)
                    self.assertIn(f"of {other} too", err)
        self.assertGreater(tried, 50)

    def test_a_log_that_nobody_reads_is_refused_and_a_reader_that_stops_holds_up_nobody(self):
        fifo = self.folder / f"events.{len(self.processes)}.jsonl"  # the next server's
        os.mkfifo(fifo)
        code, out, err = self.command(*self.server_command, "--event-log", fifo, timeout=20)
        self.assertEqual(code, BAD_INPUT, out + err)
        self.assertIn("nobody reads this FIFO; start its reader first", err)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        self.start_server("--digest-every", 1, rounds=FOREVER)
        self.assertEqual(self.event_log, fifo)
        worker = self.start_worker("a", "--server-timeout", 1)
        self.wait_round(600, timeout=240)  # more events than a pipe holds
        self.server.signal(signal.SIGTERM)
        self.assertEqual(self.server.wait(20), OK)
        worker.kill()

    def test_a_closed_standard_error_lets_no_line_into_another_file(self):
        for closed in ("2>&-", "0<&- 1>&- 2>&-"):
            with self.subTest(closed=closed):
                folder = self.folder / f"closed{len(closed)}"
                folder.mkdir()
                self.round_log, port_file = folder / "rounds.jsonl", folder / "ports.json"
                words = [*self.server_command, "--port-file", port_file, "--round-log", self.round_log,
                         "--event-log", folder / "events.jsonl", "--export", folder / "model"]
                server = self.start("server", ["bash", "-c", f'exec "$@" {closed}', "bash", *words], harness.Server)
                server.port_file = port_file
                self.server = server
                worker = self.start_worker("a")
                self.wait_end()
                self.assert_exit(worker, OK)
                for name in ("rounds.jsonl", "events.jsonl"):
                    for line in (folder / name).read_text().splitlines():
                        self.assertIn("unix_time", json.loads(line))


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class WorkerFiles(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a")
        self.corpus = self.folder / "corpus.txt"
        self.corpus.write_text("".join(f"the sum of {a} and {b} is {a + b}.\n" for a in range(100) for b in range(20)))
        self.shelf = self.folder / "shelf"
        self.shelf.mkdir()
        self.config = self.shelf / "config.json"

    def worker(self, *flags, data=None):
        return self.start_worker("a", "--model", "micro", "--batch", 2, "--sequence", 32, "--threads", 1, "--eval", "off",
                                 "--data", data or self.corpus, *flags, program="signvote-worker")

    def test_a_users_config_keeps_its_keys(self):
        self.config.write_text('{"_name_or_path": "mine", "model_type": "llama", "bos_token_id": 1}')
        self.start_server("--export", self.shelf / "model.safetensors", rounds=3)
        mine = self.folder / "mine"
        mine.mkdir()
        (mine / "config.json").write_text('{"hidden_act": "silu", "eos_token_id": 2}')
        self.assert_all_end_well([self.worker("--save", mine / "a.safetensors")])
        exported, saved = (json.loads(path.read_text()) for path in (self.config, mine / "config.json"))
        self.assertEqual((exported["_name_or_path"], exported["bos_token_id"]), ("mine", 1))
        self.assertEqual(saved["eos_token_id"], 2)
        self.assertEqual(exported["hidden_size"], saved["hidden_size"])

    def test_the_config_of_another_model_is_refused_before_the_run_and_stays(self):
        other = '{"hidden_size": 4096}'
        self.config.write_text(other)
        self.start_server("--export", self.shelf / "model.safetensors", rounds=3)
        worker = self.worker("--save", self.shelf / "a.safetensors")
        self.assert_exit(worker, BAD_INPUT)
        self.assertRegex(worker.log(), r'--save: \S+/config\.json is of another model: "hidden_size" is \d+ here, 4096 there')
        worker = self.worker()  # the server has its reasons too
        self.assert_exit(worker, REFUSED)
        self.assertRegex(worker.log(), r'--export: \S+/config\.json is of another model: "hidden_size" is \d+ here, 4096 there')
        self.assertEqual(self.config.read_text(), other)
        self.assertEqual(sorted(p.name for p in self.shelf.iterdir()), ["config.json"])

    def test_signvote_export_keeps_keys_and_refuses_another_models_config(self):
        self.start_server(rounds=FOREVER)
        worker = self.worker()
        self.wait_round(3)
        self.config.write_text('{"_name_or_path": "mine"}')
        self.assertEqual(self.ctl("export", self.shelf / "m")[0], OK)
        self.assertEqual(json.loads(self.config.read_text())["_name_or_path"], "mine")
        self.config.write_text('{"hidden_size": 4096}')
        code, out, err = self.ctl("export", self.shelf / "n")
        self.assertEqual(code, BAD_INPUT, out + err)
        self.assertIn("is of another model", err)
        self.assertFalse((self.shelf / "n").exists())
        code, out, err = self.ctl("export", "/dev/null")
        self.assertEqual(code, BAD_INPUT, out + err)
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/null").st_mode))
        self.end_run(worker)

    def test_a_path_that_is_no_utf8_is_as_good_as_any(self):
        folder = os.fsencode(self.folder) + b"/\xff\xe4"
        os.mkdir(folder)
        data = folder + b"/corpus.txt"
        os.rename(self.corpus, data)
        self.start_server(rounds=5)
        log = folder + b"/rounds.jsonl"
        worker = self.worker("--save", os.fsdecode(folder + b"/m"), "--round-log", os.fsdecode(log), data=os.fsdecode(data))
        self.assert_all_end_well([worker])
        self.assertIn("corpus.txt", self.report("a")["data"])
        self.assertTrue(os.path.exists(folder + b"/m"))

    def test_a_standard_output_that_nobody_reads_holds_up_no_round_and_costs_no_replica(self):
        fifo, replica = self.folder / "fifo", self.folder / "a.safetensors"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES_MIN)
        self.start_server(rounds=FOREVER)
        worker = self.start("a", ["bash", "-c", 'exec "$@" > "$0"', fifo, BIN / "signvote-worker", *self.worker_flags("a"),
                                  "--model", "micro", "--batch", 2, "--sequence", 32, "--threads", 1, "--eval", "off",
                                  "--data", self.corpus, "--progress", "lines", "--progress-every", 0, "--save", replica])
        self.wait_round(150, timeout=180)  # more lines than the pipe holds
        worker.signal(signal.SIGTERM)
        self.assert_exit(worker, OK)
        self.assertGreaterEqual(int(metadata(replica)["signvote.round"]), 150)
        self.assertTrue(os.read(reader, PIPE_BYTES_MIN).startswith(b"a round 1"))

    def test_a_round_log_whose_reader_stops_holds_up_no_worker(self):
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        self.start_server(rounds=150)  # more lines than a pipe holds
        self.assert_all_end_well([self.worker("--round-log", fifo)], timeout=180)


if __name__ == "__main__":
    unittest.main(verbosity=2)
