#!/usr/bin/env python3
"""gloo's fp32 all-reduce of d values in n processes, taking turns with a bench.

Reads lines from standard input. For each "go" it runs one all-reduce in all processes at once and prints the seconds
from the first process's start to the last one's end. Ends with standard input. Prints "ready" when all are connected.

With --rank it is one process of several that are started apart (on other hosts): it connects, runs --repetitions all-reduces
after one that warms up, and prints their (start, end) as one line of JSON.
"""
import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time


PR_SET_PDEATHSIG = 1  # prctl(2)


def rank_main(rank, args, folder, barrier, times, stop):
    # A bench that ends early kills only the first process: the ranks must not wait at the barrier for ever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=args.workers)
    values = torch.full((args.d,), 1.0 / args.workers)
    while True:
        barrier.wait()
        if stop.value:
            break
        times[2 * rank] = time.monotonic()
        dist.all_reduce(values)
        times[2 * rank + 1] = time.monotonic()
        barrier.wait()
    dist.destroy_process_group()


def one_rank(args):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{args.master}", rank=args.rank, world_size=args.workers)
    values = torch.full((args.d,), 1.0 / args.workers)
    times = []
    for _ in range(args.repetitions + 1):
        dist.barrier()
        begin = time.monotonic()
        dist.all_reduce(values)
        times.append((begin, time.monotonic()))
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(times[1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, required=True, help="fp32 values")
    parser.add_argument("--workers", type=int, required=True, help="processes")
    parser.add_argument("--rank", type=int, help="this process alone, of several; needs --master")
    parser.add_argument("--master", help="with --rank: ADDRESS:PORT where rank 0 listens")
    parser.add_argument("--repetitions", type=int, default=3, help="with --rank: timed all-reduces [3]")
    args = parser.parse_args()
    if args.rank is not None:
        return one_rank(args)

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(args.workers + 1)
    times = context.Array("d", 2 * args.workers, lock=False)
    stop = context.Value("b", 0, lock=False)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=rank_main, args=(r, args, folder, barrier, times, stop), daemon=True)
                 for r in range(args.workers)]
        for process in ranks:
            process.start()

        def one():
            barrier.wait(120)
            barrier.wait(120)
            return max(times[1::2]) - min(times[0::2])

        one()  # connects the processes and touches the memory
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "go":
                print(f"{one():.9f}", flush=True)
        stop.value = 1
        barrier.wait(120)
        for process in ranks:
            process.join(10)


if __name__ == "__main__":
    main()
