"""The command line, and what the doctor says of machines that we do not have."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields, is_dataclass, replace

import pytest
from safetensors.torch import load_file

from dphrl_lite import cli, commands, doctor, models
from dphrl_lite.evaluation import EvaluateConfig
from dphrl_lite.objectives import METHODS
from dphrl_lite.presampling import PresampleConfig
from dphrl_lite.settings import Recipe
from dphrl_lite.training import read_log

# the launcher's name for several processes, on a machine without a GPU too
MULTI = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
FSDP = ["--config_file", "recipes/accelerate/fsdp.yaml", "--main_process_port", "0"]
PACKAGES = tuple(doctor.Package(name, ">=1", "qlora", "1.0", True) for name in ("bitsandbytes", "peft"))
LAPTOP = doctor.Machine(PACKAGES, ram_gb=8, ram_free_gb=6, disk_free_gb=50, data=frozenset(doctor.DATA))
CARD = replace(LAPTOP, device="cuda", device_name="NVIDIA T4", gpu_gb=14.6)


@pytest.fixture
def without(monkeypatch):
    """Make distributions look uninstalled."""
    real = importlib.metadata.version

    def hide(*names):
        def version(name):
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return hide


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    assert "doctor" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"dphrl-lite {importlib.metadata.version('dphrl-lite')}"


def test_unknown_command_is_refused_with_the_known_ones(capsys):
    assert cli.main(["evaluat"]) == 2
    printed = capsys.readouterr().err
    assert "doctor" in printed and "Did you mean 'evaluate'" in printed


def test_doctor_is_content_here(capsys):
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    for word in ("torch", "jupyterlab", "python", "memory", "disk", "browser", "model tiny", "model qlora-7b"):
        assert word in report
    assert "Everything required is installed." in report


def test_doctor_names_a_missing_package_and_the_command(capsys, without):
    without("sqlglot")
    assert cli.main(["doctor"]) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "sqlglot (>=" in last
    assert 'pip install -c constraints.txt -e "."' in last


def test_doctor_passes_without_an_optional_package(capsys, without):
    without("peft")
    assert cli.main(["doctor"]) == 0
    assert '-e ".[qlora]"' in capsys.readouterr().out


def test_doctor_notices_a_version_that_is_too_old(monkeypatch, capsys):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0" if name == "transformers" else real(name))
    assert cli.main(["doctor"]) == 1
    assert "4.0, but >=5.0 is needed" in capsys.readouterr().out


def test_doctor_says_when_the_package_itself_is_not_installed(monkeypatch, capsys):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert cli.main(["doctor"]) == 1
    assert "dphrl-lite is not installed" in capsys.readouterr().out


def test_doctor_imports_no_third_party_package_at_the_top():
    code = "import sys, dphrl_lite.cli; print({'torch', 'numpy', 'psutil', 'packaging', 'tyro'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_doctor_survives_a_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    device = doctor.find_device()
    assert device["device"] == "cpu"
    assert "torch cannot be imported" in device["device_name"]


def test_laptop_runs_all_but_the_7b_model():
    tiny, small, qlora = doctor.judge(LAPTOP)
    assert tiny.works and small.works and not qlora.works
    assert "no CUDA GPU" in qlora.reasons[0]


def test_card_of_16_gb_runs_the_7b_model():
    assert all(verdict.works for verdict in doctor.judge(CARD))


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (replace(CARD, gpu_gb=8.0), "NVIDIA T4 has 8.0 GB, at least 14 GB needed"),
        (
            replace(CARD, packages=(replace(PACKAGES[0], installed=None, fits=False),)),
            "missing or too old: bitsandbytes",
        ),
        (replace(CARD, device="mps"), "torch computes on mps"),
    ],
)
def test_reasons_against_the_7b_model(machine, reason):
    verdict = doctor.judge_qlora(machine)
    assert not verdict.works
    assert reason in verdict.reasons[0]


def test_too_little_memory_for_the_small_model():
    verdict = doctor.judge_small(replace(LAPTOP, ram_free_gb=2.0))
    assert verdict.reasons == ("2.0 GB of memory free, about 4 GB needed",)


def test_missing_data_comes_with_the_command_that_remakes_it():
    verdict = doctor.judge_tiny(replace(LAPTOP, data=frozenset(doctor.DATA) - {"tiny"}))
    assert verdict.reasons == ("data/tiny is missing; python data/make_tiny.py",)
    lines = doctor.describe_verdicts([verdict])
    assert lines[1].split()[0] == "no"


SMALL = ["--limit", "6", "--samples", "4", "--threshold", "2", "--problems_per_shard", "4"]


def test_presample_and_train_share_a_folder(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert cli.main(["presample", *SMALL, "--out", folder]) == 0
    printed = capsys.readouterr().out
    assert "48 completions" in printed
    assert "D_pef (near-perfect)" in printed
    training = ["--limit", "6", "--threshold", "2", "--steps", "1", "--problems_per_step", "2", "--samples", "2"]
    assert cli.main(["train", *training, "--method", "dph-js", "--out", folder]) == 0
    assert "dph-js-seed0, step 1" in capsys.readouterr().out
    assert (tmp_path / "run" / "dph-js-seed0" / "log.jsonl").is_file()
    assert models.load(tmp_path / "run" / "dph-js-seed0" / "policy-000001").max_new_tokens == 40


def test_two_launched_processes_share_the_work_of_one(tmp_path):
    """In float32 sums over two processes round differently; in float64 see test_two_processes_train_like_one."""
    train = ["train", "--limit", "12", "--steps", "2", "--problems_per_step", "8", "--method", "dph-js", "--out"]
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launchers = {"two": [*launch, *MULTI], "fsdp": [*launch, *FSDP]}
    assert cli.main(["presample", "--limit", "12", "--out", str(tmp_path / "one")]) == 0
    for name in launchers:
        shutil.copytree(tmp_path / "one", tmp_path / name)
    assert cli.main([*train, str(tmp_path / "one")]) == 0
    for name, launcher in launchers.items():
        command = [*launcher, "-m", "dphrl_lite.cli", *train, str(tmp_path / name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        launched = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert launched.returncode == 0, launched.stderr[-3000:]
    policies = {}
    for name in ("one", *launchers):
        run = tmp_path / name / "dph-js-seed0"
        assert [record["step"] for record in read_log(run)] == [1, 2]
        policies[name] = load_file(run / "policy-000002" / "model.safetensors")
    for name in launchers:
        assert policies[name].keys() == policies["one"].keys()
        gaps = [(policies["one"][key] - policies[name][key]).abs().max().item() for key in policies["one"]]
        assert 0 < max(gaps) < 1e-5, name  # 0 would mean that each of the two did everything
    assert models.load(tmp_path / "fsdp" / "dph-js-seed0" / "policy-000002").max_new_tokens == 40


def test_train_before_presample_says_so(tmp_path, capsys):
    assert cli.main(["train", "--limit", "6", "--method", "grpo", "--out", str(tmp_path)]) == 2
    assert "no pre-sampling in" in capsys.readouterr().err


def test_shares_of_presample_make_the_whole(tmp_path, capsys):
    for i in (2, 0, 1):
        assert cli.main(["presample", *SMALL, "--out", str(tmp_path / "shares"), "--shard", f"{i}/3"]) == 0
    assert cli.main(["presample", *SMALL, "--out", str(tmp_path / "whole")]) == 0
    shares, whole = (
        {p.name: p.read_bytes() for p in (tmp_path / n / "presampling").iterdir()} for n in ("shares", "whole")
    )
    assert len(whole) == 5  # manifest, three shards, totals
    assert shares == whole


def test_the_last_share_prints_how_the_problems_fall(tmp_path, capsys):
    for i in (1, 0):
        assert "D_pef" not in capsys.readouterr().out
        assert cli.main(["presample", *SMALL, "--out", str(tmp_path), "--shard", f"{i}/2"]) == 0
    assert "D_pef (near-perfect)" in capsys.readouterr().out


def test_a_launched_process_takes_its_share_and_one_shows_the_bars(monkeypatch):
    assert commands.Share().pair() is None and commands.is_shown()
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert commands.Share().pair() == (3, 4) and not commands.is_shown()
    assert commands.Share("0/2").pair() == (0, 2)


def test_a_share_that_is_none_is_refused(tmp_path, capsys):
    assert cli.main(["presample", *SMALL, "--out", str(tmp_path), "--shard", "two"]) == 2
    assert "must look like 0/4" in capsys.readouterr().err


def test_an_impossible_threshold_is_refused_before_anything_is_drawn(tmp_path, capsys):
    assert cli.main(["presample", *SMALL, "--out", str(tmp_path / "run"), "--threshold", "99"]) == 2
    assert "threshold = 99" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_lists_the_flags_that_the_command_has_and_loads_nothing(command, capsys):
    """Read from the source, it must be what the classes say."""
    code = f"import sys, dphrl_lite.cli as cli; cli.main(['{command}', '--help']); print({{'torch', 'tyro'}} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert printed.strip().endswith("set()")
    if command == "doctor":
        return
    kind = getattr(commands, command.capitalize())
    stages = [f.type for f in fields(kind) if is_dataclass(f.type)]
    own = [f for stage in (*stages, kind) for f in fields(stage) if not is_dataclass(f.type)]
    known = list(cli.flags(command.capitalize()))
    assert sorted(flag.name for flag in known) == sorted(f.name for f in own)
    assert all(flag.help for flag in known)
    required = {f.name for f in own if f.default is MISSING and f.default_factory is MISSING}
    assert {flag.name for flag in known if flag.default is None} == required
    for flag in known:
        assert flag.usage in printed and " ".join(flag.help.split()) in " ".join(printed.split())


def test_help_lists_every_method(capsys):
    assert cli.main(["train", "--help"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    summaries = {line[0]: line[1] for line in lines if len(line) == 2}
    fixed = {name: method.summary for name, method in METHODS.items() if not name.startswith("dph-") or "def" in name}
    assert fixed.items() <= summaries.items()
    assert {"dph-f", "dph-js", "dph-alpha", "dph-NAME"} <= summaries.keys()


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: small\nlimit: 5\npresample: {samples: 4, top_p: 0.9}\n")
    given = cli.parse("presample", ["--config", str(path), "--samples", "16", "--limit=7", "--skip_broken"])
    assert (given.recipe.model, given.recipe.limit, given.recipe.task) == ("small", 7, "countdown")
    assert given.recipe.skip_broken
    assert (given.presample.samples, given.presample.top_p, given.presample.seed) == (16, 0.9, 0)
    given = cli.parse("presample", [])
    assert (given.recipe, given.presample) == (Recipe(), PresampleConfig())


def test_a_list_may_be_empty_and_what_is_on_may_be_turned_off():
    config = cli.parse("evaluate", ["--out-of-domain", "--samples", "4", "--no-greedy"]).evaluate
    assert config == EvaluateConfig(out_of_domain=[], samples=4, greedy=False)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["presample", "--smaples", "3"], "--samples INT"),
        (["presample", "--samples", "many"], "Error parsing --samples"),
        (["train"], "--method STR"),
        (["train", "--method", "dph-jz"], "Did you mean 'dph-js'"),
        (["train", "--method", "grpo", "--samples", "1"], "samples = 1 is too low"),
        (["experiment", "second-look"], "first-look"),
        (["doctor", "--samples", "3"], "--samples"),
        (["presample", "--config", "nowhere.yaml"], "no recipe at nowhere.yaml"),
    ],
)
def test_a_wrong_flag_gets_status_2_and_what_is_known(capsys, command, reason):
    assert cli.main(command) == 2
    assert reason in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("command", [["presample"], ["train", "--method", "grpo"], ["evaluate"]])
def test_a_model_that_needs_a_gpu_says_so_before_anything_else(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr(commands.torch.cuda, "is_available", lambda: False)
    assert cli.main([*command, "--model", "qlora-7b", "--problems", "missing.jsonl", "--out", str(tmp_path)]) == 2
    assert "qlora-7b (7B parameters in 4 bits" in capsys.readouterr().err


def test_a_mistake_gets_a_sentence_and_status_2(capsys):
    assert cli.main(["experiment", "first-look", "--steps", "5"]) == 2  # the shipped outcomes are of 60 steps
    assert "give it a folder with --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["first-look", "--minutes", "5", "--out", "x"], "first-look has no setting minutes; it has steps, seeds"),
        (["frontier", "--steps", "5", "--out", "x"], "frontier has no setting steps"),
        (["frontier", "--methods", "grop", "--out", "x"], "Did you mean 'grpo'"),
        (["paths", "--processes", "0", "--out", "x"], "processes = 0: expected at least one"),
        (["class"], "no runs of class are shipped: give it a folder with --out"),
    ],
)
def test_what_an_experiment_cannot_do_is_said(capsys, tmp_path, monkeypatch, command, reason):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["experiment", *command]) == 2
    assert reason in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["presample", "--vllm", "tensor_parallel_size=2"], "--vllm"),
        (["train", "--method", "grpo", "--trl", "beta=0.04"], "--trl"),
        (["export", "--rollouts", "x", "--dtype", "float16"], "--dtype"),
    ],
)
def test_a_flag_without_effect_is_refused(command, flag, capsys, tmp_path):
    more = ["--out", str(tmp_path / "run")] + (["--limit", "6"] if command[0] != "export" else [])
    assert cli.main(command + more) == 2
    assert f"{flag} has no effect without" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["first-look", "multiplication", "frontier"])
def test_experiment_prints_the_shipped_outcomes(capsys, name):
    assert cli.main(["experiment", name]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("Pass@64", "base", "grpo", "dph-js"))


def test_a_set_whose_name_the_locale_cannot_write_is_evaluated(tmp_path):
    sets = '"größe": {task: countdown, problems: [countdown:cd3], split: test, limit: 2}\n'
    (tmp_path / "sets.yaml").write_text(sets, encoding="utf-8")
    evaluate = 'evaluate: {sets: sets.yaml, in_domain: ["größe"], out_of_domain: [], samples: 2, max_new_tokens: 4}\n'
    (tmp_path / "recipe.yaml").write_text(f"model: tiny\nout: runs\n{evaluate}", encoding="utf-8")
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "dphrl_lite.cli", "evaluate", "--config", "recipe.yaml"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=os.environ | ascii_only)
    assert done.returncode == 0, done.stderr[-500:]
    base = tmp_path / "runs/evaluation/base"
    assert "größe" in (base / "report.md").read_text(encoding="utf-8")
    assert [path.name for path in base.glob("*.parquet")] == ["gr%C3%B6%C3%9Fe.parquet"]
