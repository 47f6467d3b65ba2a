"""Recipes: every shipped one is read, and what is wrong is named with its file. Flags: test_cli."""

import json
import re
from pathlib import Path

import pytest

from dphrl_lite import settings
from dphrl_lite.evaluation import EvaluateConfig
from dphrl_lite.presampling import PartitionConfig, PresampleConfig
from dphrl_lite.settings import Data, Recipe
from dphrl_lite.training import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
# the others are on data that is not here: test_recipes
SHIPPED = [
    path for path in RECIPES if not path.stem.startswith(("paper", "release"))
]  # the others, on data that is not here: test_recipes


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return str(tmp_path / "recipe.yaml")

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_recipe_is_read_and_its_problems_are_there(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    recipe, presample, partition, _ = settings.load(path, PresampleConfig, PartitionConfig, TrainConfig)
    problems, task = recipe.load_problems(), recipe.load_task()
    assert len({p.id for p in problems}) == len(problems) > 8
    assert task.verify(problems[0], "banana").correct is False
    assert presample.samples >= partition.threshold


def test_the_miniature_is_the_setting_of_the_notebooks(monkeypatch):
    from dphrl_lite.study import experiments

    recipe, config = settings.load(REPOSITORY / "recipes/miniature.yaml", TrainConfig)
    assert recipe.load_problems() == experiments.miniature().train
    assert config == TrainConfig(method="dph-js", steps=60)


def test_values_take_the_type_of_their_field(written):
    text = "train: {method: rkl, learning_rate: 1e-5, gradient_parts: false, strength: null, alpha: 1}\n"
    _, config = settings.load(written(text), TrainConfig)
    assert config == TrainConfig("rkl", learning_rate=1e-5, gradient_parts=False, alpha=1.0)
    assert type(config.alpha) is float


@pytest.mark.parametrize(("text", "words"), [
    ("modle: tiny", ["'modle'", "recipe.yaml", "databases", "presample", "Did you mean 'model'"]),
    ("presample: {smaples: 3}", ["'smaples'", "recipe.yaml", "'presample'", "problems_per_shard", "'samples'"]),
    ("train: {samples: many}", ["samples must be of type int", "'many'", "recipe.yaml", "'train'"]),
    ("presample: {samples: 3.5}", ["samples must be of type int", "3.5"]),
    ("presample: {samples: [3, 4]}", ["samples must be of type int", "[3, 4]"]),
    ("presample: {top_p: true}", ["top_p must be of type float", "True"]),
    ("presample: {samples: null}", ["samples must be of type int", "None"]),
    ("partition: {keep_unsolved: perhaps}", ["keep_unsolved must be of type bool", "perhaps"]),
    ("limit: all", ["limit must be of type int", "'all'"]),
    ("presample: 8", ["section 'presample'", "found 8"]),
    ("- model", ["must hold 'key: value' lines", "found list"]),
    ("model: [tiny", ["is not YAML", "recipe.yaml"]),
])  # fmt: skip
def test_what_is_wrong_is_named_with_its_file_even_in_a_section_of_another_command(written, text, words):
    with pytest.raises(ValueError) as error:
        settings.load(written(text), PresampleConfig)
    for word in words:
        assert word in str(error.value)


def test_a_missing_recipe_is_named():
    with pytest.raises(FileNotFoundError, match=r"no recipe at nowhere\.yaml"):
        settings.load("nowhere.yaml")


def test_a_list_may_be_empty_and_one_value_stands_for_a_list(written):
    text = "problems: countdown:cd3\nevaluate: {out_of_domain: [], ks: 4}\n"
    recipe, config = settings.load(written(text), EvaluateConfig)
    assert (recipe.problems, config.in_domain, config.out_of_domain, config.ks) == (
        ["countdown:cd3"],
        ["cd3", "cd4"],
        [],
        [4],
    )
    with pytest.raises(ValueError, match="problems names no source"):
        Recipe(problems=[]).load_problems()


def test_several_sources_and_columns(written, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("question,gold\n1 + 1 = ?,2\n2 + 2 = ?,4\n")
    sources = f"[{tmp_path / 'a.csv'}, {tmp_path / 'b.csv'}]"
    path = written(f"task: math\nproblems: {sources}\ncolumns: {{prompt: question, answer: gold}}\nlimit: 1\n")
    (recipe,) = settings.load(path)
    assert [(p.id, p.prompt, p.answer) for p in recipe.load_problems()] == [
        ("a-0", "1 + 1 = ?", "2"),
        ("b-0", "1 + 1 = ?", "2"),
    ]
    assert recipe.load_task().name == "math"


def test_a_named_mapping(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"question": "1 + 1?", "answer": "so #### 2"}\n')
    assert Recipe(task="math", problems=[str(tmp_path / "x.jsonl")], columns=["gsm8k"]).load_problems()[0].answer == "2"


def test_columns_that_are_neither_a_name_nor_pairs_are_refused():
    with pytest.raises(ValueError, match=r"columns .*'answer'.* pairs such as prompt=question"):
        Recipe(columns=["prompt=question", "answer"], problems=["countdown:cd3"]).load_problems()


def test_a_recipe_in_another_encoding_is_named(tmp_path):
    (tmp_path / "r.yaml").write_bytes("model: tïny".encode("latin-1"))
    with pytest.raises(ValueError, match=r"r\.yaml is not YAML"):
        settings.read(tmp_path / "r.yaml")


def test_a_run_is_named_by_what_tells_it_from_others_and_takes_its_strength_from_the_recipe():
    recipe = Recipe(out="runs/x", strengths=["dph-js=0.2", "dph-alpha=.05"])
    config, folder = recipe.run(TrainConfig("dph-js"))
    assert (config.strength, folder) == (0.2, Path("runs/x/dph-js-seed0"))
    config, folder = recipe.run(TrainConfig("dph-alpha", alpha=0.8, seed=3))
    assert (config.strength, folder) == (0.05, Path("runs/x/dph-alpha-0.8-seed3"))
    config, folder = recipe.run(TrainConfig("dph-js", strength=0.0))
    assert (config.strength, folder) == (0.0, Path("runs/x/dph-js-strength0-seed0"))
    assert recipe.run(TrainConfig("grpo"))[0].strength is None


def test_a_run_says_its_strength_and_whose_choice_that_is():
    recipe = Recipe(out="runs/x", strengths=["dph-js=0.2"])
    words = lambda given: recipe.strength_words(given, recipe.run(given)[0])
    assert (
        words(TrainConfig("dph-js"))
        == "strength of dph-js: 0.2 (from `strengths` of the recipe; the method's own is 2)"
    )
    assert (
        words(TrainConfig("dph-js", strength=0.5))
        == "strength of dph-js: 0.5 (as given for this run; the method's own is 2)"
    )
    assert words(TrainConfig("dph-f")) == "strength of dph-f: 1 (the method's own is 1)"
    assert words(TrainConfig("grpo")) == "grpo has no penalty, and no strength"
    useless = TrainConfig("grpo", strength=0.5, alpha=0.2)
    assert words(useless).splitlines() == [
        "grpo has no penalty, and no strength: 0.5 is left out",
        "alpha = 0.2 means nothing to grpo: it is dph-alpha's",
    ]
    assert recipe.run(useless)[1] == Path("runs/x/grpo-seed0")
    assert "means nothing" not in words(TrainConfig("dph-alpha", alpha=0.2))


PAGE = (Path(__file__).resolve().parents[1] / "docs" / "research.md").read_text().split("## My own problems")[1]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


def test_the_page_on_ones_own_problems_works_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = json.loads(blocks("json")[0])
    rows = [row | {"question": f"What is {i} + 25?", "answer": str(i + 25)} for i in range(50)]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    exec(blocks("python")[0], {})
    recipe, sets = blocks("yaml")[:2]
    Path("mine.yaml").write_text(recipe)
    Path("mine_sets.yaml").write_text(sets)
    given = settings.read("mine.yaml")
    train = Recipe(**given[Recipe]).load_problems()
    (validation,) = settings.problem_sets(EvaluateConfig(**given[EvaluateConfig]))
    assert len(train) == 30 and len(validation.problems) == 10
    assert not {p.prompt for p in train} & {p.prompt for p in validation.problems}
    assert "\\boxed{}" in train[0].prompt and train[0].answer.isdigit()
    assert TrainConfig(**given[TrainConfig]).method == "dph-js"


@pytest.mark.parametrize(
    ("strengths", "words"), [(["dph-js"], "dph-js=0.2"), (["dph-jz=1"], "'dph-jz'"), (["rkl=x"], "'x'")]
)
def test_strengths_that_are_none_are_refused(strengths, words):
    with pytest.raises(ValueError, match=words):
        Recipe(strengths=strengths).run(TrainConfig("grpo"))


def test_broken_problems_are_left_out_on_request_and_counted(tmp_path, capsys):
    rows = [{"question": "How many?", "db_id": "school", "SQL": sql} for sql in ("SELECT 1", "", "SELECT nothing")]
    (tmp_path / "bird.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = str(REPOSITORY / "data" / "sql" / "databases")
    given = {"task": "sql", "databases": folder, "problems": [str(tmp_path / "bird.jsonl")]}
    with pytest.raises(ValueError, match=r"row 1 of .* has no answer"):
        Recipe(**given).load_problems()
    recipe = Recipe(**given, skip_broken=True, out=str(tmp_path / "out"))
    assert [p.id for p in recipe.load_problems()] == ["bird-0"]
    assert "1 of 2 answers fail" in capsys.readouterr().out
    (noted,) = (tmp_path / "out" / "skipped").iterdir()
    noted.write_text('["bird-0"]')  # found once; a query that ends in time on one day only must not change the problems
    assert [p.id for p in recipe.load_problems()] == ["bird-2"]
    assert [p.id for p in Data(**given, skip_broken=True).load_problems()] == ["bird-0"]


SETS = "sums: {task: math, problems: [FILE], columns: [aime]}\nnext: {task: countdown, problems: [countdown:cd3], limit: 2}\n"


def test_problem_sets_are_loaded_each_with_its_own_task(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "sets.yaml").write_text(SETS.replace("FILE", str(tmp_path / "x.jsonl")))
    config = EvaluateConfig(sets=str(tmp_path / "sets.yaml"), in_domain=["next"], out_of_domain=["sums"])
    sets = settings.problem_sets(config)
    assert [(s.name, s.task.name, len(s.problems), s.in_domain) for s in sets] == [
        ("next", "countdown", 2, True),
        ("sums", "math", 1, False),
    ]


@pytest.mark.parametrize(("text", "names", "words"), [
    ("a: {tusk: math}", ["a"], ["'tusk'", "sets.yaml, set 'a'", "'task'"]),
    ("a: {limit: some}", ["a"], ["limit must be of type int", "sets.yaml, set 'a'"]),
    ("a: math", ["a"], ["sets.yaml, set 'a' must hold 'key: value' lines", "'math'"]),
    ("a: {task: math}", ["b"], ["unknown problem set in", "sets.yaml", "'b'"]),
    ("a: {task: math}", ["a", "a"], ["each once"]),
    ("a: {task: math}", [], ["each once"]),
])  # fmt: skip
def test_what_is_wrong_in_a_file_of_problem_sets_is_named(tmp_path, text, names, words):
    (tmp_path / "sets.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        settings.problem_sets(EvaluateConfig(str(tmp_path / "sets.yaml"), in_domain=names, out_of_domain=[]))
    for word in words:
        assert word in str(error.value)


def test_a_missing_file_of_problem_sets_is_named():
    with pytest.raises(FileNotFoundError, match="no file of problem sets at nowhere"):
        settings.problem_sets(EvaluateConfig("nowhere.yaml"))


def test_settings_of_another_task_are_refused():
    with pytest.raises(ValueError, match="the task 'math' has no databases"):
        Recipe(task="math", databases="somewhere").load_task()
    with pytest.raises(ValueError, match="the task 'countdown' has no time_limit"):
        Recipe(time_limit=1.0).load_task()


def test_a_recipe_sets_the_limits_of_its_verifier():
    folder = str(REPOSITORY / "data" / "sql" / "databases")
    task = Recipe(task="sql", databases=folder, comparison="set", time_limit=30.0, row_limit=99).load_task()
    assert not task.partial_credit
    assert Recipe(task="sql", databases=folder, partial_credit=True).load_task().partial_credit
    assert (task.comparison, task.limits["time_limit"], task.limits["row_limit"]) == ("set", 30.0, 99)
    assert Recipe(task="math", time_limit=2.0).load_task().time_limit == 2.0


def test_settings_of_another_library_are_read_as_written():
    given = ["use_vllm=true", "vllm_gpu_memory_utilization=.5", "vllm_mode=server", "top_p=None"]
    expected = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.5, "vllm_mode": "server", "top_p": None}
    assert settings.pairs(given) == expected
    with pytest.raises(ValueError, match="a name and a value"):
        settings.pairs(["use_vllm"])
