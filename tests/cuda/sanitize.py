"""A few small problems for compute-sanitizer: inputs come from the CPU, so that only our kernels run under it.

    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/cuda/sanitize.py [count]
    compute-sanitizer --tool racecheck --racecheck-indirect-barrier-dependency --error-exitcode 9 \\
        python tests/cuda/sanitize.py [count]

Without that flag racecheck reports everything that an mbarrier orders.
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from attention_cases import (Case, few_query_case, hopper_short_case, make_problem, random_case, short_case, spread_case, strip_case,
                             tiny_case)
from attention_run import run
from attention_shim import Shim, find_library


def cases(count: int) -> list[Case]:
    chosen = []
    for seed in range(20_000, 20_000 + count):
        case = random_case(seed, small=True)
        if seed % 8 == 3:
            case = short_case(seed)
        elif seed % 8 == 1:
            case = hopper_short_case(seed)
        elif seed % 16 == 5:
            case = strip_case(seed)
        elif seed % 16 == 7:
            case = tiny_case(seed)
        elif seed % 8 == 5:
            case = spread_case(seed)
            case = dataclasses.replace(case, queries=min(case.queries, 60), keys=65 + case.keys % 60, heads=1)
        elif seed % 2:  # long enough for the Hopper path
            case = dataclasses.replace(case, queries=case.queries + 64, keys=case.keys + 70, dim=min(case.dim, 64),
                                       rows=max(case.rows, 2))
        chosen.append(dataclasses.replace(case, rows=min(case.rows, 6), gradients=(True,) * 4))
    # More heads of rows than a device has blocks: the Hopper kernels for short keys go round their rings.
    chosen.append(dataclasses.replace(hopper_short_case(20_001), batch=1, rows=115, heads=8, queries=70, gradients=(True,) * 4))
    # Long vectors in tiles, of which a block has several of queries; few queries, whose delta comes from the scores.
    chosen.append(Case(20_002, torch.bfloat16, 1, 1, 300, 389, 5, 96, "bool", "float", False, "plain", (True,) * 4, 0.0))
    chosen.append(dataclasses.replace(few_query_case(20_003), gradients=(True,) * 4))
    return chosen


def main() -> None:
    shim = Shim(find_library())
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    done = 0
    for case in cases(count):
        problem = make_problem(case, "cpu")
        for field in dataclasses.fields(problem):
            value = getattr(problem, field.name)
            if isinstance(value, torch.Tensor):
                moved = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cuda")
                setattr(problem, field.name, moved.copy_(value))
        for name in shim.names:
            if name.split()[-1] in ("shared", "single", "window") and case.seed % 4:  # they share the portable path's kernels
                continue
            try:
                run(shim, name, case, problem)
            except RuntimeError as error:
                if not str(error).startswith("unsupported"):
                    raise
                continue
            done += 1
    torch.cuda.synchronize()
    print(f"sanitize: {done} calls of {shim.names}")


if __name__ == "__main__":
    main()
