"""The program `megafold` as a user runs it."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILDS = [Path(os.environ["MEGAFOLD_LIBRARY_DIR"]).parent] if "MEGAFOLD_LIBRARY_DIR" in os.environ else sorted(
    ROOT.glob("build/*"))
PROGRAM = next((build / "bin/megafold" for build in BUILDS if (build / "bin/megafold").exists()), None)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="the program megafold is not built here (make build)")

# Small enough for a step in a fraction of a second; otherwise the demo's configuration.
SMALL = {
    "data.crop_tokens": "16",
    "data.entries": "[1ubq, 1kd8, 3u8v]",
    "model.diffusion.samples": "2",
    "model.diffusion.blocks": "1",
    "model.pairformer.blocks": "1",
    "prediction.entry": "''",
    "train.device": "cpu",
    "train.threads": "1",
    "train.accumulate": "1",
}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(PROGRAM), *map(str, arguments)], cwd=ROOT, text=True, capture_output=True, check=False,
                          timeout=280)


def train_arguments(output: Path, resume: bool = False, **settings: str) -> list[str]:
    merged = SMALL | {key.replace("__", "."): value for key, value in settings.items()}
    sets = [word for key, value in merged.items() for word in ("--set", f"{key}={value}")]
    return ["train", "--config", "configs/tiny.yaml", "--output", str(output), *sets, *(["--resume"] if resume else [])]


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "log.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("command", ["train", "tune", "inspect", "doctor", "version"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    assert "Example" in result.stdout and f"megafold {command}" in result.stdout


def test_version_and_doctor() -> None:
    assert run("version").stdout.startswith("megafold 0.")
    doctor = run("doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    for word in ("compiler", "backend cuda", "backend hip", "PyTorch", "devices", "libmegafold", "tensors on cpu"):
        assert word in doctor.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/tiny.yaml", "--set", "model.pairformer.block=4"], "nearest is 'model.pairformer.blocks'"),
        (["--config", "configs/tiny.yaml", "--set", "train.steps=many"], "expected an integer of at least 1"),
        (["--config", "configs/none.yaml"], "configs/none.yaml: cannot read"),
        (["--config", "configs/tiny.yaml", "--set", "data.root=/nowhere"], "/nowhere"),
        (["--config", "configs/tiny.yaml", "--stpes", "3"], "--stpes"),
        (["--config", "configs/tiny.yaml", "--set", "prediction.entry=9xyz"], "no file for entry '9xyz'"),
        ([], "--config"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("train", "--output", tmp_path / "run", *arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("arguments", "message"), [((), "no command given"), (("trian",), "unknown command 'trian'")])
def test_a_missing_or_misspelt_command_names_the_commands(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert message in result.stderr and "train, tune, inspect, doctor, version" in result.stderr


@pytest.mark.parametrize("setting", ["train.device=tpu", "prediction.entry=9xyz", "data.entries=[9xyz]"])
def test_overwrite_removes_nothing_when_the_run_is_refused(setting: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("precious\n")
    result = run("train", "--config", "configs/tiny.yaml", "--output", tmp_path, "--overwrite", "--set", setting)
    assert result.returncode == 2
    assert (tmp_path / "log.csv").read_text() == "precious\n"


def test_an_unknown_key_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("data:\n  root: data/demo\ntrain:\n  stepps: 3\n")
    result = run("train", "--config", config)
    assert result.returncode == 2
    assert "my.yaml:4: unknown key 'train.stepps'; the nearest is 'train.steps'" in result.stderr


@pytest.mark.parametrize("name", ["tiny", "af3"])
def test_configurations_print_and_read_back(name: str, tmp_path: Path) -> None:
    printed = run("train", "--config", f"configs/{name}.yaml", "--print-config")
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "again.yaml").write_text(printed.stdout)
    again = run("train", "--config", tmp_path / "again.yaml", "--print-config")
    assert again.stdout == printed.stdout


def test_every_key_is_documented() -> None:
    lines = run("train", "--help-config").stdout.splitlines()
    keys, docs = lines[::2], lines[1::2]
    assert len(keys) == len(docs) > 50
    assert "train.optimizer.learning_rate: 0.0018" in keys
    for key, doc in zip(keys, docs, strict=True):
        assert len(doc.strip().rsplit(" (", 1)[0]) > 5, key


def test_inspect_shows_an_entry() -> None:
    result = run("inspect", "--config", "configs/tiny.yaml", "1ubq")
    assert result.returncode == 0, result.stderr
    assert "1ubq" in result.stdout and "76" in result.stdout
    missing = run("inspect", "--config", "configs/tiny.yaml", "9xyz")
    assert missing.returncode == 2 and "9xyz" in missing.stderr


def tune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("tune", "--config", "configs/tiny.yaml", "--set", "data.crop_tokens=16", "--set", "train.threads=1", "--seconds",
               "0.001", *arguments)


def test_tune_writes_a_table_that_doctor_and_the_operators_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "new folder/cpu.json"
    result = tune("--device", "cpu", "--tokens", "16", "20", "21", "--output", table)
    assert result.returncode == 0, result.stderr
    assert f"table: {table}" in result.stdout and "problems run on something else than the default" in result.stdout
    written = json.loads(table.read_text())
    assert [path.name for path in table.parent.iterdir()] == ["cpu.json"]
    assert written["commit"] and "--tokens 16 20 21" in written["command"] and len(written["entries"]) >= 16
    problems = [entry["problem"] for entry in written["entries"]]
    assert len(set(problems)) == len(problems), "20 and 21 tokens are of one class"
    assert any("queries=16 keys=16" in p for p in problems) and any("queries=24 keys=24" in p for p in problems)
    for entry in written["entries"]:
        assert set(entry["times_ms"]) == {"cpu simd", "cpu ref"} and entry["default"] == "cpu simd" and not entry["failed"]
        assert entry["problem"].split()[:2] in (["evo_attention", "forward"], ["evo_attention", "backward"])

    # A choice that no measurement would make: the log shows that it is followed, and by the trainer as well.
    for entry in written["entries"]:
        entry["implementation"] = "cpu ref"
    table.write_text(json.dumps(written))
    monkeypatch.setenv("MEGAFOLD_TUNING", str(table.parent))
    assert f"{table}: {len(written['entries'])} entries" in run("doctor").stdout
    monkeypatch.setenv("MEGAFOLD_LOG", "dispatch")
    output = tmp_path / "run"
    trained = run(*train_arguments(output, train__steps="1"))
    assert trained.returncode == 0, trained.stderr
    assert "megafold: evo_attention -> cpu ref (tuned)" in trained.stderr
    monkeypatch.setenv("MEGAFOLD_TUNING", "off")
    again = run(*train_arguments(tmp_path / "again", train__steps="1"))
    assert "(tuned)" not in again.stderr and "megafold: evo_attention -> cpu simd" in again.stderr


def test_a_damaged_table_is_reported_once_and_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn.json").write_text('{"format": ')
    monkeypatch.setenv("MEGAFOLD_TUNING", str(tmp_path))
    trained = run(*train_arguments(tmp_path / "run", train__steps="2"))
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr.count("torn.json: is not JSON") == 1
    doctor = run("doctor")
    assert doctor.returncode == 0 and "IGNORED: " in doctor.stdout and "torn.json" in doctor.stdout
    monkeypatch.setenv("MEGAFOLD_TUNING", str(tmp_path / "none"))
    assert "which does not exist" in run("doctor").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--dtype", "int8"], "--dtype is 'int8'"),
        (["--device", "cpu", "--set", "data.crop_tokens=0"], "no size is known"),
        (["--device", "tpu"], "expected auto, cpu, cuda or cuda:N"),
        (["--device", "cpu", "--set", "model.pairformer.pair_heads=5"], "5 heads do not divide the width"),
    ],
)
def test_tune_refuses_bad_input(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = tune("--output", tmp_path / "t.json", *arguments)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "t.json").exists()


def test_tune_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU is visible to PyTorch")
    result = tune("--dtype", "bfloat16", "--output", tmp_path / "gpu.json")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert torch.cuda.get_device_name(0) in written["device"] and "CUDA" in written["driver"]
    biases = {word for entry in written["entries"] for word in entry["problem"].split() if word.startswith("bias=")}
    assert biases == {"bias=bfloat16", "bias=float32"}
    for entry in written["entries"]:
        assert "cuda sm80" in entry["times_ms"] and not entry["failed"], entry
    # The table is followed: each class is sent to the portable kernels.
    for entry in written["entries"]:
        entry["implementation"] = "cuda sm80"
    (tmp_path / "gpu.json").write_text(json.dumps(written))
    monkeypatch.setenv("MEGAFOLD_TUNING", str(tmp_path))
    assert "gpu.json" in run("doctor").stdout


def test_tune_without_a_gpu_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    result = tune("--output", tmp_path / "t.json")
    assert result.returncode == 2 and "tune measures GPUs, and PyTorch finds none here" in result.stderr


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, a checkpoint after the second, and a prediction."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    result = run(*train_arguments(output, train__steps="4", train__checkpoint__every="2", prediction__entry="1ubq",
                                  prediction__steps="2"))
    assert result.returncode == 0, result.stderr
    for word in ("s per step", "waiting for data", "peak memory", "skipped entries  none", "log.csv", "step-000004"):
        assert word in result.stdout, result.stdout
    return output


def test_a_run_leaves_logs_checkpoints_and_a_prediction(finished_run: Path) -> None:
    from safetensors.numpy import load_file

    log = rows(finished_run)
    assert [row["step"] for row in log] == ["1", "2", "3", "4"]
    assert all(math.isfinite(float(row["loss"])) and float(row["gradient_norm"]) > 0 for row in log)
    assert sorted(path.name for path in (finished_run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    newest = finished_run / "checkpoints/step-000004"
    weights, averages, moments = (load_file(newest / f"{name}.safetensors") for name in ("model", "ema", "optimizer"))
    assert len(averages) > 100 and weights.keys() >= averages.keys()  # weights has the buffers as well
    assert moments.keys() == {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq", "step") for name in averages}
    prediction = load_file(finished_run / "prediction/1ubq.safetensors")
    assert prediction["predicted"].shape == prediction["true"].shape
    assert len(prediction["center_atom"]) == 76
    predicted = (finished_run / "prediction/1ubq_predicted.cif").read_text().splitlines()
    true = (finished_run / "prediction/1ubq_true.cif").read_text().splitlines()
    atoms = [line.split()[:9] for line in predicted if line.startswith(("ATOM", "HETATM"))]
    assert atoms == [line.split()[:9] for line in true if line.startswith(("ATOM", "HETATM"))]
    assert len(atoms) == int(prediction["resolved"].sum())
    assert atoms[1] == ["ATOM", "2", "C", "CA", ".", "MET", "A", "1", "1"]


def test_tensorboard_reads_the_events(finished_run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(finished_run))
    events.Reload()
    scalars = events.Scalars("loss/total")
    assert [scalar.step for scalar in scalars] == [1, 2, 3, 4]
    for scalar, row in zip(scalars, rows(finished_run), strict=True):
        assert scalar.value == pytest.approx(float(row["loss"]), rel=1e-6)
    assert {"train/learning_rate", "train/gradient_norm", "time/step_seconds"} <= set(events.Tags()["scalars"])


def test_we_read_what_python_writes(finished_run: Path, tmp_path: Path) -> None:
    """A checkpoint rewritten by Python's safetensors resumes."""
    from safetensors.numpy import load_file, save_file

    output = tmp_path / "rewritten"
    shutil.copytree(finished_run, output)
    for file in (output / "checkpoints/step-000004").glob("*.safetensors"):
        save_file(load_file(file), file, metadata={"written": "by Python"})
    result = run(*train_arguments(output, resume=True, train__steps="5"))
    assert result.returncode == 0, result.stderr
    assert rows(output)[-1]["step"] == "5"


def test_resume_equals_one_run_bit_for_bit(finished_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "parts"
    first = run(*train_arguments(output, train__steps="2"))
    assert first.returncode == 0, first.stderr
    refused = run(*train_arguments(output, train__steps="4"))
    assert refused.returncode == 2 and "--resume" in refused.stderr
    second = run(*train_arguments(output, resume=True, train__steps="4"))
    assert second.returncode == 0, second.stderr
    assert "resume: train.steps was '2', now '4'" in second.stdout
    for name in ("model", "ema", "optimizer"):
        file = f"checkpoints/step-000004/{name}.safetensors"
        assert (output / file).read_bytes() == (finished_run / file).read_bytes(), name
    assert [row["loss"] for row in rows(output)] == [row["loss"] for row in rows(finished_run)]


def test_a_torn_checkpoint_is_named(finished_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "torn"
    shutil.copytree(finished_run, output)
    weights = output / "checkpoints/step-000004/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = run(*train_arguments(output, resume=True, train__steps="5"))
    assert result.returncode == 2
    assert "step-000004/model.safetensors: torn" in result.stderr


def test_ctrl_c_saves_and_exits(tmp_path: Path) -> None:
    output = tmp_path / "interrupted"
    process = subprocess.Popen([str(PROGRAM), *train_arguments(output, train__steps="100000")], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (output / "log.csv").exists() or not rows(output):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    steps = len(rows(output))
    assert f"stopped by a signal after step {steps} of 100000" in stdout and "--resume" in stdout
    assert (output / f"checkpoints/step-{steps:06d}/state.json").exists()


def test_a_bad_entry_is_skipped_and_reported(tmp_path: Path) -> None:
    demo, copy = ROOT / "data/demo", tmp_path / "data"
    shutil.copytree(demo, copy)
    (copy / "mmcif/torn.cif").write_text("data_TORN\nloop_\n_atom_site.id\n_atom_site.type_symbol\n1 C\n2\n")
    output = tmp_path / "run"
    result = run(*train_arguments(output, train__steps="4", data__root=str(copy), data__entries="[torn, 1ubq]"))
    assert result.returncode == 0, result.stderr
    assert {row["entries"] for row in rows(output)} == {"1ubq"}
    assert "torn.cif" in result.stdout.split("skipped entries")[1]


def test_a_nan_loss_stops_with_the_entry(tmp_path: Path) -> None:
    output = tmp_path / "nan"
    result = run(*train_arguments(output, train__steps="9", train__optimizer__learning_rate="1e30",
                                  train__optimizer__warmup_steps="0", data__entries="[1ubq]"))
    assert result.returncode == 1
    assert "entry 1ubq" in result.stderr and "step " in result.stderr and "not" not in result.stderr.split("entry")[0]
    assert result.stderr.count("\n") == 1


def test_the_picture_is_drawn(finished_run: Path) -> None:
    script = ROOT / "python/megafold/plot.py"
    result = subprocess.run([sys.executable, str(script), str(finished_run)], text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    picture = finished_run / "training.png"
    assert result.stdout.strip() == f"picture: {picture}"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 20_000
    missing = subprocess.run([sys.executable, str(script), str(finished_run / "none")], text=True, capture_output=True,
                             check=False)
    assert missing.returncode == 1 and "log.csv does not exist" in missing.stderr
