"""Parameter and FLOP counts."""

import pytest
import torch
from reference import Reference

from lib.model.sizes import PUBLISHED, Size
from lib.model.transformer import Transformer

COUNTS = {
    "XXS": (533, 1_045),
    "TINY": (9_953, 18_145),
    "XS": (132_993, 165_761),
    "S": (859_137, 924_673),
    "M": (19_178_497, 19_440_641),
    "L": (100_510_801, 101_033_041),
    "XL": (340_770_817, 341_557_249),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("column, genes", [(0, 512), (1, 1024)])
def test_parameter_counts_are_the_published_ones(name, column, genes):
    size = PUBLISHED[name]
    with torch.device("meta"):
        model = Transformer(size, genes)
    assert sum(weight.numel() for weight in model.parameters()) == COUNTS[name][column]
    assert size.parameters(genes) == COUNTS[name][column]


@pytest.mark.parametrize("size", [PUBLISHED["XS"], Size("odd", 12, 3, 3, 2)])
def test_flops_are_those_that_torch_counts_for_a_full_forward_pass_of_the_plain_implementation(size):
    from torch.utils.flop_counter import FlopCounterMode

    genes = 40
    model = Reference(size, genes).eval()
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, genes), torch.zeros(1, genes, dtype=torch.bool))
    assert size.forward_flops(genes) == counter.get_total_flops()
