"""Attention, GELU and dropout on a CPU, compiled on first use where there is a C compiler. Needs torch alone.

torch computes the same, slower: attention of heads of 16 values and less, GELU's derivative, and above all dropout,
which costs it more than all matrix products of a narrow model. Without a compiler, and on a GPU, torch does it all.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional

SOURCE = Path(__file__).with_suffix(".c")
WIDEST = 16
"""Values per head up to which the compiled attention is used: its sums then fit a CPU's vector registers."""
REALS = {torch.float32: "float", torch.float64: "double"}
MARCH = {"AVX512": "-march=x86-64-v4", "AVX2": "-march=x86-64-v3"}
BLOCK = 64
"""Bytes that the compiled code takes at once."""


def attention(query, pair, heads, dropout=0.0, values=None):
    """Softmax attention of every query to all keys of its cell.

    Parameters
    ----------
    query : Tensor (cells, queries, d)
    pair : Tensor (cells, keys, 2d)
        Keys, and beside them values.
    heads : int
    dropout : float
        Probability that an attention weight is dropped; the others are scaled up to keep their expected sum.
    values : int, optional
        How many of a head's values are not padding: scores are divided by the square root of it.

    Returns
    -------
    Tensor (cells, queries, d)
    """
    width = query.shape[-1] // heads
    code = _code(query, width) if width <= WIDEST and values in (None, width) else None
    if code is not None:
        return _Attention.apply(query, pair, code, heads, dropout)
    parts = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, *pair.chunk(2, dim=-1)))
    seen = functional.scaled_dot_product_attention(*parts, dropout_p=dropout, scale=(values or width) ** -0.5)
    return seen.transpose(1, 2).flatten(-2)


def gelu(x):
    """x times the standard normal distribution function of x; any shape."""
    code = _code(x)
    return functional.gelu(x) if code is None else _Gelu.apply(x, code)


def dropout(x, probability):
    """x with values dropped at random and the others scaled up; any shape."""
    code = _code(x) if probability else None
    return functional.dropout(x, probability) if code is None else _Dropout.apply(x, code, probability)


def available():
    """Whether the compiled code is used on this machine's CPU."""
    return compiled(torch.float32, WIDEST) is not None


def _code(x, width=WIDEST):
    return compiled(x.dtype, width) if x.device.type == "cpu" else None


@cache
def compiled(dtype, width):
    """The code for numbers of this type and heads of this width, a ctypes library; None where it cannot be made."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if dtype not in REALS or not compiler:
        return None
    padded, real = 1 << (width - 1).bit_length(), REALS[dtype]
    flags = ["-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
    flags += [f"-DREAL={real}", f"-DIS_FLOAT={int(real == 'float')}", f"-DWIDTH={width}", f"-DPADDED={padded}"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags += [MARCH[found] for found in MARCH if found == torch.backends.cpu.get_cpu_capability()]
    try:
        return ctypes.CDLL(str(_build(compiler, flags)))
    except (OSError, subprocess.SubprocessError):
        return None


def _build(compiler, flags):
    """Path of the compiled code, made in about a second, once for each kind of machine and version of the source."""
    key = hashlib.sha256(" ".join([compiler, *flags]).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    library = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "single-cell-scaling" / f"{key}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            subprocess.run([compiler, *flags, str(SOURCE), "-o", str(made), "-lm"], check=True, capture_output=True)
            os.replace(made, library)
    return library


def _structure(pointers, counts):
    """A C structure of pointers, then int64 counts, then the two numbers of dropout."""
    fields = [(name, ctypes.c_void_p) for name in pointers.split()] + [
        (name, ctypes.c_int64) for name in counts.split()
    ]
    fields += [("dropped", ctypes.c_uint32), ("seed", ctypes.c_uint32)]
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


_AttentionArguments = _structure("query pair out_grad out log_sum query_grad pair_grad", "heads queries keys")
_ValuesArguments = _structure("inputs out_grad out", "values")


def _run(function, arguments, tasks, work=0):
    """Call compiled code on equal shares of its tasks, one for each thread of torch; `work` is bytes of workspace."""
    threads = torch.get_num_threads()

    def share(number):
        space = ctypes.create_string_buffer(work + BLOCK)
        place = ctypes.c_void_p(-(-ctypes.addressof(space) // BLOCK) * BLOCK)
        first, last = (ctypes.c_int64(tasks * end // threads) for end in (number, number + 1))
        function(ctypes.byref(arguments), first, last, place)

    list(map(share, range(1)) if threads == 1 else _pool(threads).map(share, range(threads)))


@cache
def _pool(threads):
    return ThreadPoolExecutor(threads)


def _chance(probability):
    """Values dropped of 65536, and a seed from torch's generator."""
    dropped = round(65536 * probability)
    return dropped, int(torch.randint(2**32, ())) if dropped else 0


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, pair, code, heads, probability):
        query, pair = query.contiguous(), pair.contiguous()
        out, log_sum = torch.empty_like(query), query.new_empty(len(query), heads, query.shape[1])
        counts = (heads, query.shape[1], pair.shape[1], *_chance(probability))
        ctx.code, ctx.counts = code, counts
        ctx.save_for_backward(query, pair, out, log_sum)
        pointers = (query.data_ptr(), pair.data_ptr(), 0, out.data_ptr(), log_sum.data_ptr(), 0, 0)
        arguments = _AttentionArguments(*pointers, *counts)
        _run(code.attention_forward, arguments, len(query) * heads, BLOCK * pair.shape[1])
        return out

    @staticmethod
    def backward(ctx, out_grad):
        query, pair, out, log_sum = ctx.saved_tensors
        out_grad, query_grad, pair_grad = out_grad.contiguous(), torch.empty_like(query), torch.zeros_like(pair)
        tensors = (query, pair, out_grad, out, log_sum, query_grad, pair_grad)
        arguments = _AttentionArguments(*(tensor.data_ptr() for tensor in tensors), *ctx.counts)
        _run(ctx.code.attention_backward, arguments, len(query) * ctx.counts[0], 2 * BLOCK * pair.shape[1])
        return query_grad, pair_grad, None, None, None


def _by_value(function, x, out_grad=None, chance=(0, 0)):
    """Run a function of single values on a contiguous tensor."""
    out, count = torch.empty_like(x), BLOCK // x.element_size()
    pointers = (x.data_ptr(), 0 if out_grad is None else out_grad.data_ptr(), out.data_ptr())
    _run(function, _ValuesArguments(*pointers, x.numel(), *chance), -(-x.numel() // count))
    return out


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, code):
        ctx.code = code
        ctx.save_for_backward(x)
        return _by_value(code.gelu_forward, x.contiguous())

    @staticmethod
    def backward(ctx, out_grad):
        return _by_value(ctx.code.gelu_backward, ctx.saved_tensors[0].contiguous(), out_grad.contiguous()), None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, code, probability):
        ctx.code, ctx.chance = code, _chance(probability)
        return _by_value(code.dropout, x.contiguous(), chance=ctx.chance)

    @staticmethod
    def backward(ctx, out_grad):
        return _by_value(ctx.code.dropout, out_grad.contiguous(), chance=ctx.chance), None, None
