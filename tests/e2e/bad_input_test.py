"""Every row of the table in docs/bad_input.md: its message, its code, and that nothing hangs or crashes."""

import os
import pathlib
import re
import socket
import struct
import time
import unittest

import harness
from harness import BAD_INPUT, DIVERGED, FOREVER, OK, PORT_IN_USE, REFUSED, USAGE

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPIRED_AT = 1_600_000_000  # 2020-09-13


def table():
    """{row: (ends with, message)} of the page's first table."""
    text = re.search(r"(?m)^\| row \| input \|.*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / "docs" / "bad_input.md").read_text()).group(1)
    rows = {}
    for line in text.splitlines():
        row, _, ends_with, message = (cell.strip() for cell in line.strip().strip("|").split(" | "))
        rows[row] = (ends_with, message.strip("`"))
    return rows


class BadInput(harness.ProcessTest):
    rows = table()
    checked = set()

    def setUp(self):
        super().setUp()
        self.certify("a", "b", "raw")

    def expect(self, row, got, message):
        """`got`: an exit status, or the name of a status code."""
        self.assertIn(row, self.rows, "docs/bad_input.md has no such row")
        ends_with, text = self.rows[row]
        got = f"exit {got}" if isinstance(got, int) else got
        self.assertEqual(got, ends_with, f"{row}: {message}")
        self.assertIn(text, message, row)
        BadInput.checked.add(row)

    def expect_program(self, row, process, timeout=30):
        code = process.wait(timeout)
        self.expect(row, code, process.log())
        self.assertRegex(process.log().splitlines()[-1], r"^\S+ error ", f"{row}: the error is the last line")
        self.assertNotRegex(process.log(), r"(?m)^E\d{4} ", "gRPC's own lines")

    def expect_command(self, row, program, *arguments):
        code, out, err = self.command(program, *arguments)
        self.expect(row, code, out + err)

    def expect_raw(self, row, scenario, *flags):
        status, message, _ = self.raw(scenario, "raw", *flags)
        self.expect(row, status, message)

    def assert_server_goes_on(self, *others):
        """One good worker finishes the run after all that."""
        self.assertTrue(self.server.alive, "the server runs")
        self.assert_all_end_well([*others, self.start_worker("b")])

    # ---- flags, ports, files ---------------------------------------------------------------------------------------

    def server_command(self, *extra, **replaced):
        """A server that shall not get far. Keywords replace its flags: http="…" for --http."""
        security = iter(self.server_flags())
        flags = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0", "tokens": self.tls / "tokens", "rounds": 5,
                 **{name.removeprefix("--"): value for name, value in zip(security, security)}, **replaced}
        return self.start("bad-server", [harness.BIN / "signvote-server", *[word for name, value in flags.items() for word in (f"--{name}", value)], *extra])

    def test_wrong_flags(self):
        self.expect_program("wrong-flag", self.server_command("--no-such-flag", 1))
        self.expect_program("wrong-value", self.server_command("--rule", "bogus"))
        self.expect_program("not-a-number", self.server_command("--wait-timeout", "nan"))
        self.expect_program("negative", self.server_command("--seed", -1))
        self.expect_program("other-rule", self.server_command("--stepsize", 0.1))
        self.expect_program("other-direction", self.server_command("--beta2", 0.99))
        config = self.folder / "run.toml"
        config.write_text("max-round = 12\n")
        self.expect_program("wrong-config", self.server_command("--config", config))
        self.expect_program("missing-config", self.server_command("--config", self.folder / "none.toml"))
        self.expect_command("wrong-command", "signvote", "bogus")

    @unittest.skipUnless((harness.BIN / "signvote-lab").exists(), "signvote-lab needs LibTorch")
    def test_a_sweeps_file_that_says_what_cannot_be(self):
        sweep = self.folder / "sweep.toml"
        sweep.write_text("tasks = [\"mlp\"]\nrules = lever\n")
        self.expect_command("wrong-sweep", "signvote", "lab", "sweep", sweep)
        sweep.write_text("tasks = [\"mlp\"]\nrules = [\"lever\"]\nrounds = 3\n")
        self.expect_command("unknown-sweep", "signvote", "lab", "sweep", sweep)

    def test_an_experiments_file_that_says_what_cannot_be(self):
        churn = self.folder / "churn.toml"
        churn.write_text("rounds = 3\nworkers.count = 2\n[churn]\nmean_live = 60\n")
        self.expect_command("unknown-experiment", "signvote", "lab", "run", churn)
        churn.write_text("rounds = 3\nworkers.count = 2\n")
        self.expect_command("wrong-setting", "signvote", "lab", "run", churn, "--set", "workers.count=0")

    @unittest.skipUnless((harness.BIN / "signvote-lab").exists(), "signvote-lab needs LibTorch")
    def test_pictures_that_are_none(self):
        train = ("signvote", "lab", "train", "--task", "cnn", "--max-rounds", "3", "--data")
        self.expect_command("file-pictures", *train, __file__)
        folder = self.folder / "pictures"
        (folder / "cat").mkdir(parents=True)
        self.expect_command("no-pictures", *train, folder)
        for k in range(10):
            (folder / "cat" / f"{k}.pgm").write_bytes(b"P5 1 1 255\n0")
        self.expect_command("one-class", *train, folder)
        (folder / "dog").mkdir()
        (folder / "dog" / "1.jpg").write_text("<!doctype html>")
        self.expect_command("page-picture", *train, folder)
        (folder / "dog" / "1.jpg").rename(folder / "dog" / "1.png")
        (folder / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        self.expect_command("broken-picture", *train, folder)
        (folder / "train-images-idx3-ubyte.gz").write_bytes(b"")
        self.expect_command("packed-digits", *train, folder)

    def test_plaintext_beyond_loopback_must_be_asked_for_twice(self):
        self.expect_program("insecure-bind", self.start("bad-server", [
            harness.BIN / "signvote-server", "--listen", "0.0.0.0:0", "--insecure", "--tokens", self.tls / "tokens",
            "--rounds", 5]))

    def test_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.expect_program("port-in-use", self.server_command(listen=f"127.0.0.1:{port}"))
            self.expect_program("http-port-in-use", self.server_command(http=f"127.0.0.1:{port}"))

    def test_missing_files(self):
        self.expect_program("missing-init", self.server_command("--init", self.folder / "none.safetensors"))
        self.expect_program("missing-tokens", self.server_command(tokens=self.folder / "none"))
        self.start_server()
        flags = self.worker_flags("a")
        flags[flags.index("--token-file") + 1] = self.folder / "none"
        self.expect_program("missing-token", self.start("a", [harness.BIN / "signvote-synthetic-worker", *flags]))
        flags = self.worker_flags("a")
        flags[flags.index("--tls-key") + 1] = self.folder / "none"
        self.expect_program("missing-key", self.start("a", [harness.BIN / "signvote-synthetic-worker", *flags]))

    def test_damaged_init(self):
        path = self.folder / "damaged.safetensors"
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
        self.expect_program("damaged-init", self.server_command("--init", path))
        header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1, float("nan")))
        self.expect_program("nonfinite-init", self.server_command("--init", path))
        path.write_bytes(struct.pack("<Q", 2) + b"{}")
        self.expect_program("empty-init", self.server_command("--init", path))

    def test_inits_that_are_something_else(self):
        for row, data in (("page", b"\n<!DOCTYPE html><html>"), ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
                          ("pickle", b"PK\x03\x04\x14\0"), ("pickle", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."),
                          ("gguf", b"GGUF\x03\0\0\0"), ("noise", b"\1" * 100)):
            path = self.folder / row
            path.write_bytes(data)
            self.expect_program(f"{row}-init", self.server_command("--init", path))

    def test_inits_in_shards_that_do_not_hold(self):
        model = self.folder / "model"
        model.mkdir()
        self.expect_program("folder-init", self.server_command("--init", model))
        header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        shard = struct.pack("<Q", len(header)) + header + struct.pack("<f", 1)
        for name in ("s.safetensors", "t.safetensors"):
            (model / name).write_bytes(shard)
        index = model / "m.index.json"
        for row, text in (("index", "{\n"), ("shard", '{"weight_map": {"x": "none.safetensors"}}'),
                          ("twice", '{"weight_map": {"x": "s.safetensors", "x": "s.safetensors"}}'),
                          ("elsewhere", '{"weight_map": {"x": "t.safetensors", "y": "s.safetensors"}}')):
            index.write_text(text)
            self.expect_program(f"{row}-init", self.server_command("--init", index))
        config = model / "config.json"
        config.write_text('{"model_type": "llama"}')
        self.expect_program("map-init", self.server_command("--init", config))
        config.write_text('{"hidden_size": 64,\n "vocab_size": 10,}\n')
        self.expect_program("config-init", self.server_command("--init", model / "s.safetensors"))

    def test_exports_that_cannot_be(self):
        path = self.folder / "out" / "model.safetensors"
        path.parent.mkdir()
        self.expect_program("wrong-dtype", self.server_command("--export", path, "--export-dtype", "f16"))
        self.expect_program("lone-dtype", self.server_command("--export-dtype", "bf16"))
        index = path.parent / "model.safetensors.index.json"
        index.write_text('{"weight_map": {"x": "model-00001-of-00001.safetensors"}}')
        self.expect_program("foreign-index", self.server_command("--export", path))
        self.assertEqual([p.name for p in path.parent.iterdir()], [index.name])

    def test_what_cannot_be_written_at_the_end_is_told_at_the_beginning(self):
        nowhere = self.folder / "none" / "model.safetensors"
        self.expect_program("unwritable-export", self.server_command("--export", nowhere))

    def test_files_that_are_not_what_the_flag_says(self):
        junk = self.folder / "junk"
        junk.write_bytes(bytes(range(256)))
        junk.chmod(0o600)
        self.expect_program("junk-certificate", self.server_command(**{"tls-certificate": junk}))
        self.expect_program("other-key", self.server_command(**{"tls-key": self.tls / "admin.key"}))
        mine = self.tls / "workers/a"
        self.expect_program("workers-certificate", self.server_command(
            **{"tls-certificate": mine / "worker.crt", "tls-key": mine / "worker.key"}))
        shared = self.folder / "tokens"
        shared.write_text("a secret\nb secret\n")
        shared.chmod(0o600)
        self.expect_program("shared-token", self.server_command(tokens=shared))
        self.start_server()
        for row, flag, value in (("junk-token", "--token-file", junk), ("wrong-address", "--server", "127.0.0.1:70000")):
            flags = self.worker_flags("a")
            flags[flags.index(flag) + 1] = value
            self.expect_program(row, self.start("a", [harness.BIN / "signvote-synthetic-worker", *flags]))
        self.expect_command("wrong-address", "signvote", "--server", "127.0.0.1:70000", "--insecure", "status")
        self.assert_server_goes_on()

    def test_files_that_others_can_read(self):
        os.chmod(self.tls / "tokens", 0o644)
        self.expect_program("readable-tokens", self.server_command())
        os.chmod(self.tls / "tokens", 0o600)
        os.chmod(self.tls / "server.key", 0o640)
        self.expect_program("readable-key", self.server_command())
        os.chmod(self.tls / "server.key", 0o600)
        self.start_server()
        os.chmod(self.tls / "workers/a/token", 0o644)
        self.expect_program("readable-token", self.start_worker("a"))

    @unittest.skipUnless(harness.has_torch(), "needs LibTorch")
    def test_corpora(self):
        self.start_server()
        small = self.folder / "small.txt"
        small.write_text("too small")
        self.expect_program("small-corpus", self.start_worker("a", "--data", small, program="signvote-worker"))
        self.expect_program("missing-corpus",
                            self.start_worker("a", "--data", self.folder / "none", program="signvote-worker"))
        self.expect_program("unknown-model", self.start_worker("a", "--model", "bogus", program="signvote-worker"))
        model = self.folder / "model"
        model.mkdir()
        self.expect_program("folder-model", self.start_worker("a", "--model", model, program="signvote-worker"))
        config = model / "config.json"
        for row, text in (("page", "<html>"), ("json", '{"hidden_size": 64,\n "vocab_size": 10,}\n'),
                          ("weights", "\x40\0\0\0\0\0\0\0{"),
                          ("key", '{"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, '
                                  '"num_attention_heads": 1, "intermediate_size": 8, "rope_parameters": {"type": "linear"}}')):
            config.write_text(text)
            self.expect_program(f"{row}-model", self.start_worker("a", "--model", model, program="signvote-worker"))
        self.expect_program("unwritable-save", self.start_worker("a", "--save", self.folder / "none" / "model.safetensors",
                                                                 program="signvote-worker"))

    # ---- who may join ----------------------------------------------------------------------------------------------

    def test_wrong_token(self):
        self.start_server()
        flags = self.worker_flags("a")
        flags[flags.index("--token-file") + 1] = self.tls / "workers/b/token"
        self.expect_program("wrong-token", self.start("a", [harness.BIN / "signvote-synthetic-worker", *flags]))
        self.assert_server_goes_on()

    def test_wrong_layout(self):
        self.start_server(rounds=FOREVER)
        good = self.start_worker("a", "--compute-ms", 10)
        self.wait_round(2)
        self.expect_program("wrong-layout", self.start_worker("b", "--tensor", "y"))
        self.end_run(good)

    def test_wrong_version(self):
        self.start_server()
        self.expect_raw("wrong-version", "vote", "--protocol", 99)
        self.assert_server_goes_on()

    def test_a_name_that_is_not_the_certificates(self):
        self.start_server()
        flags = self.worker_flags("a")
        flags[flags.index("--name") + 1] = "b"
        status, message, _ = self.raw_with("vote", *flags)
        self.expect("wrong-name", status, message)
        self.assert_server_goes_on()

    def test_admin_calls_with_a_workers_certificate(self):
        self.start_server()
        mine = self.tls / "workers/a"
        code, out, err = self.command("signvote", "--server", self.server.address, "--tls-ca", mine / "ca.crt",
                                      "--tls-certificate", mine / "worker.crt", "--tls-key", mine / "worker.key", "status")
        self.expect("wrong-role", code, out + err)
        self.assert_server_goes_on()

    def test_certificates_of_another_time_or_authority(self):
        # On the worker's side, before anything is dialled; and on the server's, which trusts no client's own checks.
        self.start_server()
        code, out, err = self.command("raw_client", "--make-certs", self.tls, "--worker", "old", "--certs-now", EXPIRED_AT)
        self.assertEqual(code, 0, out + err)
        self.expect_program("expired-certificate", self.start_worker("old"))
        status, message, _ = self.raw("vote", "old")
        self.expect("expired-certificate-at-server", status, message)
        foreign = self.folder / "foreign"
        code, out, err = self.command("signvote", "certs", foreign, "--worker", "a")
        self.assertEqual(code, 0, out + err)
        flags = self.worker_flags("a")
        flags[flags.index("--tls-certificate") + 1] = foreign / "workers/a/worker.crt"
        flags[flags.index("--tls-key") + 1] = foreign / "workers/a/worker.key"
        self.expect_program("foreign-certificate", self.start("a", [harness.BIN / "signvote-synthetic-worker", *flags]))
        status, message, _ = self.raw_with("vote", *flags)
        self.expect("foreign-certificate-at-server", status, message)
        # A server that is not the one whose authority the worker trusts.
        flags = self.worker_flags("a")
        flags[flags.index("--tls-ca") + 1] = foreign / "ca.crt"
        status, message, _ = self.raw_with("vote", *flags)
        self.expect("foreign-server", status, message)
        self.assert_server_goes_on()

    def test_plaintext_and_tls_do_not_mix(self):
        self.start_server()
        flags = ["--server", self.server.address, "--name", "a", "--token-file", self.tls / "workers/a/token", "--insecure"]
        self.expect_program("plaintext-to-tls", self.start("a", [
            harness.BIN / "signvote-synthetic-worker", *flags, "--connect-timeout", 30]))
        code, out, err = self.command("signvote", "--server", self.server.address, "--insecure", "--timeout", 30, "status")
        self.expect("plaintext-admin", code, out + err)
        self.assert_server_goes_on()

    def test_a_second_live_session_of_one_name(self):
        self.start_server(rounds=FOREVER)
        good = self.start_worker("a", "--compute-ms", 10)
        self.wait_round(2)
        self.expect_raw("second-session", "second-session")
        self.expect_program("second-process", self.start_worker("a"))
        # The deaf one does not answer the ping: the newcomer takes its place.
        status, message, _ = self.raw("takeover")
        self.assertEqual(status, "OK", message)
        self.end_run(good)

    # ---- what is sent ----------------------------------------------------------------------------------------------

    def test_damaged_messages_end_their_stream_and_nothing_else(self):
        self.start_server("--message-bytes-max", 4 << 20, rounds=FOREVER)
        good = self.start_worker("a", "--compute-ms", 5)
        self.wait_round(2)
        for row in ("bad-checksum", "bad-length", "bad-index", "bad-run", "truncated"):
            self.expect_raw(row, row)
        self.expect_raw("future-round", "future-round")
        self.expect_raw("oversized", "oversized", "--bytes", 8 << 20)
        self.expect_raw("no-join", "no-join")
        self.expect_raw("stolen-state", "fetch-without-ticket")
        status, message, _ = self.raw("cut")
        self.assertEqual(status, "CANCELLED", message)
        done = len(self.rounds())
        self.wait_round(done + 5)
        self.end_run(good)

    def test_padding_bits_must_be_zero(self):
        self.start_server(rounds=FOREVER)
        good = self.start_worker("a", "--compute-ms", 5, "--coordinates", 1001)
        self.wait_round(2)
        self.expect_raw("bad-padding", "bad-padding", "--coordinates", 1001)
        self.end_run(good)

    def test_an_upload_that_stops_half_way(self):
        self.start_server()
        self.expect_raw("short-upload", "short-upload")
        self.assert_server_goes_on()

    def test_replayed_ballots_are_counted_and_change_nothing(self):
        self.start_server(rounds=FOREVER)
        good = self.start_worker("a", "--compute-ms", 5)
        self.wait_round(2)
        status, message, _ = self.raw("replay")
        self.expect("replayed-ballot", status, message)
        seen = self.worker_status("raw")
        self.assertGreaterEqual(seen["duplicate_chunks"], 2 * 3)
        self.assertLessEqual(seen["ballots"], 3)
        self.end_run(good)

    def test_losses_that_are_not_finite(self):
        self.start_server(rounds=30, workers_min=2)
        good = self.start_worker("a")
        bad = self.start_worker("b", "--nonfinite-from", 10)
        self.assert_all_end_well([good, bad])
        self.assertTrue(all(r["voters"] == ["a"] for r in self.rounds() if r["round"] >= 10))
        export = self.folder / "last.safetensors"
        self.start_server("--export", export, rounds=30, workers_min=1)
        worker = self.start_worker("a", "--nonfinite-from", 10)
        code = self.server.wait(30)
        self.expect("nonfinite-loss", code, self.server.log())
        self.expect_program("nonfinite-loss-worker", worker)
        # Ten steps, then rounds that move nothing, each with the next minibatch.
        self.assertEqual([r["kind"] for r in self.rounds()], ["step"] * 10 + ["none"] * 5)
        self.assertEqual([r["data_step"] for r in self.rounds()], list(range(15)))
        self.assertEqual({r["main_rounds"] for r in self.rounds()[10:]}, {10})
        self.assertTrue(export.exists(), "the last finite replica was exported")

    def test_zz_every_row_of_the_page_was_checked(self):
        """Last in the alphabet, hence last to run."""
        torch_rows = set() if harness.has_torch() else {"wrong-sweep", "unknown-sweep", "small-corpus", "missing-corpus", "unknown-model", "unwritable-save", "folder-model", "page-model", "json-model",
            "weights-model", "key-model", "file-pictures", "no-pictures", "one-class", "page-picture", "broken-picture",
            "packed-digits"}
        self.assertEqual(set(self.rows) - self.checked - torch_rows, set())


if __name__ == "__main__":
    unittest.main(verbosity=2)
