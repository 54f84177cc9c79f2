"""A small normalizing flow in PyTorch: the programs of `flow.toml`. It reports its own loss and resumes after an interrupt."""

import csv
import json
import math
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

LAYERS, WIDTH, BATCH = 4, 32, 64
CHECKPOINT_STEPS = 100


class Flow(nn.Module):
    """Affine couplings of two numbers: each shifts and scales one of them by functions of the other."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)) for _ in range(LAYERS))

    def log_prob(self, x):
        total = x.new_zeros(len(x))
        for i, net in enumerate(self.nets):
            fixed, moved = x[:, [i % 2]], x[:, 1 - i % 2]
            shift, log_scale = net(fixed).unbind(1)
            moved = (moved - shift) * torch.exp(-torch.tanh(log_scale))
            total = total - torch.tanh(log_scale)
            x = torch.stack((fixed[:, 0], moved) if i % 2 == 0 else (moved, fixed[:, 0]), 1)
        return total - 0.5 * (x**2).sum(1) - math.log(2 * math.pi)

    def sample(self, n):
        x = torch.randn(n, 2)
        for i, net in reversed(list(enumerate(self.nets))):
            fixed, moved = x[:, [i % 2]], x[:, 1 - i % 2]
            shift, log_scale = net(fixed).unbind(1)
            moved = moved * torch.exp(torch.tanh(log_scale)) + shift
            x = torch.stack((fixed[:, 0], moved) if i % 2 == 0 else (moved, fixed[:, 0]), 1)
        return x


def read(path):
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return header, torch.tensor([[float(cell) for cell in row] for row in rows])


def train(data, model, scratch, seed, steps):
    header, x = read(data)
    torch.manual_seed(int(seed))
    flow, first = Flow(), 0
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    checkpoint = Path(scratch, "checkpoint.pt")  # an interrupted training finds it again
    if checkpoint.exists():
        first, weights, moments = torch.load(checkpoint)
        flow.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    for step in range(first, int(steps)):
        generator = torch.Generator().manual_seed(int(seed) + step)  # of the step alone, so that it can begin anywhere
        loss = -flow.log_prob(x[torch.randint(len(x), (BATCH,), generator=generator)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECKPOINT_STEPS == CHECKPOINT_STEPS - 1:
            torch.save((step + 1, flow.state_dict(), optimizer.state_dict()), f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)  # whole or not at all
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)  # the log of the run
    save_file(flow.state_dict(), Path(model, "flow.safetensors"))
    Path(model, "header.json").write_text(json.dumps(header))


def load(model):
    flow = Flow()
    flow.load_state_dict(load_file(Path(model, "flow.safetensors")))
    return flow


@torch.no_grad()
def sample(model, n, out, seed):
    torch.manual_seed(int(seed))
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(json.loads(Path(model, "header.json").read_text()))
        writer.writerows(load(model).sample(int(n)).tolist())


@torch.no_grad()
def evaluate(model, holdout, out):
    """Mean negative log density of held-out rows, in nats, and the share of them that the model finds very improbable."""
    losses = -load(model).log_prob(read(holdout)[1])
    Path(out).write_text(json.dumps({"loss": losses.mean().item(), "lost_share": (losses > 6).float().mean().item()}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    {"train": train, "sample": sample, "evaluate": evaluate}[command](*arguments)
