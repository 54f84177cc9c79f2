"""selfloop's trainer beside a plain torch loop, and two chains in parallel beside two in sequence.

    python benchmarks/trainer.py

Both loops train the same autoencoder on the same images for the same number of steps and threads, in turns, each in its own
process. Thread variables are set before torch is imported. The plain loop uses torch's modules, AdamW and DataLoader.
"""

import os
import subprocess
import sys
import time
from itertools import pairwise

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NETWORKS = {  # side, depth, steps, settings of the family; enough steps that the start of a fit matters little
    "perceptron, 8 x 8 digits": (8, 1, 600, {}),
    "convolutions, 28 x 28": (28, 1, 60, {}),
    "CelebA's, 64 x 64 color": (64, 3, 24, {"latent": 128, "hidden": 0}),
}
TURNS, BATCH = 5, 128


def images(side, depth):
    import numpy as np

    from selfloop.component import Context
    from selfloop.rng import RandomStream
    from selfloop.sources.image_arrays import Digits

    digits = Digits().draw(0, 1797, Context(RandomStream()))["image"]
    times = side // 8
    rest = side - 8 * times
    large = np.pad(digits.repeat(times, 1).repeat(times, 2), ((0, 0), (0, rest), (0, rest)))
    return large if depth == 1 else np.ascontiguousarray(np.repeat(large[..., None], depth, 3))


def ours(name, steps, threads):
    from selfloop.component import Context
    from selfloop.families.nn.settings import TrainingSettings
    from selfloop.families.vae.family import Vae
    from selfloop.rng import RandomStream
    from selfloop.types import RowTake, TrainingRows

    side, depth, _, settings = NETWORKS[name]
    vae = Vae(**settings, training=TrainingSettings(steps=steps, batch_size=BATCH, learning_rate=3e-3))
    rows = TrainingRows((RowTake({"image": images(side, depth)}),))
    vae.fit(rows, Context(RandomStream(("fit",)), threads=threads), None)


def plain(name, steps, threads):
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    side, depth, _, settings = NETWORKS[name]
    latent, hidden = settings.get("latent", 8), settings.get("hidden", 256)
    planes = [depth, *{8: (), 28: (32, 64), 64: (32, 64, 128, 256, 512)}[side]]
    torch.set_num_threads(threads)
    encoder, decoder, sides = [], [], [side]
    for a, b in pairwise(planes):
        encoder += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()]
        sides.append((sides[-1] + 1) // 2)
    flat = planes[-1] * sides[-1] ** 2
    encoder += [nn.Flatten(), *([nn.Linear(flat, hidden), nn.ReLU()] if hidden else []), nn.Linear(hidden or flat, 2 * latent)]
    decoder += [nn.Linear(latent, hidden), nn.ReLU()] if hidden else []
    decoder += [nn.Linear(hidden or latent, flat), nn.Unflatten(1, (planes[-1], sides[-1], sides[-1]))]
    for i in reversed(range(len(planes) - 1)):
        odd = 1 - sides[i] % 2
        decoder += [nn.ReLU(), nn.ConvTranspose2d(planes[i + 1], planes[i], 3, 2, padding=1, output_padding=odd)]
    encoder, decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in network(name).parameters())

    rows = torch.from_numpy(images(side, depth)).reshape(-1, side, side, depth).permute(0, 3, 1, 2).contiguous()
    loader = DataLoader(TensorDataset(rows.float() / 255), batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done, total = 0, 0.0
    while done < steps:
        for (batch,) in loader:
            mean, log_variance = encoder(batch).chunk(2, dim=1)
            decoded = decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
            reconstruction = (torch.sigmoid(decoded) - batch).square().flatten(1).sum(1) / (2 * 0.2**2)
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
            loss = (reconstruction + kl).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item()
            done += 1
            if done == steps:
                break


def network(name):
    from selfloop.families.vae.family import Vae

    side, depth, _, settings = NETWORKS[name]
    return Vae(**settings)._network((side, side, depth))


def worker(loop, threads, name, steps, fits):
    """Train once per line of input. Each loop has its own process, because loops in one process share its memory's state."""
    train = {"plain": plain, "ours": ours}[loop]
    train(name, 3, threads)  # loads the parts that torch imports at first use
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(fits):
            train(name, steps, threads)
        print("done", flush=True)


def start_workers(processes, loop, threads, name, steps, fits):
    """`processes` workers that are ready to train."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    command = [sys.executable, __file__, "--worker", loop, str(threads), name, str(steps), str(fits)]
    workers = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in workers:
        process.stdout.readline()
    return workers


def seconds(workers):
    """Seconds until all workers have finished their fits."""
    began = time.perf_counter()
    for process in workers:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in workers:
        process.stdout.readline()
    return time.perf_counter() - began


def best(*groups):
    """Lowest number of seconds of each group of workers, in alternating turns."""
    times = [[seconds(workers) for workers in groups] for _ in range(TURNS)]
    for worker_process in (process for workers in groups for process in workers):
        worker_process.communicate()
    return [min(column) for column in zip(*times, strict=True)]


def compare_loops(name, threads):
    steps = NETWORKS[name][2]
    theirs, mine = best(*(start_workers(1, loop, threads, name, steps, 1) for loop in ("plain", "ours")))
    print(
        f"{name:26} threads {threads}: plain loop {BATCH * steps / theirs:7.0f} images/s, "
        f"selfloop {BATCH * steps / mine:7.0f} images/s: {theirs / mine:.2f} times as fast",
        flush=True,
    )


def compare_chains(name):
    steps = NETWORKS[name][2]
    sequence, parallel = best(start_workers(1, "ours", 2, name, steps, 2), start_workers(2, "ours", 1, name, steps, 1))
    print(
        f"{name:26} two chains in sequence, two threads each {sequence:.2f} s; in parallel, one thread each {parallel:.2f} s: "
        f"{sequence / parallel:.2f} times as fast",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), sys.argv[4], *map(int, sys.argv[5:]))
    else:
        for network_name in NETWORKS:
            compare_loops(network_name, 1)
            compare_loops(network_name, 2)
            compare_chains(network_name)
