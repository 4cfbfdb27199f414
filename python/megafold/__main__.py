"""python -m megafold: what is installed, one fact a line."""

from __future__ import annotations

from . import doctor


def main() -> None:
    facts = doctor()
    library, tuning = facts.pop("megafold"), facts.pop("tuning")
    print(f"megafold {library['version']} ({library['commit']}), {library['compiler']}")
    for name, backend in library["backends"].items():
        print(f"  {name:5} {'built' if backend['built'] else 'not built'}: {backend['detail']}")
        if backend["built"]:
            print(f"        kernels: {', '.join(backend['kernels'])}")
    for name, value in facts.items():
        print(f"{name}: {', '.join(value) or 'none' if isinstance(value, list) else value}")
    for device, report in tuning.items():
        for line in report["used"] or ["no table: the built-in order of implementations"]:
            print(f"tuned on {device}: {line}")
        for line in report["problems"]:
            print(f"tuned on {device}: IGNORED: {line}")


if __name__ == "__main__":
    main()
