"""The commands, end to end: what they print, what they write, and how they refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import retrograde as rg
from retrograde.compiler.ir.registry import lookup
from retrograde.runtime.native import toolchain
from retrograde.runtime.training import checkpoint

Run = Callable[..., Result]

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != ".lock"]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- train


def test_train_prints_saves_and_samples(train: Run, here: Path) -> None:
    out = train("--steps", 6, "--set", "validate_every=3").output
    assert re.search(r"^  steps +6 +--steps$", out, re.MULTILINE)
    assert re.search(r"^  width +8 +--set$", out, re.MULTILINE)
    assert re.search(r"^  seed +0 +default$", out, re.MULTILINE)
    assert "nodes:" in out and "largest of" in out
    planned = re.search(r"planned peak +([\d.]+) MiB\n  allocated arena +([\d.]+) MiB", out)
    assert planned is not None and planned[1] == planned[2]
    assert "validation loss" in out and "\ndef " in out
    assert "retrograde generate runs/char-gpt-1" in out
    tensors, meta = checkpoint.load(here / "runs/char-gpt-1")
    assert tensors["step"] == 6
    assert meta["run"]["settings"]["width"] == 8
    lines = metrics(here / "runs/char-gpt-1")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation_loss" in line] == [3, 6]


def test_the_same_command_again_is_another_run_with_the_same_bits(train: Run, here: Path) -> None:
    for _ in range(2):
        train("--steps", 2)
    runs = sorted(path.name for path in (here / "runs").iterdir())
    assert runs == ["char-gpt-1", "char-gpt-2"]
    first, last = (checkpoint.load(here / "runs" / name)[0] for name in runs)
    assert first.keys() == last.keys()
    assert all(np.array_equal(first[name], last[name]) for name in first)


def test_measuring_does_not_train(train: Run, here: Path) -> None:
    train("--steps", 0)
    tensors, _ = checkpoint.load(here / "runs/char-gpt-1")
    assert tensors["step"] == 0
    assert not any(np.any(x) for name, x in tensors.items() if name.startswith("optimizer"))


def test_resuming_continues_bit_for_bit(train: Run, here: Path) -> None:
    options = ("--set", "dropout=0.1", "--steps", 300)
    train(*options, "--checkpoint", "whole")
    # The schedule depends on the number of steps, so the run is cut short by its time limit.
    train(*options, "--checkpoint", "cut", "--time-limit", 0.02)
    assert checkpoint.load(here / "cut")[0]["step"] < 300
    out = train("--checkpoint", "cut", "--resume", "--time-limit", 60).output
    assert re.search(r"^  dropout +0.1 +checkpoint$", out, re.MULTILINE)
    assert re.search(r"^  steps +300 +checkpoint$", out, re.MULTILINE)
    whole, cut = (checkpoint.load(here / name)[0] for name in ("whole", "cut"))
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


def test_resume_takes_the_latest_run(train: Run, here: Path) -> None:
    train("--steps", 2)
    train("--steps", 2, "--seed", 5)
    train("--resume", "--steps", 3)
    steps = [int(checkpoint.load(here / f"runs/char-gpt-{i}")[0]["step"]) for i in (1, 2)]
    assert steps == [2, 3]
    assert re.search("no run to resume", fail_in_new_folder(train, here))


def fail_in_new_folder(train: Run, here: Path) -> str:
    (here / "empty").mkdir()
    os.chdir(here / "empty")
    return train("--resume", code=2).output


def test_an_earlier_run_is_not_overwritten_unasked(train: Run, here: Path) -> None:
    train("--steps", 2, "--checkpoint", "mine")
    before = contents(here)
    refused = train("--steps", 3, "--checkpoint", "mine", code=2)
    assert "--resume" in refused.output and "--overwrite" in refused.output
    assert contents(here) == before
    train("--steps", 3, "--checkpoint", "mine", "--overwrite")
    assert checkpoint.load(here / "mine")[0]["step"] == 3


def test_nothing_is_saved_on_request(train: Run, here: Path) -> None:
    before = contents(here)
    out = train("--steps", 2, "--no-save").output
    assert contents(here) == before
    assert "validation loss" in out and "retrograde generate" not in out
    train("--no-save", "--resume", code=2)


def test_a_foreign_folder_is_left_alone(train: Run, here: Path) -> None:
    (here / "papers").mkdir()
    (here / "papers/thesis.tex").write_text("years of work")
    before = contents(here)
    assert "holds no checkpoint" in train("--checkpoint", "papers", "--overwrite", code=2).output
    assert contents(here) == before


# --- how it refuses


def broken_state(folder: Path) -> None:
    state = next(folder.glob("state-*.safetensors"))
    state.write_bytes(state.read_bytes()[:-10])


def broken_index(folder: Path) -> None:
    index = folder / "checkpoint.json"
    index.write_text(index.read_text()[:100])


@pytest.mark.parametrize("damage", [broken_state, broken_index])
def test_a_damaged_checkpoint_is_refused(
    damage: Callable[[Path], None], train: Run, run: Run, here: Path
) -> None:
    train("--steps", 2, "--checkpoint", "mine")
    damage(here / "mine")
    before = contents(here)
    for result in (
        train("--steps", 3, "--checkpoint", "mine", "--resume", code=2),
        run("generate", "mine", code=2),
    ):
        assert "Restore it from a copy" in result.stderr
    assert contents(here) == before


def test_a_checkpoint_of_another_model_is_refused(train: Run, here: Path) -> None:
    train("--steps", 2, "--checkpoint", "mine")
    before = contents(here)
    for change in ("width=10", "tied=true"):
        result = train("--checkpoint", "mine", "--resume", "--set", change, code=2)
        assert "of another model" in result.stderr, change
    result = train("--checkpoint", "mine", "--resume", "--set", "batch=4", code=2)
    assert "made with other data" in result.stderr
    assert contents(here) == before


def test_data_that_cannot_be_read_is_named(train: Run, here: Path) -> None:
    (here / "empty.txt").write_text(" \n")
    (here / "binary.dat").write_bytes(b"abc\0def")
    (here / "latin.txt").write_bytes("größe".encode("latin-1") * 100)
    (here / "short.txt").write_text("too short")
    before = contents(here)
    for name, message in {
        "missing.txt": "there is no such file",
        "empty.txt": "empty or blank",
        "binary.dat": "binary, not text",
        "latin.txt": "not UTF-8",
        "short.txt": "too short",
        ".": "directory",
    }.items():
        result = train("--data", name, code=2)
        assert message in result.stderr, name
        assert result.stderr.startswith("retrograde: ") and "Traceback" not in result.stderr
    assert contents(here) == before


def test_settings_that_do_not_fit_are_named(train: Run, run: Run) -> None:
    for arguments, message in (
        (["--set", "widht=3"], "did you mean width"),
        (["--set", "width"], "--set name=value"),
        (["--set", "width=wide"], "whole number"),
        (["--set", "width=9"], "no multiple of 2 heads"),
        (["--set", "tied=maybe"], "true or false"),
        (["--set", "clip_norm=-1"], "clip_norm"),
        (["--set", "backend=tpu"], "unknown backend"),
        (["--set", "batch=0"], "at least 1"),
        (["--steps", "-1"], "must not be negative"),
        (["--resume", "--overwrite"], "choose one"),
    ):
        result = train(*arguments, code=2)
        assert message in result.stderr, (arguments, result.stderr)
        assert "Traceback" not in result.stderr
    assert "there is char-gpt" in run("train", "chargpt", code=2).stderr
    assert "no such file" in run("train", "missing.py", code=2).stderr


def test_errors_name_no_line_of_the_command_line_itself(text: Path) -> None:
    command = [sys.executable, "-c", "from retrograde.cli import main; main()"]
    arguments = ["train", "char-gpt", "--data", str(text), "--no-save", "--set", "clip_norm=-1"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "clip_norm" in done.stderr and "click" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_usage_errors_are_status_2(run: Run) -> None:
    run("train", code=2)
    run("nonsense", code=2)
    run("train", "char-gpt", "--steps", "many", code=2)


# --- where settings come from


def test_the_command_line_wins_then_variables_then_the_file(
    train: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "retrograde.toml").write_text(
        "[train]\nsteps = 3\nlearning_rate = 1\ncycles = 2\n\n"
        "[train.char-gpt]\nlearning-rate = 2e-4\nseed = 4\n"
    )
    monkeypatch.setenv("RETROGRADE_SEED", "5")
    monkeypatch.setenv("RETROGRADE_WEIGHT_DECAY", "0.5")
    monkeypatch.setenv("RETROGRADE_STEPS", "2")
    out = train("--no-save", "--steps", 1).output
    lines = re.finditer(r"^  (\w+) +(\S+) +(.+?) *$", out, re.MULTILINE)
    rows = {m[1]: (m[2], m[3]) for m in lines}
    assert rows["steps"] == ("1", "--steps")
    assert rows["weight_decay"] == ("0.5", "RETROGRADE_WEIGHT_DECAY")
    assert rows["seed"] == ("5", "RETROGRADE_SEED")
    assert rows["learning_rate"] == ("0.0002", "retrograde.toml [train.char-gpt]")
    assert rows["tied"] == ("False", "default")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[train.char-gpt]\nwidht = 3", "did you mean width"),
        ("[train]\nsteps = 'many'", "whole number"),
        ("[train]\nsteps = true", "whole number"),
        ("[trian]\nsteps = 3", "means nothing"),
        ("train = 3", "no table"),
        ("steps = ", "not TOML"),
    ],
)
def test_a_file_with_mistakes_is_refused(toml: str, message: str, train: Run, here: Path) -> None:
    (here / "other.toml").write_text(toml)
    result = train("--no-save", "--config", "other.toml", code=2)
    assert message in result.stderr and "other.toml" in result.stderr
    assert "cannot be read" in train("--config", "missing.toml", code=2).stderr


# --- generate


def test_generate_goes_on_from_the_prompt(train: Run, run: Run) -> None:
    train("--steps", 3)
    first = run("generate", "--prompt", "the fox", "--tokens", 20).output
    assert first.startswith("the fox") and len(first) == 7 + 20 + 1
    assert run("generate", "--prompt", "the fox", "--tokens", 20).output == first
    assert run("generate", "runs/char-gpt-1", "--prompt", "the fox", "--tokens", 20).output == first
    others = {
        run("generate", "--prompt", "the fox", "--tokens", 20, *extra).output
        for extra in (["--seed", 1], ["--temperature", 0], ["--top-k", 1], ["--temperature", 2])
    }
    assert first not in others and len(others) == 3  # the likeliest and the best of one agree
    # More text than the context holds, and a prompt longer than it.
    assert len(run("generate", "--prompt", "dog " * 10, "--tokens", 30).output) == 40 + 30 + 1


def test_generate_names_what_it_does_not_know(train: Run, run: Run) -> None:
    train("--steps", 1)
    result = run("generate", "--prompt", "über", "--tokens", 3)
    assert "'ü'" in result.stderr and result.stdout.startswith("über")


def test_generate_refuses(train: Run, run: Run, here: Path) -> None:
    assert "no run" in run("generate", code=2).stderr
    assert "there is none" in run("generate", "missing", code=2).stderr
    train("--steps", 1)
    for arguments, message in (
        (["--temperature", -1], "0 or more"),
        (["--top-k", 0], "at least 1"),
        (["--top-p", 1.5], "up to 1"),
        (["--tokens", -1], "not negative"),
    ):
        assert message in run("generate", *arguments, code=2).stderr
    checkpoint.save(here / "other", {"x": np.ones(3)}, {"run": {"recipe": "my_model"}})
    assert "'my_model'" in run("generate", "other", code=2).stderr
    tensors, meta = checkpoint.load(here / "runs/char-gpt-1")
    tensors["model.head.weight"] = tensors["model.head.weight"][:-1]
    checkpoint.save(here / "odd", tensors, {"run": meta["run"]})
    assert "head.weight is float32[7," in run("generate", "odd", code=2).stderr


# --- compile, plan, inspect, doctor, cache


SMALL = [part for pair in ("width=8", "layers=1", "heads=2") for part in ("--set", pair)]


def test_compile_reports(run: Run, text: Path, here: Path) -> None:
    out = run("compile", "char-gpt", "--data", text, *SMALL).output
    assert out.startswith("loss at B=12, T=64\n") or "at B=12, T=64\n" in out
    other = run("compile", "char-gpt", "--data", text, *SMALL, "--size", "B=5").output
    assert "B=5, T=64" in other
    assert "--size NAME=N" in run("compile", "char-gpt", *SMALL, "--size", "B", code=2).stderr
    saved = run("compile", "char-gpt", "--data", text, *SMALL, "-o", here / "step").output
    assert saved.startswith(out) and "gives the step" in saved
    assert rg.load(here / "step").report() == out


def test_plan_is_a_table_of_the_peaks(run: Run, text: Path) -> None:
    base = ["plan", "char-gpt", "--data", text, *SMALL]
    out = run(*base, "-B", "1,16", "-T", "32,64").output
    table = out.splitlines()[-3:]
    assert table[0].split() == ["T=32", "T=64"]
    rows = [re.findall(r"[\d.]+(?= MiB)", line) for line in table[1:]]
    assert [line.split()[0] for line in table[1:]] == ["B=1", "B=16"]
    numbers = np.array(rows, float)
    assert np.all(np.diff(numbers, axis=0) > 0) and np.all(np.diff(numbers, axis=1) >= 0)
    assert "B*T" in out
    columns = run(*base).output.splitlines()[-8].split()
    assert columns == ["T=32", "T=64"]  # no longer than the context
    assert "--set length=65" in run(*base, "-T", "65", code=2).stderr
    longer = run(*base, "--set", "length=96", "-T", "65,96").output
    assert longer.splitlines()[-8].split() == ["T=65", "T=96"]
    assert "no whole number" in run(*base, "-B", "x", code=2).stderr


def test_certify_tells_and_has_a_status(
    run: Run, text: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_BACKEND", "numpy")
    base = ["certify", "char-gpt", "--data", text, *SMALL, "--size", "B=2", "--size", "T=3"]
    before = contents(here)
    out = run(*base, "--directions", 1).output
    assert out.startswith("train_loss: certified") and "B=2, T=3" in out
    assert contents(here) == before
    product = lookup("dot_general")
    rule: Any = product.vjp
    monkeypatch.setitem(
        vars(product), "vjp", lambda ctx, g: [p if p is None else p * 1.5 for p in rule(ctx, g)]
    )
    out = run(*base, code=1).output
    assert "NOT certified" in out and "at fault: gradient of dot_general" in out


def test_inspect_draws(run: Run, text: Path, here: Path) -> None:
    base = ["inspect", "char-gpt"]
    tail = ["--data", text, *SMALL]
    run(*base, "step.dot", *tail)
    assert "cluster_forward.blocks.0" in (here / "step.dot").read_text()
    run(*base, "step.svg", *tail, "--stage", "order")
    assert (here / "step.svg").read_text().lstrip().startswith(("<svg", "<?xml"))
    before = contents(here)
    assert "use .svg or .dot" in run(*base, "step.png", *tail, code=2).stderr
    assert "no stage" in run(*base, "x.svg", *tail, "--stage", "nope", code=2).stderr
    assert contents(here) == before


def facts_of(run: Run) -> dict[str, str]:
    lines = (line.split("  ", 1) for line in run("doctor").output.splitlines())
    return {name: text.strip() for name, text in lines}


def test_doctor_names_this_machine(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(here / "kept"))
    facts = facts_of(run)
    assert facts["numpy"] == np.__version__
    assert facts["cache"].startswith(f"{here}/kept (")
    assert {"retrograde", "python", "cores", "memory", "blas", "dot", "cupy"} <= facts.keys()


@needs_cc
def test_doctor_names_the_compiler(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(here / "kept"))
    monkeypatch.setenv("RETROGRADE_CC", f"{shutil.which('cc')} -pipe")
    facts = facts_of(run)
    assert facts["compiler"].endswith(f"{shutil.which('cc')} -pipe")
    assert "-ffp-contract=off" in facts["flags"].split()
    assert facts["vectors"] in ("AVX-512", "AVX2", "NEON", "portable")
    assert re.match(rf"{here}/kept \(\d entr(y|ies), [\d.]+ MiB of at most 512 MiB", facts["cache"])


def test_doctor_tells_what_cannot_be_used(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(here / "kept"))
    monkeypatch.setenv("RETROGRADE_CC", "no-such-compiler")
    facts = facts_of(run)
    assert facts["compiler"].startswith("not usable: RETROGRADE_CC is 'no-such-compiler': there")
    assert facts["cache"] == f"{here}/kept (not there yet)"
    monkeypatch.setenv("PATH", str(here))
    monkeypatch.delenv("RETROGRADE_CC")
    monkeypatch.setattr(toolchain, "_packaged_zig", lambda: None)
    assert facts_of(run)["compiler"].startswith("none: only NumPy is used (apt install gcc")
    (here / "kept").mkdir(exist_ok=True)
    (here / "kept").chmod(0o777)
    assert facts_of(run)["cache"].startswith(f"refused: {here}/kept: others can write")


@needs_cc
def test_cache_shows_and_clears_what_is_kept(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(here / "kept"))
    monkeypatch.setenv("RETROGRADE_CACHE_MB", "7")

    def shown() -> list[str]:
        return re.split(r" {2,}|\n", run("cache").output.rstrip())

    assert run("cache", "path").output == f"{here}/kept\n"
    empty = ["entries", "0", "bytes", "0.0 MiB of at most 7 MiB"]
    assert shown() == ["folder", f"{here}/kept (not there yet)", *empty]
    assert run("cache", "clear").output == "removed 0 entries, 0.0 MiB\n"
    compiler = toolchain.find_toolchain()
    path = toolchain.shared_library("/*" + "x" * 2**20 + "*/ int x;", compiler, name="test")
    assert shown()[1:6] == [f"{here}/kept", "entries", "2", "bytes", "1.0 MiB of at most 7 MiB"]
    assert run("cache", "clear").output == "removed 1 entry, 0.0 MiB; 1 entry in use\n"
    toolchain.load(path)
    assert run("cache", "clear").output == "removed 1 entry, 1.0 MiB\n"
    assert shown() == ["folder", f"{here}/kept", *empty]
    (here / "kept").chmod(0o770)
    for command in (["cache"], ["cache", "clear"]):
        assert "others can write" in run(*command, code=2).stderr


def test_version(run: Run) -> None:
    assert re.fullmatch(r"retrograde, version \S+\n", run("--version").output)


def test_a_run_with_every_service_resumes_bit_for_bit(train: Run, run: Run, here: Path) -> None:
    options = (
        "--set", "precision=f16", "--set", "ema=0.9", "--set", "accumulate=3", "--set",
        "validate_every=20", "--set", "save_every=30", "--set", "events=events", "--budget", "1MiB",
    )  # fmt: skip
    train(*options, "--steps", 80, "--checkpoint", "whole")
    train(*options, "--steps", 80, "--checkpoint", "cut", "--time-limit", 0.02)
    assert checkpoint.load(here / "cut")[0]["step"] < 80
    train("--checkpoint", "cut", "--resume", "--time-limit", 60)
    for folder in ("", "best"):
        whole, cut = (checkpoint.load(here / name / folder)[0] for name in ("whole", "cut"))
        assert all(np.array_equal(whole[name], cut[name]) for name in whole)
    assert "<svg" in (here / "whole" / "curves.svg").read_text()
    assert list((here / "events").iterdir())
    averaged = [name for name in whole if name.startswith("optimizer.averaged.")]
    assert averaged and "optimizer.loss_scale.scale" in whole
    assert run("generate", "whole/best", "--tokens", 5).output


def test_a_run_ends_when_nothing_becomes_better(train: Run, here: Path) -> None:
    options = ("--set", "validate_every=1", "--set", "patience=2", "--set", "learning_rate=0")
    train(*options, "--steps", 50)
    assert checkpoint.load(here / "runs/char-gpt-1")[0]["step"] == 3
