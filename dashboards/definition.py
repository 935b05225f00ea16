"""What is watched: the panels of the dashboard, the recording rules and the alerts. Standard library only.

dashboards/build.py writes from it the dashboard, the Prometheus rules and the tables of docs/dashboards.md. In a panel's
query {S} stands for the chosen servers and {W} for the chosen workers; [R] is Grafana's $__rate_interval. A value that has
no meaning yet (nothing divided by nothing, a gauge that is NaN) is filtered out in the query itself.
"""

import dataclasses

UID = "signvote"
TITLE = "signvote"
PAGE = "docs/dashboards.md"
SERVER_JOB, WORKER_JOB = "signvote-server", "signvote-worker"


@dataclasses.dataclass(frozen=True)
class Query:
    expr: str
    legend: str


@dataclasses.dataclass(frozen=True)
class Panel:
    title: str
    about: str          # one sentence: Grafana's tooltip, and the panel list of the page
    unit: str           # Grafana's name of it
    queries: tuple
    kind: str = "timeseries"
    width: int = 12     # of 24
    scale: str = "linear"
    low: float | None = None
    high: float | None = None
    bars: bool = False
    stacked: bool = False
    decimals: int | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    title: str
    panels: tuple


@dataclasses.dataclass(frozen=True)
class Variable:
    name: str
    label: str
    query: str          # label_values(SELECTOR, LABEL)


@dataclasses.dataclass(frozen=True)
class Record:
    name: str
    expr: str


@dataclasses.dataclass(frozen=True)
class Guard:
    """Keeps an alert to where it means something: `join on (job, instance) left condition`."""
    join: str           # "and" or "unless"
    left: str
    condition: str
    on: str = "job, instance"


@dataclasses.dataclass(frozen=True)
class Alert:
    name: str
    left: str           # the expression without its comparison; a test proves that it is never empty in a healthy run
    condition: str
    wait: str           # how long it must hold
    severity: str       # critical: the run does not go on or is not what it seems; warning: look soon
    summary: str        # Go template, as the description
    description: str
    runbook: str        # Markdown: what it means and what to do
    guards: tuple = ()


# ---- dashboard ------------------------------------------------------------------------------------------------------

VARIABLES = (
    Variable("job", "Server job", "label_values(signvote_server_info, job)"),
    Variable("instance", "Server", 'label_values(signvote_server_info{job=~"$job"}, instance)'),
    Variable("worker_job", "Worker job", "label_values(signvote_worker_connected, job)"),
    Variable("worker", "Worker", 'label_values(signvote_worker_connected{job=~"$worker_job"}, instance)'),
)

_FP32 = "signvote_server_fp32_equivalent_bytes_total{S}"
_UP, _DOWN = "signvote_server_wire_up_bytes_total{S}", "signvote_server_wire_down_bytes_total{S}"
_BALLOTS = "signvote_server_ballots_total{S}"
_MINIBATCHES = "signvote_server_worker_minibatches_total{S}"


def _mean_seconds(part):
    name = f"signvote_server_{part}_seconds"
    return f"rate({name}_sum{{S}}[R]) / (rate({name}_count{{S}}[R]) > 0)"


def _quantile(share):
    return f"histogram_quantile({share}, rate(signvote_server_round_seconds_bucket{{S}}[R])) >= 0"


def _grown(name):
    return f"increase({name}{{S}}[R])"


ROWS = (
    Row("Savings", (
        Panel("Compression since the start", "How many times more bytes fp32 would have moved, both directions together, "
              "than the sockets did, TLS and HTTP/2 included.", "suffix: ×",
              (Query(f"2 * {_FP32} / ({_UP} + {_DOWN} > 0)", "{{instance}}"),), kind="stat", width=6, decimals=2),
        Panel("Bytes saved", "What fp32 would have moved more, both directions, since the server's start.", "decbytes",
              (Query(f"2 * {_FP32} - {_UP} - {_DOWN}", "{{instance}}"),), kind="stat", width=6),
        Panel("Bytes moved", "TCP payload of rounds, both directions, since the server's start.", "decbytes",
              (Query(f"{_UP} + {_DOWN}", "{{instance}}"),), kind="stat", width=6),
        Panel("Bytes for joining", "TCP payload of handshakes, joins and state transfers, both directions.", "decbytes",
              (Query("signvote_server_setup_up_bytes_total{S} + signvote_server_setup_down_bytes_total{S}", "{{instance}}"),),
              kind="stat", width=6),
        Panel("Compression", "The same ratio for the bytes of the last moments.", "suffix: ×",
              (Query(f"2 * (rate({_FP32}[R]) > 0) / (rate({_UP}[R]) + rate({_DOWN}[R]) > 0)", "{{instance}}"),),
              width=6, low=0, decimals=1),
        Panel("Bytes per ballot", "What one worker sends and receives a round, beside the same in fp32 and beside one bit per "
              "coordinate and nothing else.", "decbytes",
              (Query(f"rate({_UP}[R]) / (rate({_BALLOTS}[R]) > 0)", "up"),
               Query(f"rate({_DOWN}[R]) / (rate({_BALLOTS}[R]) > 0)", "down"),
               Query("4 * signvote_server_coordinates{S} > 0", "fp32, one direction"),
               Query("signvote_server_coordinates{S} / 8 > 0", "one bit per coordinate")),
              width=6, scale="log"),
        Panel("Bits per parameter and minibatch", "What rounds move for each parameter and minibatch of a worker, TLS and HTTP/2 "
              "included; fp32 without local steps would be 32 each way.", "none",
              (Query(f"8 * rate({_UP}[R]) / (rate({_MINIBATCHES}[R]) * signvote_server_coordinates{{S}} > 0)", "up"),
               Query(f"8 * rate({_DOWN}[R]) / (rate({_MINIBATCHES}[R]) * signvote_server_coordinates{{S}} > 0)", "down")),
              width=6, scale="log"),
        Panel("Traffic", "TCP payload at the server's sockets.", "Bps",
              (Query(f"rate({_UP}[R])", "up"), Query(f"rate({_DOWN}[R])", "down"),
               Query("rate(signvote_server_setup_up_bytes_total{S}[R])", "joining, up"),
               Query("rate(signvote_server_setup_down_bytes_total{S}[R])", "joining, down")), width=6, low=0),
    )),
    Row("Convergence", (
        Panel("Loss", "Robust mean of the voters' training losses, the run's held-out loss, and those that workers measured; "
              "nats per target. Losses on other windows are another line.", "none",
              (Query("signvote_server_loss{S} > 0", "training"),
               Query("signvote_server_held_out_loss{S} >= 0", "held out, windows {{windows}}"),
               Query("signvote_worker_held_out_loss{W} >= 0", "held out, {{instance}}, windows {{windows}}")),
              width=12, decimals=2),
        Panel("Stepsize", "What the rule chose.", "none", (Query("signvote_server_stepsize{S} > 0", "{{instance}}"),),
              width=6, scale="log"),
        Panel("Progress", "Main rounds, as a share of all.", "percentunit",
              (Query("signvote_server_main_round{S} / (signvote_server_main_rounds{S} > 0)", "{{instance}}"),), kind="stat", width=3,
              low=0, high=1),
        Panel("Time left", "Main rounds to go, and all that the race may still take, at the present pace.", "s",
              (Query("(signvote_server_main_rounds{S} - signvote_server_main_round{S} + signvote_server_race_rounds_left{S}) "
                     "/ (rate(signvote_server_rounds_total{S}[R]) > 0)", "{{instance}}"),), kind="stat", width=3),
        Panel("Gradient l1", "Robust mean of the voters' gradient l1 norms.", "none",
              (Query("signvote_server_gradient_l1{S} > 0", "{{instance}}"),), width=6, low=0),
        Panel("Density", "l1² / (d l2²) of the voters' gradients: sign methods like it high.", "percentunit",
              (Query("signvote_server_gradient_density_ratio{S} > 0", "{{instance}}"),), width=6, low=0),
        Panel("Loss by worker", "The last loss each worker reported: one with other data or a fault stands apart.", "none",
              (Query("signvote_server_worker_loss{S} >= 0", "{{worker}}"),), width=6, decimals=2),
        Panel("Ties", "Share of the coordinates voted on that were tied; with an odd number of voters there are none.", "percentunit",
              (Query("signvote_server_tie_ratio{S}", "{{instance}}"),), width=6, low=0),
        Panel("Race", "Trials of stepsizes before the run: begun, their rounds so far, and rounds that they may still take. "
              "None of these is a main round.", "none",
              (Query("signvote_server_race_trials{S}", "trials"), Query("signvote_server_race_rounds{S}", "rounds"),
               Query("signvote_server_race_rounds_left{S}", "rounds left at most")), width=8, low=0, decimals=0),
        Panel("Lean", "z of Lever: above 0 all steps so far were too short, below 0 too long. Empty while nobody is asked for it.", "none",
              (Query("signvote_server_lean_ratio{S}", "{{instance}}"),), width=8),
        Panel("Rescaling", "ρ: by what the last step lengthened all steps before it; 1 with rules that rescale nothing.", "none",
              (Query("signvote_server_rescaling_ratio{S} > 0", "{{instance}}"),), width=8),
    )),
    Row("Membership", (
        Panel("Workers", "Members are waited for, observers are not.", "none",
              (Query("signvote_server_members{S}", "members"), Query("signvote_server_observers{S}", "observers"),
               Query("signvote_server_workers_min{S}", "minimum at the start")), width=8, low=0, decimals=0),
        Panel("Comings and goings", "Workers that became ready, streams that broke, members that a commit did not count.",
              "none", (Query(_grown("signvote_server_joins_total"), "joins"),
                       Query(_grown("signvote_server_losses_total"), "losses"),
                       Query(_grown("signvote_server_abstentions_total"), "abstentions")), width=8, low=0, bars=True),
        Panel("Trouble", "Replicas that differ, sessions refused, scalars that were not finite, rounds opened again.", "none",
              (Query(_grown("signvote_server_digest_mismatches_total"), "digest mismatches"),
               Query(_grown("signvote_server_refusals_total"), "refusals"),
               Query(_grown("signvote_server_scalars_refused_total"), "scalars refused"),
               Query(_grown("signvote_server_attempts_reopened_total"), "rounds reopened")), width=8, low=0, bars=True),
        Panel("Agreement by worker", "Share of a worker's bits that equal the verdict.", "percentunit",
              (Query("signvote_server_worker_agreement_ratio{S} >= 0", "{{worker}}"),), width=8, high=1),
        Panel("Arrival by worker", "Recent median from the opening of a round to a worker's complete ballot.", "s",
              (Query("signvote_server_worker_arrival_seconds{S} >= 0", "{{worker}}"),), width=8, low=0),
        Panel("Connected", "What the workers themselves say: 1 while the session is connected.", "none",
              (Query("signvote_worker_connected{W}", "{{instance}}"),), width=8, low=0, high=1, decimals=0),
    )),
    Row("Round time", (
        Panel("Parts of a round", "Means: voters compute, the server waits from the first complete ballot on, tallies and "
              "commits; replicas apply off the critical path.", "s",
              tuple(Query(_mean_seconds(part), part.replace("_", " ")) for part in
                    ("compute", "wait", "tally", "commit", "apply", "worker_apply")), width=12, scale="log"),
        Panel("Quantiles of a round", "From opening to commit.", "s",
              (Query(_quantile("0.5"), "p50"), Query(_quantile("0.9"), "p90"), Query(_quantile("0.99"), "p99")), width=6, low=0),
        Panel("Rounds per second", "Committed rounds.", "none",
              (Query("rate(signvote_server_rounds_total{S}[R])", "{{instance}}"),), width=6, low=0),
        Panel("Since the last commit", "A round that does not end shows here first.", "s",
              (Query("time() - signvote_server_last_commit_timestamp_seconds{S}", "{{instance}}"),), width=6, low=0),
        Panel("Workers' time", "Mean over the workers: the share of their time in each part.", "percentunit",
              tuple(Query(f"avg(rate(signvote_worker_{part}_seconds_total{{W}}[R]))", part)
                    for part in ("compute", "pack", "wait", "apply")), width=6, low=0, stacked=True),
        Panel("Server: processor", "Cores in use.", "none",
              (Query("rate(process_cpu_seconds_total{S}[R])", "{{instance}}"),), width=6, low=0),
        Panel("Memory", "Resident memory.", "decbytes",
              (Query("process_resident_memory_bytes{S}", "server {{instance}}"),
               Query("signvote_worker_resident_memory_bytes{W}", "{{instance}}")), width=6, low=0),
    )),
    Row("Journal", (
        Panel("Room for the journal", "What its files take, and what is free beside them.", "decbytes",
              (Query("signvote_server_journal_bytes{S}", "files"), Query("signvote_server_journal_free_bytes{S} > 0", "free")), width=6,
              low=0),
        Panel("Written to the journal", "Commits, and what changes between them.", "Bps",
              (Query("rate(signvote_server_journal_written_bytes_total{S}[R])", "{{instance}}"),), width=6, low=0),
        Panel("Sync", "Mean time until the disk has what was written: no commit is told before, with --durability sync.", "s",
              (Query("rate(signvote_server_journal_sync_seconds_total{S}[R]) / (rate(signvote_server_journal_syncs_total{S}[R]) > 0)",
                     "{{instance}}"),), width=6, scale="log"),
        Panel("Age of the snapshot", "A start replays the commits since the newest one.", "s",
              (Query("signvote_server_snapshot_age_seconds{S}", "{{instance}}"),), width=6, low=0),
        Panel("Recoveries", "Servers that took the run up from its journal; how long this one took.", "none",
              (Query("signvote_server_recoveries{S}", "recoveries"), Query("signvote_server_recovery_seconds{S}", "seconds")), width=12,
              low=0, decimals=2),
        Panel("Journal: trouble", "Snapshots that could not be written, workers that were ahead of the journal, a journal that failed.",
              "none", (Query(_grown("signvote_server_snapshot_failures_total"), "snapshot failures"),
                       Query(_grown("signvote_server_ahead_joins_total"), "workers ahead"),
                       Query("signvote_server_journal_failed{S}", "failed")), width=12, low=0, bars=True),
    )),
)

# ---- recording rules ------------------------------------------------------------------------------------------------

RECORDS = (
    Record("signvote:compression_ratio:rate5m",
           "2 * (rate(signvote_server_fp32_equivalent_bytes_total[5m]) > 0)\n"
           "  / (rate(signvote_server_wire_up_bytes_total[5m]) + rate(signvote_server_wire_down_bytes_total[5m]) > 0)"),
    Record("signvote:abstention_ratio:rate5m",
           "rate(signvote_server_abstentions_total[5m])\n"
           "  / (rate(signvote_server_abstentions_total[5m]) + rate(signvote_server_ballots_total[5m]) > 0)"),
    # The gauge is 0 before the first commit.
    Record("signvote:loss:avg5m", "avg_over_time((signvote_server_loss > 0)[5m:])"),
)

# ---- alerts ---------------------------------------------------------------------------------------------------------

ALERTS = (
    Alert("SignvoteServerDown", f'up{{job="{SERVER_JOB}"}}', "== 0", "1m", "critical",
          "The server {{ $labels.instance }} does not answer.",
          "Prometheus has not reached /metrics of {{ $labels.instance }} for a minute; workers look for a lost server for "
          "--server-timeout (ten minutes) before they give up.",
          "The server's process is gone or its HTTP port cannot be reached. A run that has ended ends its server: take its "
          "target out of `targets/server.json`. Otherwise read the end of the server's log; its exit code says why "
          "([exit codes](operations.md#exit-codes)): 8 is a loss that was not finite at any worker, 9 a replica that differs, 10 "
          "a wait without enough workers."),
    Alert("SignvoteWorkerDown", f'up{{job="{WORKER_JOB}"}}', "== 0", "2m", "warning",
          "The worker {{ $labels.instance }} does not answer.",
          "Prometheus has not reached /metrics of {{ $labels.instance }} for two minutes.",
          "The worker's process or machine is gone, or its port cannot be reached. The run goes on without it. Start it again "
          "under its name: its share of the data is kept for `--share-hold` rounds. If it left for good, take its target out "
          "of `targets/workers.json`."),
    Alert("SignvoteWorkerDisconnected", "signvote_worker_connected", "== 0", "2m", "warning",
          "The worker {{ $labels.instance }} is not connected to its server.",
          "The process answers, its session has been down for two minutes.",
          "The worker lives and looks for the server. Look at the network between them and at the worker's log, which names the "
          "last error. It ends with exit code 5 after `--server-timeout`."),
    Alert("SignvoteWorkerLost", "increase(signvote_server_losses_total[10m])", "> 0", "0m", "warning",
          "A worker's stream to {{ $labels.instance }} broke.",
          'Worker streams that broke without a word in ten minutes: {{ printf "%.0f" $value }}.',
          "The server's log and `--event-log` name the worker (`lost`). One that was killed or cut off reconnects by itself if "
          "its process lives; `signvote status` shows whether it came back."),
    Alert("SignvoteObservers", "signvote_server_observers", "> 0", "5m", "warning",
          "{{ $labels.instance }} has observers.",
          "Connected workers that nobody has waited for in five minutes: {{ $value }}.",
          "A worker becomes an observer after `--observer-after` silent rounds; nobody waits for it, and its first ballot in time "
          "makes it a member again. Compare *Arrival by worker* and the worker's own times: it is too slow for the others, "
          "stopped, or swapping."),
    Alert("SignvoteBelowMinimum", "signvote_server_workers_min - signvote_server_members", "> 0", "5m", "warning",
          "{{ $labels.instance }} has fewer members than --workers-min.",
          "Members missing for five minutes: {{ $value }}.",
          "Before round 0 the run waits for the missing workers, at most `--wait-timeout`. Later it goes on with those it has, "
          "down to one, and its steps are noisier. Start workers again."),
    Alert("SignvoteBelowQuorum", "increase(signvote_server_attempts_reopened_total[10m])", "> 0", "0m", "warning",
          "Rounds at {{ $labels.instance }} were opened again.",
          'Rounds with too few ballots left for their quorum in ten minutes: {{ printf "%.0f" $value }}.',
          "So many members were lost within one round that the quorum could not be met; survivors vote again on the same "
          "minibatch and nothing is counted twice. If it goes on, workers come and go: see *Comings and goings* and their logs."),
    Alert("SignvoteRunStalled", "time() - signvote_server_last_commit_timestamp_seconds", "> 300", "1m", "critical",
          "{{ $labels.instance }} commits nothing although it has members.",
          "The last commit is {{ $value | humanizeDuration }} old.",
          "The open round waits. `signvote status` and the server's log name whom it waits for: members that are silent while the "
          "quorum is not met, or (with `--deadline off`) any member at all. Evict or restart them. If rounds of more than five "
          "minutes are normal for you, raise the threshold in `dashboards/definition.py`.",
          (Guard("and", "signvote_server_members", "> 0"), Guard("unless", "signvote_server_paused", "== 1"))),
    Alert("SignvoteNoMembers", "signvote_server_members", "== 0", "5m", "critical",
          "{{ $labels.instance }} has no member left.",
          "For five minutes no worker has been connected that rounds could wait for.",
          "The run stands still and loses nothing: the replica is kept, and the next worker that joins goes on with it. After "
          "`--wait-timeout` the server ends with exit code 10. Start workers.",
          (Guard("and", "signvote_server_ready", "== 1"),)),
    Alert("SignvoteRunNotReady", "signvote_server_ready", "== 0", "10m", "warning",
          "{{ $labels.instance }} has been up for ten minutes without taking workers.",
          "It waits for its first workers, or for the initial parameters.",
          "`/readyz` says what is missing. Fewer than `--workers-min` came, all were refused (see *Trouble*), or the first one "
          "did not finish its upload of the initial parameters."),
    Alert("SignvoteAbstentionsHigh", "signvote:abstention_ratio:rate5m", "> 0.1", "10m", "warning",
          "Members of {{ $labels.instance }} are often not counted.",
          "{{ $value | humanizePercentage }} of the ballots that were waited for did not come in time.",
          "Members are late or silent; each such round lasts until its deadline. `signvote status` shows abstentions by worker. Give "
          "the slow ones less to do (`--batch`, `--accumulate`), or drain them."),
    Alert("SignvoteLossRises", "signvote:loss:avg5m / (min_over_time(signvote:loss:avg5m[6h]) > 0)", "> 1.25", "10m", "critical",
          "The loss at {{ $labels.instance }} rises.",
          "The mean of five minutes is {{ $value | humanize }} times the least of the last six hours.",
          "The run diverges, or the data changed. Look at *Stepsize*, *Gradient l1* and *Loss by worker*: one worker alone points "
          "at its data or machine (drain it), all together at stepsize or model. A run that must end: stop it with SIGTERM; the "
          "server then writes its `--export`."),
    Alert("SignvoteScalarsNotFinite", "increase(signvote_server_scalars_refused_total[10m])", "> 0", "0m", "warning",
          "A worker reported a loss or norm that is not finite to {{ $labels.instance }}.",
          'Reports that the stepsize rule left out in ten minutes: {{ printf "%.0f" $value }}.',
          "The stepsize is chosen from the other workers' scalars, so the run is safe as long as there are some. See "
          "SignvoteLossNotFinite for the worker's side."),
    Alert("SignvoteLossNotFinite", "increase(signvote_worker_rounds_abstained_total[10m])", "> 0", "0m", "warning",
          "The worker {{ $labels.instance }} abstains: its loss or gradient is not finite.",
          'Rounds it abstained from in ten minutes: {{ printf "%.0f" $value }}.',
          "The worker's log names the cause. Once no worker has a finite loss the run ends with exit code 8 and exports the last "
          "finite replica. Look for bad samples in its data or for a faulty device."),
    Alert("SignvoteDigestMismatch", "increase(signvote_server_digest_mismatches_total[1h])", "> 0", "0m", "critical",
          "A replica at {{ $labels.instance }} differed from the master's.",
          'Digests that differed in the last hour: {{ printf "%.0f" $value }}.',
          "The worker that differs fetches the state again, so the run stays right; the event log names it (`resync`). Replicas move "
          "by commits alone: damaged memory or another build of the worker is the usual cause. The same worker twice: drain it "
          "and test its memory. Most workers against the server end the run with exit code 9."),
    Alert("SignvoteCompressionLow", "signvote:compression_ratio:rate5m", "< 25", "15m", "warning",
          "{{ $labels.instance }} moves more bytes than expected.",
          "fp32 would move only {{ $value | humanize }} times as much; 30 and more is normal from a million coordinates on.",
          "Bytes beside the ballots: observers that receive verdicts without voting, ballots sent again, rounds with many late "
          "chunks, or small chunks on a small model. Compare *Bytes per ballot* up and down.",
          (Guard("and", "signvote_server_coordinates", "> 100000"),)),
    Alert("SignvoteApplierLags", "signvote_server_applier_lag_rounds", "> 16", "5m", "warning",
          "The master replica of {{ $labels.instance }} is behind.",
          "It has not applied {{ $value }} commits.",
          "Rounds do not wait for it, but newcomers get an older state, digests are compared late, and the end of the run waits for "
          "the export. The server's machine lacks processor or memory bandwidth: see *Server: processor*."),
    Alert("SignvoteAgreementNearChance", "signvote_server_worker_agreement_ratio", "< 0.52", "15m", "warning",
          "The bits of {{ $labels.worker }} at {{ $labels.instance }} say nothing about the verdict.",
          "Only {{ $value | humanizePercentage }} of its bits equal the verdict.",
          "Coins that nobody follows agree in one half; because a worker's own bits are part of the vote, even three workers with "
          "nothing but noise agree with their verdict in three quarters. Below 52 % a worker is outvoted as if it threw coins, "
          "or votes against the others: wrong data, a device that computes nonsense, or an attacker below the majority. Drain or "
          "evict it.",
          (Guard("and", "signvote_server_worker_member", "== 1", "job, instance, worker"),)),
    Alert("SignvoteSessionsRefused", "increase(signvote_server_refusals_total[10m])", "> 3", "0m", "warning",
          "{{ $labels.instance }} refuses sessions.",
          'Sessions refused or ended for the worker\'s fault in ten minutes: {{ printf "%.0f" $value }}.',
          "Wrong token, certificate, model or version, a name in use, or malformed messages: the server's log and `--event-log` "
          "(`refused`) say whose and why ([bad input](bad_input.md))."),
    Alert("SignvoteJournalFailed", "signvote_server_journal_failed", "== 1", "0m", "critical",
          "The journal of {{ $labels.instance }} cannot be written.",
          "No commit is told any more: the run stands still until a server is started again on a journal that can be written.",
          "The disk is full, or it failed: the server's log and `/readyz` have its words. Nothing that was told is lost. Make room, or "
          "move the folder to another disk, and start the server again on it: it goes on behind the last commit that was told, and "
          "the workers come back by themselves ([journal](journal_format.md))."),
    Alert("SignvoteJournalDiskFills", "signvote_server_journal_free_bytes / (signvote_server_journal_bytes > 0)", "< 0.5", "1m", "warning",
          "The disk of {{ $labels.instance }}'s journal is nearly full.",
          "What is free is {{ $value | humanizePercentage }} of what the journal takes.",
          "A new snapshot and the segments until the next one need about what there is already. Make room, or keep fewer "
          "snapshots (`--snapshots-keep`). Once the disk is full the run stands still until the server is started again."),
    Alert("SignvoteSnapshotFails", "increase(signvote_server_snapshot_failures_total[1h])", "> 0", "0m", "warning",
          "{{ $labels.instance }} could not write a snapshot.",
          'Snapshots that failed in an hour: {{ printf "%.0f" $value }}.',
          "Rounds go on and lose nothing, but the journal grows until one succeeds, and a start replays more. The server's log says "
          "why; mostly the disk is too small for one snapshot more."),
    Alert("SignvoteJournalSyncSlow", "rate(signvote_server_journal_sync_seconds_total[5m]) / (rate(signvote_server_journal_syncs_total[5m]) > 0)",
          "> 1", "5m", "warning",
          "The journal's disk at {{ $labels.instance }} is slow.",
          "A sync takes {{ $value | humanizeDuration }}, and no commit is told before.",
          "Something else writes to the same disk, or it is a network's. Give the journal a disk of its own; or say `--durability group`, "
          "which loses up to 0.2 s of rounds in a power cut and nothing in a crash of the server."),
)
