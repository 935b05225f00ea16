"""Runs over mTLS in which the Python worker takes part: beside C++ workers, late, cut off, drained, and alone.

What must agree to the bit does: every run ends with one digest, that of the server's replica included.
"""

import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import threading
import unittest

import grpc
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
# A busy machine makes no abstentions: whoever is connected has voted.
NOBODY_IS_LATE = ("--deadline", "off")
sys.path.insert(0, str(HERE.parent / "e2e"))

import harness  # noqa: E402
from harness import BAD_INPUT, MISMATCH, OK, REFUSED, UNAVAILABLE  # noqa: E402

from pyworker import data, mlp, security  # noqa: E402
from pyworker.messages import services  # noqa: E402
from pyworker.session import Options, Session  # noqa: E402
from pyworker.stream import Ended, Stream  # noqa: E402
from pyworker.trainer import Trainer  # noqa: E402


class Cable:
    """Forwards connections to the server until it is cut; a cut ends them all, later ones pass again."""

    def __init__(self, address):
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends = []
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        for end in list(self._ends):  # those of now: the next one comes while they are being cut
            self._end(end)

    def close(self):
        self._listener.close()
        for end in self._ends:
            end.close()

    @staticmethod
    def _end(connection):
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended by itself

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((self._host, self._port))
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    @staticmethod
    def _forward(source, sink):
        try:
            while piece := source.recv(1 << 16):
                sink.sendall(piece)
        except OSError:
            pass
        Cable._end(source)
        Cable._end(sink)


class InteropTest(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        os.environ.update(PYTHONPATH=str(HERE), OPENBLAS_NUM_THREADS="1")
        self.certify("a", "b", "c")

    def python_worker(self, name, *flags, server=None):
        flags = [*self.worker_flags(name), *flags]
        if server:
            flags[flags.index("--server") + 1] = server
        return self.start(name, [sys.executable, "-m", "pyworker", *flags, "--report", self.folder / f"{name}.report.json"])

    def credentials(self, name):
        mine = self.tls / "workers" / name
        return security.Credentials(mine / "ca.crt", mine / "worker.crt", mine / "worker.key")

    def session(self, name, trainer):
        """A session in this process, so that the test can reach into it."""
        options = Options(self.server.address, name, (self.tls / "workers" / name / "token").read_text().strip(),
                          self.credentials(name), server_timeout=60, message_timeout=60)
        return Session(options, trainer, trainer.model.initial, lambda text: None)

    def voters(self):
        return [r["voters"] for r in self.rounds()]

    def assert_one_digest(self, workers, rounds):
        """All end well; the server has compared every replica with its own and asked none to fetch the state again."""
        digest = self.assert_all_end_well(workers)
        last = [e for e in self.events("digest") if e["digest_round"] == rounds]
        self.assertEqual({e["digest"] for e in last}, {digest})
        self.assertLessEqual({"", *(w.name for w in workers)}, {e["worker"] for e in last})
        self.assertEqual(self.events("resync"), [])


@unittest.skipUnless(harness.has_torch(), "signvote-worker needs LibTorch")
class BesideCpp(InteropTest):
    def cpp_workers(self, names, *flags):
        return [self.start_worker(name, "--model", "mlp", "--threads", 1, "--progress", "off", *flags,
                                  program="signvote-worker") for name in names]

    def test_two_cpp_workers_and_one_in_python_end_with_the_same_replica(self):
        rounds = 100
        self.start_server("--digest-every", 10, "--chunk-coordinates", 4096, *NOBODY_IS_LATE, rounds=rounds, workers_min=3)
        workers = [*self.cpp_workers("ab"), self.python_worker("c")]
        self.assert_one_digest(workers, rounds)
        lines = self.rounds()
        self.assertEqual(len(lines[0]["counted"]), 7, "seven chunks")
        self.assertTrue(all(sorted(r["voters"]) == ["a", "b", "c"] for r in lines))
        self.assertLess(sum(r["loss"] for r in lines[-10:]), 0.8 * sum(r["loss"] for r in lines[:10]))
        voter = {w["name"]: w for w in lines[-1]["workers"]}
        self.assertGreater(voter["c"]["probe_l1"], 0)
        # Before the first commit all replicas hold the built-in initial parameters: the loss and the norms that C++ workers
        # send are those that numpy computes of their minibatches.
        model = mlp.Mlp()
        for worker in lines[0]["workers"]:
            batch = data.Synthetic().train(7, worker["share"], lines[0]["data_step"])
            loss, gradient = model.loss_and_gradient(model.initial(), batch)
            self.assertAlmostEqual(worker["loss"], loss, delta=1e-5 * loss)
            self.assertAlmostEqual(worker["g_l1"], float(abs(gradient).sum()), delta=1e-4 * worker["g_l1"])

    def test_an_average_moves_cpp_and_python_replicas_alike(self):
        rounds = 60
        self.start_server("--digest-every", 5, "--chunk-coordinates", 4096, "--aggregate", "average", "--workers-max", 4,
                          "--warm-in", 3, *NOBODY_IS_LATE, rounds=rounds, workers_min=3)
        workers = [*self.cpp_workers("ab"), self.python_worker("c")]
        self.assert_one_digest(workers, rounds)
        lines = self.rounds()
        self.assertTrue(all(sorted(r["voters"]) == ["a", "b", "c"] for r in lines), "at the start all are warm")
        self.assertLess(sum(r["loss"] for r in lines[-10:]), 0.8 * sum(r["loss"] for r in lines[:10]))

    def test_dense_tensors_move_cpp_and_python_replicas_alike(self):
        rounds = 60
        for wire, flags in (("f32", ("--dense", "*")), ("bf16", ("--dense", "*bias", "--tensor-scale", "*bias=0.5"))):
            with self.subTest(wire):
                self.start_server("--digest-every", 5, "--chunk-coordinates", 4096, "--dense-wire", wire, *flags, "--rule", "fixed",
                                  "--stepsize", 0.003, *NOBODY_IS_LATE, rounds=rounds, workers_min=3)
                workers = [*self.cpp_workers("ab"), self.python_worker("c")]
                self.assert_one_digest(workers, rounds)
                lines = self.rounds()[-rounds:]
                self.assertLess(sum(r["loss"] for r in lines[-10:]), 0.8 * sum(r["loss"] for r in lines[:10]))

    def test_dense_displacements_move_cpp_and_python_replicas_alike(self):
        rounds = 12
        for inner in (("lion",), ("adam", "--noise", "off")):
            with self.subTest(inner[0]):
                self.start_server("--digest-every", 3, "--chunk-coordinates", 4096, "--local-steps", 4, "--direction", *inner,
                                  "--dense", "*", "--dense-optimizer", "sgd", "--dense-momentum", 0.5, "--dense-nesterov",
                                  "--dense-stepsize", 0.7, "--rule", "fixed", "--stepsize", 0.003, *NOBODY_IS_LATE,
                                  rounds=rounds, workers_min=3)
                workers = [*self.cpp_workers("ab"), self.python_worker("c")]
                self.assert_one_digest(workers, rounds)
                lines = self.rounds()[-rounds:]
                self.assertLess(sum(r["loss"] for r in lines[-3:]), 0.8 * sum(r["loss"] for r in lines[:3]))

    def test_a_late_python_worker_fetches_the_state_in_chunks_and_votes(self):
        config = self.folder / "wide.json"
        config.write_text(json.dumps(dict(mlp.BUILTIN, hidden_size=480)))
        self.assertGreater(mlp.Mlp(json.loads(config.read_text())).layout.coordinates, 1 << 18)
        rounds = 80
        self.start_server("--digest-every", 20, *NOBODY_IS_LATE, rounds=rounds, workers_min=2)
        # The Python worker b sets the pace, so that the run goes on while c fetches.
        workers = [*self.cpp_workers("a", "--model", config), self.python_worker("b", "--model", config, "--compute-ms", 25)]
        self.wait_round(10)
        self.pause()  # while Python starts
        late = self.python_worker("c", "--model", config)
        self.wait_until("c joins", lambda: self.events("joined")[-1]["worker"] == "c")
        self.assertEqual(self.ctl("resume")[0], OK)
        self.assert_one_digest([*workers, late], rounds)
        voters = self.voters()
        first = next(k for k, names in enumerate(voters) if "c" in names)
        self.assertGreater(first, 10)
        self.assertTrue(all("c" in names for names in voters[first:]))
        report = self.report("c")
        self.assertEqual((report["welcomes"], report["fetches"]), (["STATE_FETCH"], 1))

    def test_a_cut_off_python_worker_keeps_its_replica_and_catches_up(self):
        rounds = 150
        self.start_server("--digest-every", 10, *NOBODY_IS_LATE, rounds=rounds, workers_min=3)
        cable = Cable(self.server.address)
        self.addCleanup(cable.close)
        cut_off = self.python_worker("b", server=cable.address)
        # The Python worker c sets the pace, so that the run does not end while b is away.
        workers = [*self.cpp_workers("a"), cut_off, self.python_worker("c", "--compute-ms", 20)]
        for incarnation in (1, 2):
            self.wait_until(f"incarnation {incarnation} of b votes", lambda: any(
                w["name"] == "b" and w["incarnation"] == incarnation for r in self.rounds()[-3:] for w in r["workers"]))
            cable.cut()
        self.assert_one_digest(workers, rounds)
        report = self.report("b")
        self.assertEqual(report["reconnects"], 2)
        self.assertEqual(report["welcomes"][1:], ["STATE_KEEP", "STATE_KEEP"])
        self.assertIn("b", self.voters()[-1])

    def test_a_drained_python_worker_leaves_in_good_order(self):
        rounds = 150
        self.start_server(rounds=rounds, workers_min=3)
        stay = [*self.cpp_workers("a"), self.python_worker("b", "--compute-ms", 15)]
        goes = self.python_worker("c")
        self.wait_round(20)
        code, out, err = self.ctl("drain", "c")
        self.assertEqual(code, OK, out + err)
        self.assert_exit(goes, OK)
        self.assertEqual(self.report("c")["outcome"], "drained")
        self.assert_one_digest(stay, rounds)
        self.assertEqual([e["worker"] for e in self.events("left") if e["round"] < rounds], ["c"])
        self.assertEqual(self.events("lost"), [])


    def test_most_replicas_against_the_servers_end_the_run_and_its_workers_with_9(self):
        rounds = 20

        class Damaged(Trainer):
            def vote(self, open_, seed, factors, replica):
                if open_.round == rounds - 1:  # after the last digest but the final one
                    replica.values[100] += np.float32(1)
                return super().vote(open_, seed, factors, replica)

        exported, saved = self.folder / "export" / "model.safetensors", self.folder / "a" / "replica.safetensors"
        for path in (exported, saved):
            path.parent.mkdir()
        self.start_server("--export", exported, *NOBODY_IS_LATE, rounds=rounds, workers_min=3)
        worker, = self.cpp_workers("a", "--save", saved)
        sessions = [self.session(name, Damaged(mlp.Mlp(), data.Synthetic())) for name in "bc"]
        threads = [threading.Thread(target=session.run) for session in sessions]
        for thread in threads:
            thread.start()
        self.assert_exit(self.server, MISMATCH)
        self.assert_exit(worker, MISMATCH)
        for thread in threads:
            thread.join()
        self.assertEqual({session.replica.round for session in sessions}, {rounds})
        for path in (exported, saved):
            self.assertGreater(path.stat().st_size, 4 * mlp.Mlp().layout.coordinates, path)


class PythonOnly(InteropTest):
    def test_two_python_workers_are_a_run_and_the_first_uploads(self):
        exported = self.folder / "model.safetensors"
        self.start_server("--digest-every", 5, "--chunk-coordinates", 8192, "--export", exported, *NOBODY_IS_LATE, rounds=30,
                          workers_min=2)
        workers = [self.python_worker("a"), self.python_worker("b")]
        self.assert_one_digest(workers, 30)
        self.assertEqual({self.report(w.name)["welcomes"][0] for w in workers}, {"STATE_UPLOAD", "STATE_FETCH"})
        self.assertTrue(all(len(names) == 2 for names in self.voters()))
        self.assertEqual(json.loads((self.folder / "config.json").read_text())["model_type"], "mlp")
        self.assertGreater(exported.stat().st_size, 4 * mlp.Mlp().layout.coordinates)

    def test_a_damaged_replica_is_fetched_again_on_the_same_stream(self):
        class Damaged(Trainer):
            def vote(self, open_, seed, factors, replica):
                if open_.round == 7:
                    replica.values[100] += np.float32(1)
                return super().vote(open_, seed, factors, replica)

        self.start_server("--digest-every", 10, *NOBODY_IS_LATE, rounds=40, workers_min=3)
        workers = [self.python_worker("a"), self.python_worker("b")]
        damaged = self.session("c", Damaged(mlp.Mlp(), data.Synthetic()))
        self.assertEqual(damaged.run(), "finished")
        self.assertEqual(f"{damaged.replica.digest():016x}", self.assert_all_end_well(workers))
        self.assertEqual([(e["worker"], e["round"] >= 10) for e in self.events("resync")], [("c", True)])
        self.assertEqual((damaged.streams, len(damaged.states)), (1, 1))
        self.assertEqual(damaged.fetched, 1 + (damaged.states[0] == "STATE_FETCH"))
        self.assertGreaterEqual(sum("c" in names for names in self.voters()), 35)

    def test_who_is_still_joining_when_the_run_ends_is_told_that_it_finished(self):
        self.start_server(rounds=10)
        session = self.session("b", Trainer(mlp.Mlp(), data.Synthetic()))
        self.assertEqual(self.ctl("pause")[0], OK)
        worker = self.python_worker("a")
        self.wait_until("a is ready", lambda: self.status().get("joins") == 1)
        with security.dial(self.server.address, session.options.credentials, 10) as channel:
            stream = Stream(services.TrainingStub(channel))
            self.addCleanup(stream.close)
            stream.send(join=session.join_message())
            kinds = [stream.receive(60)[0]]
            self.assertEqual(self.ctl("resume")[0], OK)
            with self.assertRaises(Ended) as end:
                while True:
                    kinds.append(stream.receive(60)[0])
        self.assertEqual((kinds, end.exception.code), (["welcome", "finish"], grpc.StatusCode.OK))
        self.assert_all_end_well([worker])

    def test_one_python_worker_is_a_run(self):
        self.start_server("--direction", "lion", rounds=5)
        self.assert_one_digest([self.python_worker("a")], 5)

    def test_python_workers_sign_under_noise_clipped_gradients_of_sparse_and_scaled_tensors(self):
        self.start_server("--direction", "stosign", "--noise-decay", 0.9, "--clip", "norm", "--clip-norm", 0.5,
                          "--tensor-treatment", "layers.0.*=sparse", "--tensor-scale", "*=fan-in,layers.2.*=2", *NOBODY_IS_LATE,
                          rounds=20, workers_min=2)
        self.assert_one_digest([self.python_worker("a"), self.python_worker("b")], 20)

    def test_python_workers_sign_adams_update_under_noise_of_their_tensors(self):
        self.start_server("--direction", "adam", "--noise", "tensor", *NOBODY_IS_LATE, rounds=10, workers_min=2)
        self.assert_one_digest([self.python_worker("a"), self.python_worker("b")], 10)

    def test_a_wrong_token_a_lost_server_and_an_open_key_end_with_their_exit_codes(self):
        self.start_server(rounds=5, workers_min=1)
        wrong = self.folder / "wrong"
        wrong.write_text("not the token\n")
        wrong.chmod(0o600)
        refused = self.python_worker("a", "--token-file", wrong)
        silent = socket.socket()
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.1", 0))  # held, so that nobody else listens there, and without listen() a refusal
        nobody = "127.0.0.1:%d" % silent.getsockname()[1]
        lost = self.python_worker("b", "--server-timeout", 0.5, server=nobody)
        key = self.tls / "workers" / "c" / "worker.key"
        key.chmod(0o644)
        readable = self.python_worker("c")
        self.assert_exit(refused, REFUSED)
        self.assertIn("wrong or missing join token", refused.log())
        self.assert_exit(lost, UNAVAILABLE)
        self.assert_exit(readable, BAD_INPUT)
        self.assertIn("chmod 600", readable.log())

    def test_a_worker_that_poses_as_the_server_is_refused(self):
        """Its certificate is of the same authority, of the right name and for servers; only the role is missing."""
        self.start_server(rounds=5)
        extensions, request, thief = (self.folder / f"thief.{end}" for end in ("ext", "csr", "crt"))
        extensions.write_text("subjectAltName=DNS:localhost,URI:signvote:role:worker\nextendedKeyUsage=serverAuth,clientAuth\n")
        key = self.tls / "workers" / "b" / "worker.key"
        for command in (["req", "-new", "-key", key, "-subj", "/CN=b", "-out", request],
                        ["x509", "-req", "-in", request, "-CA", self.tls / "ca.crt", "-CAkey", self.tls / "ca.key",
                         "-CAcreateserial", "-days", "1", "-extfile", extensions, "-out", thief]):
            subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=30)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(thief, key)
        context.set_alpn_protocols(["h2"])
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        connections = []

        def serve():
            try:
                while True:
                    near, _ = listener.accept()
                    connections.append(near)
                    with context.wrap_socket(near, server_side=True) as tls:
                        tls.recv(1)
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        worker = self.python_worker("a", server="localhost:%d" % listener.getsockname()[1])
        self.assert_exit(worker, REFUSED)
        self.assertIn("without the role of a server", worker.log())
        self.assertEqual(len(connections), 1, "the token was never sent")


if __name__ == "__main__":
    unittest.main(verbosity=2)
