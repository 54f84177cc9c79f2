"""Training and sampling of image diffusion beside diffusers' own example and pipeline.

    python benchmarks/image_diffusion.py

Training: `ImageDiffusion` beside the loop of diffusers' training example, with the same UNet, batch and objective, on a
DataLoader. Sampling: `ddim` and the default sampler beside diffusers' DDIMPipeline, with equally many network
calls and batches of 64. One thread each, in turns, processor seconds.
"""

import os
import time

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import torch

TURNS, STEPS, SAMPLED, CALLS = 3, 12, 128, 20
GEMM = 1024  # side of the matrices whose product measures the machine's peak


def family(steps=STEPS):
    from selfloop.families.image_diffusion.family import ImageDiffusion
    from selfloop.families.nn.settings import TrainingSettings

    return ImageDiffusion(noise_schedule="linear", training=TrainingSettings(steps=steps, batch_size=64))


def ours(rows, steps=STEPS):
    from selfloop.component import Context
    from selfloop.rng import RandomStream
    from selfloop.types import RowTake, TrainingRows

    return family(steps).fit(TrainingRows((RowTake({"image": rows}),)), Context(RandomStream(("fit",))), None)


def plain(rows, steps=STEPS):
    from diffusers import DDPMScheduler
    from torch.utils.data import DataLoader, TensorDataset

    from selfloop.families.image_diffusion.network import NoiseProcess

    data = TensorDataset(torch.from_numpy(rows).unsqueeze(1).float() / 127.5 - 1)
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    model, process = family()._network(rows.shape[1:]), NoiseProcess("linear")  # the same patches and prediction
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scheduler = DDPMScheduler(1000)
    done = 0
    while done < steps:
        for (images,) in loader:
            noise, times = torch.randn_like(images), torch.randint(0, 1000, (len(images),))
            noisy = scheduler.add_noise(images, noise, times)
            signal, level = (x.view(-1, 1, 1, 1) for x in process.signal_and_noise(times + 1))
            loss = torch.nn.functional.mse_loss(level * noisy + signal * model(noisy, times.float(), None), noise)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            loss.item()
            done += 1
            if done == steps:
                break


def sample(params, **settings):
    from selfloop.component import Context
    from selfloop.families.image_diffusion.family import DiffusionSampler
    from selfloop.rng import RandomStream

    family().sample(params, SAMPLED, DiffusionSampler(**settings), {}, Context(RandomStream(("sample",))))


def pipeline(side):
    """diffusers' pipeline on the UNet alone, with one pixel per patch, so that both have the same cost."""
    from diffusers import DDIMPipeline, DDIMScheduler

    model = family()._network((side, side))
    model.unet.register_to_config(sample_size=side // model.patch_size)
    pipe = DDIMPipeline(model.unet.eval(), DDIMScheduler(1000))
    pipe.set_progress_bar_config(disable=True)

    def run():
        for _ in range(SAMPLED // 64):
            pipe(batch_size=64, num_inference_steps=CALLS, output_type="np", generator=torch.Generator().manual_seed(0))

    return run


def seconds(function, *arguments, **settings):
    started = time.process_time()
    function(*arguments, **settings)
    return time.process_time() - started


def rates(amount, runs):
    """Highest rate of each function, in alternating turns."""
    for run in runs:
        run()
    times = [[seconds(run) for run in runs] for _ in range(TURNS)]
    return [amount / min(column) for column in zip(*times, strict=True)]


def peak():
    """Multiplications and additions of a large matrix product per second."""
    a = torch.rand(GEMM, GEMM)
    return rates(2 * GEMM**3, [lambda: a @ a])[0]


def operations(side):
    """Multiplications and additions of one image's pass through the network."""
    from torch.utils.flop_counter import FlopCounterMode

    model = family()._network((side, side))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, side, side), torch.zeros(1), None)
    return counter.get_total_flops()


def main():
    torch.set_num_threads(1)
    for side, steps in ((8, 3 * STEPS), (28, STEPS)):
        rows = np.random.default_rng(0).integers(0, 256, (1000, side, side), np.uint8)
        theirs, mine = rates(64 * steps, [lambda r=rows, s=steps: plain(r, s), lambda r=rows, s=steps: ours(r, s)])
        best, flops = peak(), operations(side)
        print(
            f"{side} x {side}: training, plain loop {theirs:5.0f} images/s, selfloop {mine:5.0f}: {mine / theirs:.2f} times as "
            f"fast, {3 * flops * mine / best:.0%} of the matrix product's {best / 1e9:.0f} GFLOP/s"
        )
        params = ours(rows, 1)
        ddim, heun, pipe = rates(
            SAMPLED,
            [
                lambda p=params: sample(p, method="ddim", steps=CALLS),
                lambda p=params: sample(p, steps=CALLS // 2),
                pipeline(side),
            ],
        )
        print(
            f"{side} x {side}: sampling in {CALLS} calls, DDIMPipeline {pipe:5.0f} images/s, ddim {ddim:5.0f}: "
            f"{ddim / pipe:.2f} times as fast, heun {heun:5.0f}; {CALLS * flops * ddim / best:.0%} of the matrix product"
        )


if __name__ == "__main__":
    main()
