"""What a study will take here, before anything is read or trained."""

import time

import pandas as pd
import torch

from lib.model import transformer
from lib.model.sizes import OUTPUTS, Size
from lib.study import Study
from lib.train import machine

LONGEST = 5e10
"""FLOPs of a trial, two seconds or so of a core. A size that takes more is not tried: it takes as long a FLOP as the
largest one that was."""


def of_sizes(study: Study) -> pd.DataFrame:
    """Hours that each size takes on this machine, all of its seeds one after another.

    Returns
    -------
    DataFrame
        regime, size, parameters, seeds, cells_seen (in a run, those of its branches too), hours; and measured, whether
        the size was tried here or its hours are those of its operations at the rate of a smaller one.
    """
    rows = []
    for regime in study.regimes:
        genes, settings, rate = study.regime(regime).genes, study.training(regime), None
        for size in sorted(study.sizes, key=lambda size: size.parameters(genes)):
            operations, work = size.training_flops_per_cell(genes), size.training_flops(genes, settings)
            cells = machine.cells_at_once(size, genes, settings.batch, machine.device().type)
            measured = rate is None or operations * cells < LONGEST
            if measured:
                rate = _seconds(size, genes, study.masking.genes(genes), settings, cells) / (operations * cells)
            seeds = len(study.seeds_for(size.name))
            rows.append({
                "regime": regime, "size": size.name, "seeds": seeds, "cells_seen": round(work / operations),
                "parameters": size.parameters(genes, OUTPUTS[settings.objective]),
                "hours": seeds * work * rate / 3600, "measured": measured,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _seconds(size: Size, genes: int, masked: int, settings, cells: int) -> float:
    """Seconds of the forward and backward pass of so many cells of random values, genes masked: the least of three."""
    torch.set_num_threads(size.threads(genes))
    device, outputs = machine.device(), OUTPUTS[settings.objective]
    model = transformer.Transformer(size, genes, settings.dropout, outputs=outputs).to(device).train()
    x = torch.rand(cells, genes, device=device)
    positions = torch.rand(cells, genes, device=device).topk(masked, dim=1).indices
    hidden, least = transformer.hide(positions, genes), float("inf")
    for _ in range(3):
        started = time.perf_counter()
        with machine.precision(device.type):
            loss = model(x, hidden, positions).float().square().mean()
        loss.backward()
        loss.item()  # waits for a GPU
        least = min(least, time.perf_counter() - started)
    return least
