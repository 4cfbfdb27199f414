"""python -m megafold: what is installed, one fact a line."""

from __future__ import annotations

from . import doctor


def main() -> None:
    facts = doctor()
    library = facts.pop("megafold")
    print(f"megafold {library['version']} ({library['commit']}), {library['compiler']}")
    for name, backend in library["backends"].items():
        print(f"  {name:5} {'built' if backend['built'] else 'not built'}: {backend['detail']}")
    for name, value in facts.items():
        print(f"{name}: {', '.join(value) or 'none' if isinstance(value, list) else value}")


if __name__ == "__main__":
    main()
