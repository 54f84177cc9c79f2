"""Our trainer beside the loop a researcher would write, and two chains at once beside one after the other.

    python benchmarks/trainer.py

Both loops train the same autoencoder on the same images for the same number of steps, one after the other in turns, one
thread each. The second part runs each chain in a process of its own whose thread variables are set before torch loads.
"""

import os
import subprocess
import sys
import time

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STEPS, TURNS = {"perceptron, 8 x 8 digits": 600, "convolutions, 28 x 28": 40}, 3


def images(side):
    import numpy as np

    from selfloop.component import Context
    from selfloop.rng import Stream
    from selfloop.sources.images import Digits

    digits = Digits().draw(0, 1797, Context(Stream()))["image"]
    return digits if side == 8 else np.pad(digits.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))


def ours(rows, steps, threads=1):
    from selfloop.component import Context
    from selfloop.families.nn.training import Training
    from selfloop.families.vae import Vae
    from selfloop.rng import Stream
    from selfloop.types import Samples

    vae = Vae(training=Training(steps=steps, learning_rate=3e-3))
    vae.fit(Samples((({"image": rows}, None, 1.0),)), Context(Stream(("fit",)), threads=threads), None)


def plain(rows, steps):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from selfloop.families.nn.autoencoder import elbo_parts
    from selfloop.families.vae import Vae

    torch.set_num_threads(1)
    data = TensorDataset(torch.from_numpy(rows).unsqueeze(1).float() / 255)
    loader = DataLoader(data, batch_size=128, shuffle=True, drop_last=True)
    model = Vae()._network(rows.shape[1:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done, total = 0, 0.0
    while done < steps:
        for (batch,) in loader:
            reconstruction, kl = elbo_parts(model, batch, torch.randn(len(batch), 8), 0.2)
            loss = (reconstruction + kl).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item()
            done += 1
            if done == steps:
                break


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def compare_loops():
    for side, (name, steps) in zip((8, 28), STEPS.items(), strict=True):
        rows = images(side)
        for function in (plain, ours):
            function(rows, 5)  # what torch loads at first use
        times = [[seconds(function, rows, steps) for function in (plain, ours)] for _ in range(TURNS)]
        theirs, mine = (128 * steps / min(column) for column in zip(*times, strict=True))
        print(f"{name:26} plain loop {theirs:7.0f} images/s, selfloop {mine:7.0f} images/s: {mine / theirs:.2f} times as fast")


def worker(threads, side, steps, fits):
    """A chain: gets ready, waits for the word, trains."""
    rows = images(side)
    ours(rows, 5, threads)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(fits):
        ours(rows, steps, threads)
    print("done", flush=True)


def chains_seconds(processes, threads, side, steps, fits):
    """Seconds that so many processes at once take for `fits` fits each, start-up not counted."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    command = [sys.executable, __file__, "--worker", *map(str, (threads, side, steps, fits))]
    chains = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for chain in chains:
        chain.stdout.readline()
    started = time.perf_counter()
    for chain in chains:
        chain.stdin.write("go\n")
        chain.stdin.flush()
    for chain in chains:
        chain.stdout.readline()
    taken = time.perf_counter() - started
    for chain in chains:
        chain.communicate()
    return taken


def compare_threads():
    for side, (name, steps) in zip((8, 28), STEPS.items(), strict=True):
        turns = [(chains_seconds(1, 2, side, steps, 2), chains_seconds(2, 1, side, steps, 1)) for _ in range(TURNS)]
        sequence, beside = (min(column) for column in zip(*turns, strict=True))
        print(
            f"{name:26} two chains in sequence, two threads each {sequence:.2f} s; at once, one thread each {beside:.2f} s: "
            f"{sequence / beside:.2f} times as fast"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*map(int, sys.argv[2:]))
    else:
        for variable in THREAD_VARIABLES:
            os.environ[variable] = "1"
        compare_loops()
        compare_threads()
