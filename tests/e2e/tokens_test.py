"""The join tokens of a running server: read again on SIGHUP, with or without success."""

import os
import signal
import unittest

import harness
from harness import OK, REFUSED


class Tokens(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b")

    @property
    def file(self):
        return self.tls / "tokens"

    def without(self, name):
        """The file's lines but that of `name`."""
        return "".join(line for line in self.file.read_text().splitlines(keepends=True) if line.split()[:1] != [name])

    def replace_file(self, text, mode=0o600):
        new = self.folder / "tokens.new"
        new.write_text(text)
        new.chmod(mode)
        os.replace(new, self.file)

    def reload(self, answer):
        """SIGHUP; returns the log's lines from then on, once `answer` is among them."""
        before = len(self.server.log())
        self.server.signal(signal.SIGHUP)
        self.wait_until(f"the log says '{answer}'", lambda: answer in self.server.log()[before:])
        return self.server.log()[before:]

    def wait_vote(self, name):
        self.wait_until(f"{name} votes", lambda: any(name in r["voters"] for r in self.rounds()))

    def stop(self):
        self.server.signal(signal.SIGTERM)
        self.wait_end()

    def test_a_new_worker_needs_no_restart(self):
        self.start_server(rounds=100_000)
        self.start_worker("a", "--compute-ms", 20)
        self.wait_round(5)
        self.certify("c")
        early = self.start_worker("c")
        self.assert_exit(early, REFUSED)
        self.assertIn("wrong or missing join token for worker 'c'", early.log())
        self.assertIn("workers=3 withdrawn=0", self.reload("tokens read again"))
        self.start_worker("c", "--compute-ms", 20)
        self.wait_vote("c")
        self.stop()

    def test_a_token_with_a_hash_sign_and_a_name_with_an_underscore_are_as_good_as_any(self):
        self.certify("gpu_1")
        token = self.tls / "workers/gpu_1/token"
        for text in ("se#cret#\n", "\ufeffse#cret#\r\n"):
            token.write_text(text, newline="")
            self.replace_file(self.without("gpu_1") + "gpu_1 se#cret# # in the second room\n")
            self.start_server(rounds=3)
            self.assert_all_end_well([self.start_worker("gpu_1")])

    def test_a_broken_file_keeps_the_old_tokens_and_says_so_once(self):
        self.start_server(rounds=100_000)
        self.start_worker("a", "--compute-ms", 20)
        self.wait_round(5)
        good = self.file.read_text()
        for text, mode, why in [("a\n", 0o600, ":1: expected one line"), ("# nobody\n", 0o600, "holds no token"),
                                (good, 0o644, "run: chmod 600")]:
            self.replace_file(text, mode)
            log = self.reload("the old ones stay valid")
            self.assertIn(why, log)
            self.assertEqual(log.count("the old ones stay valid"), 1)
        self.file.unlink()
        self.assertIn("No such file or directory", self.reload("the old ones stay valid"))
        self.start_worker("b", "--compute-ms", 20)
        self.wait_vote("b")
        self.stop()

    def test_a_withdrawn_token_ends_no_session_but_opens_none(self):
        self.start_server(rounds=100_000, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 20)
        self.wait_round(5)
        self.replace_file(self.without("b"))
        log = self.reload("tokens read again")
        self.assertIn("workers=1 withdrawn=1", log)
        self.assertIn("worker=b", log)
        count = len(self.rounds())
        self.wait_round(count + 10)
        self.assertTrue(all(len(r["voters"]) == 2 for r in self.rounds()[count + 1:]), "b votes on")
        self.assertEqual(self.ctl("drain", "b")[0], OK)
        self.assert_exit(workers["b"], OK)
        again = self.start_worker("b")
        self.assert_exit(again, REFUSED)
        self.assertIn("wrong or missing join token for worker 'b'", again.log())
        self.stop()


class Plaintext(harness.ProcessTest):
    insecure = True

    def test_a_server_without_tokens_ends_with_its_terminal(self):
        self.certify("a")
        port_file = self.folder / "ports.json"
        server = self.start("server", [harness.BIN / "signvote-server", "--insecure", "--listen", "127.0.0.1:0", "--http", "off",
                                       "--port-file", port_file, "--rounds", 3], harness.Server)
        server.port_file = port_file
        server.ports()
        server.signal(signal.SIGHUP)
        self.assertEqual(server.wait(20), harness.OK)
        self.assertNotIn("read again", server.log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
