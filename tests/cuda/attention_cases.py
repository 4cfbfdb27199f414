"""Random problems for EvoAttention, their reference in float64 and the rule that results are held to."""

from __future__ import annotations

import dataclasses
import random

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
RELATIVE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
LENGTHS = (1, 2, 7, 23, 32, 64, 97, 128, 130, 200, 255, 389)


@dataclasses.dataclass(frozen=True)
class Case:
    seed: int
    dtype: torch.dtype
    batch: int
    rows: int
    queries: int
    keys: int
    heads: int
    dim: int
    mask: str  # none, bool, float, storage
    bias: str  # none, float, storage
    shared_bias: bool
    layout: str  # plain, packed (q, k, v in one tensor), transposed (rows and tokens swapped), odd (16-byte misaligned)
    gradients: tuple[bool, bool, bool, bool]
    scale: float

    def name(self) -> str:
        d = str(self.dtype).removeprefix("torch.")
        return (f"{self.seed}-{d}-{self.batch}x{self.rows}x{self.queries}x{self.keys}x{self.heads}x{self.dim}"
                f"-mask_{self.mask}-bias_{self.bias}{'_shared' if self.shared_bias else ''}-{self.layout}")


def random_case(seed: int, small: bool = False) -> Case:
    r = random.Random(seed)
    lengths = [n for n in LENGTHS if n < 70] if small else LENGTHS
    use = r.choice(("single", "triangle", "row", "column", "window", "diffusion"))
    n = r.choice((r.choice(lengths), r.randint(1, 64 if small else 300)))
    queries, keys = n, n
    batch, rows, bias = r.choice((1, 1, 2, 3)), 1, r.choice(("float", "storage"))
    if use == "triangle":
        rows = n if n <= 130 else r.randint(2, 24)
    elif use in ("row", "column"):
        rows = r.randint(1, 20)
        bias = bias if use == "row" else "none"
    elif use == "window":
        batch, rows, queries, keys = 1, r.randint(1, 12), r.choice((32, 17)), r.choice((128, 101))
        bias = r.choice((bias, "none"))
    elif use == "diffusion":
        batch = r.randint(2, 6)
    heads = r.choice((1, 2, 3, 4, 8)) if n < 130 else r.choice((1, 2))
    return Case(seed, r.choice((*DTYPES, torch.bfloat16)), batch, rows, queries, keys, heads,
                r.choice((8, 16, 24, 32, 32, 40, 48, 56, 64, 72, 96, 112, 128)),
                r.choice(("none", "bool", "bool", "float", "storage")), bias,
                use == "diffusion" or r.random() < 0.3, r.choice(("plain", "packed", "transposed", "odd")),
                r.choice([(True, True, True, True)] * 4 + [tuple(r.random() < 0.5 for _ in range(4))]),
                r.choice((0.0, 0.0, 0.0, 0.3, 1.0)))


def hopper_case(seed: int) -> Case:
    """A case that the Hopper path takes: 16-bit types, D up to 64, operands on 16 bytes, more than one row to a bias."""
    r = random.Random(seed)
    queries = r.choice((r.randint(33, 300), r.choice((33, 64, 65, 128, 191, 193, 256, 389))))
    keys = queries if r.random() < 0.6 else r.choice((r.randint(65, 300), 65, 128, 129, 448))
    queries, keys = queries, max(keys, 65)
    bias = r.choice(("none", "float", "float", "storage"))
    shared = bias == "none" or r.random() < 0.4
    batch = r.choice((1, 1, 2, 3))
    rows = r.choice((2, 3, 4, r.randint(5, 40)))
    if shared and batch > 1 and r.random() < 0.5:
        rows = 1
    return Case(seed, r.choice((torch.bfloat16, torch.bfloat16, torch.float16)), batch, rows, queries, keys,
                r.choice((1, 2, 3, 4, 5)), r.choice((8, 16, 24, 32, 32, 32, 40, 48, 56, 64)),
                r.choice(("none", "bool", "bool", "float", "storage")), bias, shared,
                r.choice(("plain", "packed", "transposed")),
                r.choice([(True, True, True, True)] * 4 + [tuple(r.random() < 0.5 for _ in range(4))]),
                r.choice((0.0, 0.0, 0.0, 0.3, 1.0, -0.2)))


def short_case(seed: int) -> Case:
    """A case that the path for short keys takes: 16-bit types, D up to 64, operands on 16 bytes, at most 128 keys, and with a
    bias at most 32 queries."""
    r = random.Random(seed)
    keys = r.choice((r.randint(1, 128), r.choice((1, 2, 16, 17, 31, 32, 33, 64, 65, 97, 127, 128))))
    batch, rows, bias, shared = r.choice((1, 2, 3, 7)), r.choice((1, 2, r.randint(1, 48))), "none", False
    queries = r.choice((keys, r.randint(1, 140), r.randint(1, 300), 32, 33, 64, 65, 96, 128, 129))
    if r.random() < 0.6:
        queries, bias, shared = r.choice((32, r.randint(1, 32))), r.choice(("float", "storage")), r.random() < 0.3
    return Case(seed, r.choice((torch.bfloat16, torch.bfloat16, torch.float16)), batch, rows, queries, keys,
                r.choice((1, 2, 3, 4, 8)), r.choice((8, 16, 24, 32, 32, 32, 40, 48, 56, 64)),
                r.choice(("none", "bool", "bool", "float", "storage")), bias, shared,
                r.choice(("plain", "packed", "transposed")),
                r.choice([(True, True, True, True)] * 4 + [tuple(r.random() < 0.5 for _ in range(4))]),
                r.choice((0.0, 0.0, 0.0, 0.3, 1.0)))


def hopper_short_case(seed: int) -> Case:
    """A case that the Hopper path for short keys takes: no bias, D up to 32, at least 33 queries, 65 to 128 keys."""
    r = random.Random(seed)
    keys = r.choice((r.randint(65, 128), r.choice((65, 72, 96, 97, 127, 128, 128))))
    queries = r.choice((keys, r.randint(33, 140), r.randint(33, 400), r.choice((33, 64, 65, 127, 128, 129, 192, 193))))
    batch, rows, heads = r.choice(((1, 1, 1), (1, 2, 3), (2, 3, 2), (1, r.randint(1, 90), 8), (3, r.randint(1, 60), 5)))
    return Case(seed, r.choice((torch.bfloat16, torch.bfloat16, torch.float16)), batch, rows, queries, keys, heads,
                r.choice((8, 16, 24, 32, 32, 32)), r.choice(("none", "bool", "bool", "float", "storage")), "none", False,
                r.choice(("plain", "packed", "transposed")),
                r.choice([(True, True, True, False)] * 4 + [tuple(r.random() < 0.5 for _ in range(3)) + (False,)]),
                r.choice((0.0, 0.0, 0.0, 0.3, 1.0)))


def spread_case(seed: int) -> Case:
    """A case that the path for small grids takes on a device of 100 multiprocessors and more: 16-bit types, D up to 64, operands on
    16 bytes, at most two rows to a bias, and more than 64 keys where there is a backward."""
    r = random.Random(seed)
    edges = (16, 17, 33, 48, 49, 64, 65, 96, 97, 128, 192, 193, 384, 385, 389, 512, 577)
    queries = r.choice((r.randint(1, 300), r.choice(edges)))
    keys = queries if r.random() < 0.4 else r.choice((r.randint(1, 600), r.choice(edges), 768, 801))
    gradients = r.choice([(True, True, True, True)] * 4 + [tuple(r.random() < 0.5 for _ in range(4))])
    bias = r.choice(("none", "float", "float", "storage"))
    batch, rows = r.choice(((1, 1), (1, 1), (2, 1), (3, 1), (1, 2)))
    shared = bias == "none" or (batch * rows <= 2 and r.random() < 0.4)
    tiles = batch * rows * -(-queries // 16)
    most = 150 // tiles if bias != "none" else min(150 // tiles, 2_500_000 // (batch * rows * queries * keys))
    return Case(seed, r.choice((torch.bfloat16, torch.bfloat16, torch.float16)), batch, rows, queries, keys,
                r.randint(1, min(most, 5)), r.choice((8, 16, 24, 24, 32, 32, 40, 48, 56, 64)),
                r.choice(("none", "bool", "bool", "float", "storage")), bias, shared,
                r.choice(("plain", "packed", "transposed")), gradients if keys > 64 else (False,) * 4,
                r.choice((0.0, 0.0, 0.0, 0.3, 1.0, -0.2)))


def tiny_case(seed: int) -> Case:
    """A case of that path with few scores: any number of rows to a bias, any number of keys, D up to 128."""
    r = random.Random(seed)
    edges = (1, 2, 16, 17, 33, 48, 49, 63, 64, 65, 97, 128)
    queries = r.choice((r.randint(1, 100), r.choice(edges)))
    keys = queries if r.random() < 0.5 else r.choice((r.randint(1, 64), r.randint(65, 400), r.choice(edges)))
    bias, scale = r.choice(("none", "float", "float", "float", "storage")), r.choice((0.0, 0.0, 0.3, 1.0, -0.2))
    batch, rows = r.choice(((1, 1), (4, 1), (8, 1), (3, 1), (1, 5), (1, 9), (3, 2), (2, 3)))
    heads = r.randint(1, max(1, min(4, 400_000 // (batch * rows * queries * keys))))
    return Case(seed, r.choice((torch.bfloat16, torch.bfloat16, torch.float16)), batch, rows, queries, keys, heads,
                r.choice((72, 96, 128) if bias == "none" and keys <= 64 else (8, 16, 24, 32, 48, 56, 64, 72, 96, 128, 128)),
                r.choice(("none", "bool", "bool", "float", "storage")), bias, bias == "none" or r.random() < 0.6,
                r.choice(("plain", "packed", "transposed")),
                r.choice([(True, True, True, True)] * 4 + [tuple(r.random() < 0.5 for _ in range(4))]), scale)


def tile_case(seed: int) -> Case:
    """A case whose backward that path does in tiles: at most 64 keys and many rows, long vectors and many scores, or a few rows that
    share a bias."""
    r = random.Random(seed)
    bias, dim = r.choice(("none", "float", "float", "float", "storage")), r.choice((72, 96, 112, 128, 128))
    kind = r.choice(("few keys", "long", "rows"))
    if kind == "few keys":
        queries, keys = r.choice((r.randint(1, 64), r.randint(65, 200), 64)), r.choice((r.randint(1, 64), 48, 64))
        batch, rows = r.choice(((1, r.randint(1, 100)), (r.randint(2, 20), 1), (2, r.randint(2, 30))))
        dim = dim if bias == "none" else r.choice((8, 16, 32, 40, 48, 64, dim))
        heads = r.randint(1, 8)
    elif kind == "long":
        queries, keys = r.choice((r.randint(65, 500), 256, 321, 512)), r.choice((r.randint(65, 500), 128, 192, 384))
        batch, rows = r.choice(((1, 1), (1, 1), (2, 1), (1, 2), (2, 3)))
        heads = -(-(2**19) // (batch * rows * queries * keys))
    else:
        queries, keys = r.choice((r.randint(1, 120), 32, 97, 128)), r.choice((r.randint(65, 130), 128))
        batch, rows, bias, dim = 1, r.randint(3, 12), r.choice(("float", "storage")), r.choice((8, 32, 48, 64))
        heads = -(-(2**18) // (rows * queries * keys))
    return Case(seed, r.choice((torch.bfloat16, torch.bfloat16, torch.float16)), batch, rows, queries, keys, heads, dim,
                r.choice(("none", "bool", "bool", "float", "storage")), bias, bias == "none" or r.random() < 0.6,
                r.choice(("plain", "packed", "transposed")),
                r.choice([(True, True, True, True)] * 4 + [tuple(r.random() < 0.5 for _ in range(4))]),
                r.choice((0.0, 0.0, 0.3, 1.0, -0.2)))


def few_query_case(seed: int) -> Case:
    """A case with so few queries and so large scores that one with nearly all its weight on a key counts; more than 64 keys."""
    r = random.Random(seed)
    batch, heads, queries = r.choice(((1, 1, r.randint(1, 128)), (3, 2, 1), (2, 4, r.randint(1, 16)), (1, 16, r.randint(1, 8)), (1, 1, 1)))
    keys = r.choice((r.randint(65, 700), 128, 384))
    gradients = r.choice([(True, True, True, True), (True, True, False, True), (False, True, True, False)])
    return Case(seed, r.choice((torch.bfloat16, torch.bfloat16, torch.float16)), batch, 1, queries, keys, heads,
                r.choice((8, 24, 32, 48, 64, 96, 128)), r.choice(("none", "bool", "float")), r.choice(("none", "float", "storage")),
                r.random() < 0.5, r.choice(("plain", "packed")), gradients, r.choice((1.0, 1.0, 0.7)))


def strip_case(seed: int) -> Case:
    """A case whose backward that path does in strips: D up to 24 and two blocks of 48 keys for each three of 132 multiprocessors."""
    r = random.Random(seed)
    queries = r.choice((r.randint(1, 200), 16, 33, 96, 128, 385, 400))
    keys = r.choice((r.randint(65, 200), 72, 96, 128, 136, 384, 392))
    batch = r.choice((1, 1, 2, 3))
    heads = -(-92 // (-(-keys // 48) * batch)) + r.randint(0, 2)
    bias = r.choice(("none", "float", "float", "storage")) if batch * heads * queries * keys <= 2_500_000 else "float"
    gradients = r.choice([(True, True, True, True)] * 4 + [tuple(r.random() < 0.5 for _ in range(4))])
    return Case(seed, r.choice((torch.bfloat16, torch.bfloat16, torch.float16)), batch, 1, queries, keys, heads, r.choice((8, 16, 24, 24)),
                r.choice(("none", "bool", "bool", "float", "storage")), bias, bias == "none", r.choice(("plain", "packed", "transposed")),
                gradients, r.choice((0.0, 0.0, 0.0, 0.3, 1.0, -0.2)))


def allocate(case: Case, tokens: int, poison: bool, generator: torch.Generator, device) -> torch.Tensor:
    """A [B, S, tokens, H, D] tensor in the case's layout; what it leaves of its storage stays NaN when poisoned."""
    b, s, h, d = case.batch, case.rows, case.heads, case.dim

    def fill(*shape: int) -> torch.Tensor:
        if poison:
            return torch.full(shape, float("nan"), dtype=case.dtype, device=device)
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(case.dtype)

    if case.layout == "packed":
        return fill(b, s, tokens, 3, h, d)[:, :, :, 1]
    if case.layout == "transposed":
        return fill(b, tokens, s, h, d).transpose(1, 2)
    if case.layout == "odd":
        return fill(b, s, tokens, h, d + 3)[..., 1:1 + d]
    return fill(b, s, tokens, h, d)


@dataclasses.dataclass
class Problem:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    dout: torch.Tensor
    scale: float


def make_problem(case: Case, device: str = "cuda") -> Problem:
    g = torch.Generator(device=device).manual_seed(case.seed)
    q = allocate(case, case.queries, False, g, device)
    k, v = (allocate(case, case.keys, False, g, device) for _ in range(2))
    dout = allocate(case, case.queries, False, g, device)
    mask = bias = None
    shape = (case.batch, case.rows, 1, 1, case.keys)
    if case.mask != "none":
        mask = torch.rand(shape, generator=g, device=device) < 0.8
        if case.rows * case.batch > 1:
            mask[-1, -1] = False  # a row without keys
        if case.mask != "bool":
            keep = mask.clone()
            keep[..., 0] = True
            term = torch.randn(shape, generator=g, device=device)
            mask = torch.where(keep, term, float("-inf")).to(torch.float32 if case.mask == "float" else case.dtype)
    if case.bias != "none":
        groups = 1 if case.shared_bias else case.batch
        bias = torch.randn((groups, 1, case.heads, case.queries, case.keys), generator=g, device=device)
        bias = bias.to(torch.float32 if case.bias == "float" else case.dtype)
        if case.seed % 5 == 0:  # keys are not the fastest dimension
            bias = bias.transpose(-1, -2).contiguous().transpose(-1, -2)
    return Problem(q, k, v, mask, bias, dout, case.scale or case.dim**-0.5)


def attention(q, k, v, mask, bias, scale):
    """The formula with plain PyTorch operators, in the precision of its inputs."""
    scores = torch.einsum("bsihd,bsjhd->bshij", q * scale, k)
    if bias is not None:
        scores = scores + bias
    empty = None
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
            empty = ~mask.any(-1, keepdim=True)
            scores = scores.masked_fill(empty, 0.0)
        else:
            scores = scores + mask
    p = scores.softmax(-1).to(q.dtype)
    if empty is not None:
        p = p.masked_fill(empty, 0.0)
    return torch.einsum("bshij,bsjhd->bsihd", p, v)


def plain_result(problem: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output and gradients of the formula with every operand in `dtype`."""
    def leaf(x, to):
        return None if x is None else x.detach().to(to).requires_grad_(x.dtype != torch.bool)

    q, k, v = (leaf(x, dtype) for x in (problem.q, problem.k, problem.v))
    bias = None if problem.bias is None else leaf(problem.bias, dtype)
    mask = problem.mask
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    out = attention(q, k, v, mask, bias, problem.scale)
    inputs = [q, k, v] + ([bias] if bias is not None else [])
    gradients = torch.autograd.grad(out, inputs, problem.dout.to(dtype))
    return dict(zip(("out", "dq", "dk", "dv", "dbias"), (out.detach(), *gradients)))


def violations(name: str, ours: torch.Tensor, plain: torch.Tensor, reference: torch.Tensor,
               dtype: torch.dtype) -> list[str]:
    """How `ours` breaks the rule: largest error against the plain operators', and relative norm."""
    if ours.numel() == 0:
        return []
    error = (ours.double() - reference).abs()
    allowed = 2 * (plain.double() - reference).abs().max().item() + 1e-5
    found = []
    worst = error.max().item()
    if not worst <= allowed:
        found.append(f"{name}: largest error {worst:.3e}, allowed {allowed:.3e}")
    # A gradient that cancels to nothing has no relative error: what the first rule lets pass per element passes here too.
    norm = reference.norm().item()
    floor = 1e-5 * reference.numel() ** 0.5
    if not error.norm().item() <= RELATIVE[dtype] * norm + floor:
        found.append(f"{name}: relative error {error.norm().item() / max(norm, 1e-30):.3e} of norm {norm:.3e}")
    return found
