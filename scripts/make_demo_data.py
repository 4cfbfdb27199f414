#!/usr/bin/env python3
"""Makes data/demo/ from PyPI packages; data/demo/README.md says what is in it and where it is from.

    pip download --no-deps openfold3==0.5.0 && unzip openfold3-*.whl -d of3
    pip install biotite==1.2.0
    python3 scripts/make_demo_data.py --openfold3 of3 --output data/demo
"""

from __future__ import annotations

import argparse
import gzip
import re
from pathlib import Path

ENTRIES = ("1kd8", "1pzp", "1ubq", "2q2k", "3u8v", "3zee")
STANDARD = (
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL UNK A G C U N DA DG DC DT DN"
).split()
# In the entries above, then those of larger entries the tests know (721p, 209d, 7a4d).
OTHERS = "ACE FTA 5IU EPE NI DVA GNP MG MVA NH2 PXA SAR NAG".split()
COMPONENT_FIELDS = ("id", "name", "type", "mon_nstd_parent_comp_id", "one_letter_code", "three_letter_code", "pdbx_release_status")
ATOM_FIELDS = (
    "comp_id", "atom_id", "type_symbol", "charge", "pdbx_leaving_atom_flag", "model_Cartn_x", "model_Cartn_y", "model_Cartn_z",
    "pdbx_model_Cartn_x_ideal", "pdbx_model_Cartn_y_ideal", "pdbx_model_Cartn_z_ideal",
)
BOND_FIELDS = ("comp_id", "atom_id_1", "atom_id_2", "value_order", "pdbx_aromatic_flag")


def write_gz(path: Path, data: bytes) -> None:
    """Without a time stamp, so that the same input gives the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))


def quoted(value: str) -> str:
    """A CIF value: in double quotes when it holds a single quote; no name of the chosen components holds both."""
    if value in (".", "?") or re.fullmatch(r"[A-Za-z0-9+.-][^\s'\"]*", value):
        return value
    quote = '"' if "'" in value else "'"
    assert quote not in value, value
    return f"{quote}{value}{quote}"


def components_text() -> str:
    """The chosen components out of the dictionary that biotite bundles, one block each."""
    import biotite.structure.info as info
    from biotite.structure.io.pdbx import BinaryCIFFile

    block = BinaryCIFFile.read(Path(info.__file__).parent / "components.bcif").block
    tables = {}
    for category, key, fields in (
        ("chem_comp", "id", COMPONENT_FIELDS), ("chem_comp_atom", "comp_id", ATOM_FIELDS), ("chem_comp_bond", "comp_id", BOND_FIELDS)
    ):
        table = block[category]
        columns = {field: table[field].as_array(str, masked_value="?") for field in fields}
        tables[category] = (columns, columns[key])
    text = []
    for component in sorted({*STANDARD, *OTHERS}):
        text.append(f"data_{component}\n#\n")
        columns, keys = tables["chem_comp"]
        row = (keys == component).nonzero()[0]
        if len(row) != 1:
            raise SystemExit(f"make_demo_data: component {component} is not in biotite's dictionary")
        text += [f"_chem_comp.{field} {quoted(columns[field][row[0]])}\n" for field in columns]
        for category in ("chem_comp_atom", "chem_comp_bond"):
            columns, keys = tables[category]
            rows = (keys == component).nonzero()[0]
            if len(rows) == 0:
                continue
            text.append("#\nloop_\n" + "".join(f"_{category}.{field}\n" for field in columns))
            text += [" ".join(quoted(columns[field][i]) for field in columns) + "\n" for i in rows]
        text.append("#\n")
    return "".join(text)


def stockholm_to_a3m(text: str) -> str:
    """The first sequence is the query; columns where it has a gap become insertions."""
    description = {name: rest for name, rest in re.findall(r"^#=GS (\S+)\s+DE (.*)$", text, re.MULTILINE)}
    rows: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "//")):
            name, part = line.split()
            rows[name] = rows.get(name, "") + part
    query = next(iter(rows.values()))
    out = []
    for name, row in rows.items():
        columns = [c if q not in "-." else c.lower().strip("-.") for c, q in zip(row, query, strict=True)]
        out.append(f">{name} {description.get(name, '')}".rstrip() + "\n" + "".join(columns).replace(".", "-") + "\n")
    return "".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openfold3", type=Path, required=True, help="the unpacked wheel")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    source = arguments.openfold3 / "openfold3" / "tests" / "test_data"
    for entry in ENTRIES:
        write_gz(arguments.output / "mmcif" / f"{entry}.cif.gz", (source / "mmcifs" / f"{entry}.cif").read_bytes())
    # The wheel names chains as the authors do: A and B are label_asym_id B and C, two copies of one protein.
    for kind in ("uniref90", "uniprot", "mgnify"):
        text = (source / "alignments" / "2q2k_A" / f"{kind}_hits.sto").read_text()
        write_gz(arguments.output / "msa" / f"2q2kB_{kind}.a3m.gz", stockholm_to_a3m(text).encode())
    bfd = (source / "alignments" / "2q2k_A" / "bfd_uniclust_hits.a3m").read_bytes()
    write_gz(arguments.output / "msa" / "2q2kB_bfd.a3m.gz", bfd)
    write_gz(arguments.output / "ccd" / "components.cif.gz", components_text().encode())


if __name__ == "__main__":
    main()
