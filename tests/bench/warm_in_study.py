"""What a newcomer without momentum costs, and whether --warm-in or a donor's momentum saves it: a simulated study.

Four workers with Signum(0.9) or Lion(0.9, 0.99) train a small MLP on a synthetic teacher by vote or average, with minibatches
of 8 and a stepsize that falls to 0; from round 50 on every 20th or every 5th round one of them is replaced by a newcomer.
The newcomer's ballots count at once (R = 0), after R rounds, or at once with another worker's momentum ("donor"). Printed is
by how much the held-out loss at the end exceeds that of the same run without newcomers, mean over seeds ± standard error.

    python3 tests/bench/warm_in_study.py [--seeds 8] [--rounds 800]
"""

import argparse

import numpy as np

WORKERS, BATCH, STEPSIZE, FIRST = 4, 8, 3e-3, 50
INPUTS, HIDDEN, CLASSES, TEACHER = 32, 48, 10, 64
WAYS = {"R = 0": {}, "R = 1": {"warm_in": 1}, "R = 3": {"warm_in": 3}, "R = 10": {"warm_in": 10}, "donor": {"donor": True}}


class Task:
    def __init__(self, seed):
        draw = np.random.default_rng(seed)
        self.teacher = draw.normal(size=(INPUTS, TEACHER)) / np.sqrt(INPUTS), draw.normal(size=(TEACHER, CLASSES)) / 8 * 3
        self.held_out = self.batch(np.random.default_rng(10**6 + seed), 4000)
        self.shapes = (INPUTS, HIDDEN), (HIDDEN, CLASSES)
        self.start = np.concatenate([(draw.normal(size=shape) / np.sqrt(shape[0])).ravel() for shape in self.shapes])

    def batch(self, draw, count):
        features = draw.normal(size=(count, INPUTS))
        return features, np.argmax(np.tanh(features @ self.teacher[0]) @ self.teacher[1], 1)

    def forward(self, x, batch):
        cut = INPUTS * HIDDEN
        first, second = x[:cut].reshape(self.shapes[0]), x[cut:].reshape(self.shapes[1])
        hidden = np.maximum(batch[0] @ first, 0)
        logits = hidden @ second
        p = np.exp(logits - logits.max(1, keepdims=True))
        return second, hidden, p / p.sum(1, keepdims=True)

    def loss(self, x, batch):
        p = self.forward(x, batch)[2]
        return -np.log(p[np.arange(len(batch[1])), batch[1]] + 1e-12).mean()

    def gradient(self, x, batch):
        second, hidden, p = self.forward(x, batch)
        p[np.arange(len(batch[1])), batch[1]] -= 1
        p /= len(batch[1])
        through = p @ second.T
        through[hidden <= 0] = 0
        return np.concatenate([(batch[0].T @ through).ravel(), (hidden.T @ p).ravel()])


def train(seed, rounds, direction, aggregate, every=None, warm_in=0, donor=False):
    """The held-out loss at the end."""
    task = Task(seed)
    x, m, cold = task.start.copy(), np.zeros((WORKERS, len(task.start))), [0] * WORKERS
    draws = [np.random.default_rng([seed, j]) for j in range(WORKERS)]
    for t in range(rounds):
        if every is not None and t >= FIRST and t % every == 0:
            j = t // every % WORKERS
            m[j], cold[j] = m[(j + 1) % WORKERS] if donor else 0, warm_in
        votes = []
        for j in range(WORKERS):
            g = task.gradient(x, task.batch(draws[j], BATCH))
            u = .9 * m[j] + .1 * g
            m[j] = u if direction == "signum" else .99 * m[j] + .01 * g
            if cold[j] == 0:
                votes.append(np.sign(u))
            cold[j] = max(0, cold[j] - 1)
        mean = np.mean(votes, axis=0)
        if aggregate == "vote":
            coins = np.sign(np.random.default_rng([seed, t]).normal(size=len(x)))
            mean = np.where(mean == 0, coins, np.sign(mean))
        x = x - STEPSIZE * (1 - t / rounds) * mean
    return task.loss(x, task.held_out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=800)
    options = parser.parse_args()
    print(f"{'':32}", *(f"{way:>14}" for way in WAYS))
    for direction in ("signum", "lion"):
        for aggregate in ("vote", "average"):
            base = np.array([train(seed, options.rounds, direction, aggregate) for seed in range(options.seeds)])
            for every in (20, 5):
                cells = []
                for way in WAYS.values():
                    losses = np.array([train(seed, options.rounds, direction, aggregate, every, **way)
                                       for seed in range(options.seeds)])
                    excess = 100 * (losses / base - 1)
                    cells.append(f"{excess.mean():+.2f} ± {excess.std(ddof=1) / np.sqrt(len(excess)):.2f} %")
                print(f"{direction + ', ' + aggregate + ', every ' + str(every):32}", *(f"{c:>14}" for c in cells), flush=True)


if __name__ == "__main__":
    main()
