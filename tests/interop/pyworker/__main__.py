"""Flags, report and exit codes: those of signvote-worker, as far as this worker has them (docs/operations.md).

    python3 -m pyworker --server HOST:PORT --name NAME --token-file FILE --tls-ca FILE --tls-certificate FILE --tls-key FILE
"""

import argparse
import json
import pathlib
import signal
import sys
import time

from . import security
from .data import Synthetic
from .mlp import Mlp
from .session import Broken, Options, Session
from .trainer import Trainer

OK, INTERNAL, USAGE, BAD_INPUT, REFUSED, UNAVAILABLE = range(6)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="pyworker", description="a signvote worker in Python: the mlp model")
    parser.add_argument("--server", required=True, help="HOST:PORT of the server")
    parser.add_argument("--name", required=True, help="this worker's name; with TLS that of its certificate")
    parser.add_argument("--token-file", type=pathlib.Path, help="file with this worker's join token")
    parser.add_argument("--tls-ca", type=pathlib.Path, help="PEM file: who may sign the server's certificate")
    parser.add_argument("--tls-certificate", type=pathlib.Path, help="PEM file: this worker's certificate")
    parser.add_argument("--tls-key", type=pathlib.Path, help="PEM file: its private key")
    parser.add_argument("--insecure", action="store_true", help="plaintext, to a server that runs --insecure")
    parser.add_argument("--server-timeout", type=float, default=600, help="seconds that a lost server is looked for")
    parser.add_argument("--model", type=pathlib.Path, help="config.json of another MLP than the built-in one")
    parser.add_argument("--init-seed", type=int, default=1, help="seed of the initial parameters")
    parser.add_argument("--batch", type=int, default=8, help="samples per minibatch")
    parser.add_argument("--compute-ms", type=float, default=0, help="least milliseconds that a ballot takes, for tests")
    parser.add_argument("--report", type=pathlib.Path, help="JSON file written at the end")
    options = parser.parse_args(arguments)
    tls = [options.tls_ca, options.tls_certificate, options.tls_key]
    if options.insecure == any(tls) or any(tls) != all(tls):
        parser.error("give --tls-ca, --tls-certificate and --tls-key, or --insecure")
    return options


class Paced(Trainer):
    """Takes at least as long as it is told."""

    def __init__(self, model, data, seconds):
        super().__init__(model, data)
        self._seconds = seconds

    def vote(self, *arguments):
        begin = time.monotonic()
        ballot = super().vote(*arguments)
        time.sleep(max(0.0, self._seconds - (time.monotonic() - begin)))
        return ballot


def log(text):
    print(f"pyworker: {text}", file=sys.stderr, flush=True)


def secret(path):
    """The bytes of a file that nobody else can read."""
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path}: group or others can use it; run: chmod 600 {path}")
    return path.read_bytes()


def main(arguments):
    options = parse(arguments)
    try:
        token = secret(options.token_file).decode().strip() if options.token_file else ""
        credentials = None
        if not options.insecure:
            secret(options.tls_key)
            credentials = security.Credentials(options.tls_ca, options.tls_certificate, options.tls_key)
        model = Mlp(json.loads(options.model.read_text()) if options.model else None)
    except (OSError, ValueError) as error:
        log(f"error: {error}")
        return BAD_INPUT
    trainer = Paced(model, Synthetic(model.features, model.classes, options.batch), options.compute_ms / 1000)
    session = Session(Options(options.server, options.name, token, credentials, options.server_timeout), trainer,
                      lambda: model.initial(options.init_seed), log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: session.drain())
    outcome, status = "failed", INTERNAL
    try:
        outcome = session.run()
        status = OK
    except security.Refused as error:
        log(f"error: refused: {error}")
        status = REFUSED
    except security.Unreachable as error:
        log(f"error: {error}")
        status = UNAVAILABLE
    except Broken as error:
        log(f"error: {error}")
    if options.report:
        replica = session.replica
        options.report.write_text(json.dumps({
            "outcome": outcome,
            "digest": f"{replica.digest():016x}" if replica is not None else None,
            "rounds": replica.round if replica is not None else 0,
            "rounds_voted": session.voted,
            "reconnects": session.streams - 1,
            "welcomes": session.states,
            "fetches": session.fetched,
            "commits": session.commits,
            "run_done": session.run_done,
            "losses": trainer.losses,
        }) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
