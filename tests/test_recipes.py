"""The paper's recipes, run from end to end as they are written: data sets of a few real rows where the recipes look for them,
and a model that is small enough and knows one answer. And the miniatures, with the tiny model."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import yaml
from families import bytes_policy

from dphrl_lite import cli, presampling, settings
from dphrl_lite.engine import checkpoint
from dphrl_lite.evaluation import EvaluateConfig
from dphrl_lite.objectives import METHODS
from dphrl_lite.presampling import PartitionConfig, PresampleConfig
from dphrl_lite.study import experiments, frontier
from dphrl_lite.tasks.problems import BOXED
from dphrl_lite.training import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
PAPER = sorted(path for name in ("paper", "release") for path in (REPOSITORY / "recipes").glob(f"{name}_*.yaml"))
# what the paper and the readme of its release try for each method
TRIED = {"rkl": (0.01, 0.01), "rkl-k3": (0.01, 0.01), "dph-f": (0.01, 0.05), "dph-js": (0.05, 0.2)}
TRIED |= {"dph-alpha": (0.01, 0.05), "sft": (0.01, 0.05), "dph-js-definition": (0.1, 0.4)}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_each_method_of_the_paper_has_its_strength_in_each_recipe(path):
    stages = (PresampleConfig, PartitionConfig, TrainConfig, EvaluateConfig)
    recipe, drawn, parts, train, evaluate = settings.load(path, *stages)
    assert (
        recipe.model in ("qlora-7b", "qlora-llama-8b", "qlora-math-7b", "lora-32b")
        and recipe.out == f"runs/{path.stem}"
    )
    assert drawn.samples >= parts.threshold and drawn.max_new_tokens == train.max_new_tokens
    for method in METHODS:
        config, _ = recipe.run(replace(train, method=method))
        low, high = TRIED.get(method, (0, 0))
        assert low <= (config.strength or 0) <= high
    sets = {"bird-dev", "spider-dev", "aime24", "amc23", "math500", "olympiadbench", "college-math"}
    assert {*evaluate.in_domain, *evaluate.out_of_domain} == sets


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_says_whom_it_follows(path):
    head = path.read_text().partition("\nmodel:")[0]
    (line,) = [line for line in head.splitlines() if line.startswith("# Follows: ")]
    assert line.split()[2].strip(";") in ("the", "nobody")


def test_the_releases_recipe_has_the_releases_settings():
    recipe, drawn, parts, train = settings.load(
        REPOSITORY / "recipes/release_sql_llama.yaml", PresampleConfig, PartitionConfig, TrainConfig
    )
    assert (recipe.partial_credit, recipe.time_limit, recipe.comparison) == (True, 15, "set")
    assert (drawn.samples, drawn.top_p, parts.threshold, parts.fresh_draw) == (8, 0.95, 6, 1)
    assert (train.problems_per_step, train.samples, train.rehearsal_per_step, train.minibatches) == (128, 16, 256, 3)
    assert (train.dual_clip, train.adam_beta1, train.adam_beta2, train.weight_decay) == (3.0, 0.9, 0.999, 0.01)
    assert train.joint_mean and train.allow_mismatch and train.temperature == 1


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_is_evaluated_on_its_own_task(path):
    recipe, config = settings.load(path, EvaluateConfig)
    sets = yaml.safe_load((REPOSITORY / config.sets).read_text())
    assert {sets[name]["task"] for name in config.in_domain} == {recipe.task}
    assert set(config.out_of_domain) <= set(sets)


def test_the_small_models_recipe_is_evaluated_on_the_problems_of_the_comparison(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    _, config = settings.load("recipes/small_multiplication.yaml", EvaluateConfig)
    shipped = experiments.read_outcomes(experiments.MULTIPLICATION).query("method == 'base'")
    asked = {s.name: [p.id for p in s.problems] for s in settings.problem_sets(config)}
    assert asked == {name: part["problem"].tolist() for name, part in shipped.groupby("family")}
    assert config.samples == shipped["n"].max()


def test_the_sql_miniature_is_that_of_the_frontier(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    recipe, train = settings.load("recipes/miniature_sql.yaml", TrainConfig)
    _, config = settings.load("recipes/miniature_sql.yaml", EvaluateConfig)
    assert recipe.load_problems() == frontier.DOMAINS["sql"].problems
    assert frontier.DOMAINS["sql"].settings.items() <= vars(train).items()
    asked = {s.name: len(s.problems) for s in settings.problem_sets(config) if s.in_domain}
    assert asked == frontier.DOMAINS["sql"].held_out["test"]


def test_the_sql_miniature_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    given = ["--config", "recipes/miniature_sql.yaml", "--out", str(tmp_path)]
    small = [*given, "--limit", "6"]
    assert cli.main(["presample", *small]) == 0
    train = ["--steps", "1", "--problems_per_step", "4", "--samples", "4", "--rehearsal_per_step", "4"]
    assert cli.main(["train", *small, *train]) == 0
    evaluate = ["evaluate", *given, "--samples", "2", "--in_domain", "count", "--out_of_domain", "cd3"]
    policy = ["--policy", str(tmp_path / "dph-js-seed0" / "policy-000001")]
    assert cli.main(evaluate) == cli.main([*evaluate, *policy]) == 0
    printed = capsys.readouterr().out
    assert "384 completions" in printed  # six problems of each form, eight answers to each
    for row in ("| in domain | count |", "| out of domain | cd3 |", "Against base"):
        assert row in printed


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def world(shared_data, tmp_path_factory):
    """A working folder with `bird`, `spider` and `recipes`, the rows of hub data sets, and a policy for each task."""
    folder, (sql, math) = tmp_path_factory.mktemp("world"), (shared_data / "sql", shared_data / "math")
    rows = [{k: row[k] for k in ("db_id", "question", "gold_sql")} for row in lines(sql / "spider_dev.jsonl")[:8]]
    spider = [{"db_id": row["db_id"], "question": row["question"], "query": row["gold_sql"]} for row in rows]
    bird = [{"db_id": r["db_id"], "question": r["question"], "SQL": r["query"], "evidence": "all rows"} for r in spider]
    broken = bird[0] | {"SQL": "SELECT nothing"}
    files = {"bird/train/train.json": [*bird, broken], "spider/dev.json": spider[:4]}
    files["bird/dev_20240627/dev.json"] = [row | {"question_id": i} for i, row in enumerate([*bird[:4], broken])]
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for name in ("bird/train/train_databases", "bird/dev_20240627/dev_databases", "spider/database"):
        (folder / name).symlink_to(sql / "databases")
    (folder / "recipes").symlink_to(REPOSITORY / "recipes")
    ours = {name: lines(math / f"{name}.jsonl")[:3] for name in ("aime24", "amc23", "math500", "dsr_sub")}
    asked = {"question": ours["math500"][0]["problem"], "answer": ours["math500"][0]["answer"]}
    hub = {"HuggingFaceH4/aime_2024": ours["aime24"], "math-ai/amc23": ours["amc23"]}
    hub |= {"HuggingFaceH4/MATH-500": ours["math500"], "di-zhang-fdu/College_Math_Test": [asked]}
    hub["math-ai/olympiadbench"] = [{"id": 1, "question": asked["question"], "final_answer": [asked["answer"]]}]
    train = [
        {"prompt": r["problem"], "solution": r["answer"]}
        for r in [*ours["dsr_sub"], *lines(math / "dsr_sub.jsonl")[3:8]]
    ]
    hub["open-r1/DAPO-Math-17k-Processed"] = train
    end = "\n-- Hint: all rows\n-- Answer with one SQLite query."
    asking = {
        "sql": [f"-- {row['question']}{end}" for row in spider],
        "math": [f"{r['prompt']}\n{BOXED}" for r in train],
    }
    knows = {"sql": spider[0]["query"], "math": f"\\boxed{{{train[0]['solution']}}}"}
    policies = {task: bytes_policy(folder / f"model-{task}", asking[task], knows[task]) for task in knows}
    return folder, hub, policies


@pytest.mark.parametrize(
    ("recipe", "method", "strength"),
    [
        ("paper_sql_llama", ["dph-alpha", "--alpha", "0.2"], 0.05),
        ("paper_sql_qwen", ["rkl-k3"], 0.01),
        ("paper_math_llama", ["dph-js"], 0.2),
        ("paper_math_qwen", ["grpo"], 0.0),
    ],
)
def test_a_recipe_runs_from_end_to_end_and_a_second_time_draws_nothing(
    world, recipe, method, strength, tmp_path, monkeypatch, capsys
):
    folder, hub, policies = world
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list(hub[name]))
    task = recipe.split("_")[1]
    given = ["--config", f"recipes/{recipe}.yaml", "--model", policies[task], "--out", str(tmp_path)]
    short = [*given, "--max-new-tokens", "8"]
    train = ["train", *short, "--steps", "1", "--problems_per_step", "2", "--samples", "2", "--rehearsal_per_step", "2"]
    train += ["--threshold", "2", "--method", *method]
    evaluate = ["evaluate", *short, "--samples", "2", "--ks", "1", "2"]
    assert cli.main(["presample", *short, "--samples", "4", "--threshold", "2"]) == 0
    assert cli.main(train) == 0
    (run,) = tmp_path.glob(f"{method[0]}*-seed0")
    assert checkpoint.read_manifest(run)["strength"] == strength
    policy = ["--policy", str(run / "policy-000001")]
    assert cli.main(evaluate) == cli.main([*evaluate, *policy]) == 0
    printed = capsys.readouterr().out
    assert ("1 of 9 answers fail" in printed) == (task == "sql")
    in_domain, out = ("bird-dev", "aime24") if task == "sql" else ("aime24", "bird-dev")
    for row in (f"| in domain | {in_domain} |", f"| out of domain | {out} |", "Pass@2", "mean@2", "Against base"):
        assert row in printed
    card = (run / "policy-000001" / "README.md").read_text()
    assert f"| method | {method[0]} |" in card and f"| out of domain | {out} |" in card
    monkeypatch.setattr(presampling, "generate", None)
    assert cli.main(train) == cli.main([*evaluate, *policy]) == 0
    assert capsys.readouterr().out.endswith(printed[-300:])
