"""Trackers: what they are told, by whom, and what is refused. None is installed here, so that a class of our own stands in."""

import pytest
from accelerate import tracking as accelerate_tracking

from dphrl_lite import training
from dphrl_lite.engine import tracking

QUICK = {"steps": 2, "problems_per_step": 4, "samples": 3, "rehearsal_per_step": 4, "progress": False}


@pytest.fixture
def told(monkeypatch):
    """What a tracker named `notes` is told; accelerate knows it as it knows its own."""
    told = []

    class Notes(accelerate_tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "notes", True, None

        def __init__(self, project, folder):
            super().__init__()
            told.append(("made", project, folder))

        def start(self):
            told.append(("start",))

        def store_init_configuration(self, values):
            told.append(("settings", values))

        def log(self, values, step=None):
            told.append(("log", step, values))

        def finish(self):
            told.append(("finish",))

    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "notes", Notes)
    return told


@pytest.fixture
def train(tiny, countdown, few_problems, parts):
    return lambda method, **settings: training.train(tiny, countdown, few_problems, parts, method, **QUICK | settings)


def test_a_tracker_gets_the_settings_and_each_steps_metrics_and_goes_on_at_the_right_step(train, told, tmp_path):
    run = train("grpo", out=tmp_path, trackers=["notes"])
    assert [event[0] for event in told] == ["made", "start", "settings", "log", "log", "finish"]
    assert told[0][1:] == (tracking.PROJECT, tmp_path)
    assert told[2][1]["method"] == "grpo"
    assert told[2][1]["learning_rate"] == 1e-4
    assert all(isinstance(x, (bool, int, float, str)) for x in told[2][1].values())  # what every tracker takes
    assert [event[1] for event in told[3:5]] == [1, 2]
    there = {name: x for name, x in run.log.iloc[0].dropna().items() if x is not None}
    assert told[3][2] == there
    assert {"reward", "entropy", "seconds"} < there.keys()
    assert "penalty" not in there  # grpo has none
    told.clear()
    train("grpo", out=tmp_path, trackers=["notes"])  # done already: there is nothing to tell
    assert told == []
    train("grpo", out=tmp_path, trackers=["notes"], steps=3)
    assert [event[1] for event in told if event[0] == "log"] == [3]


def test_trackers_do_not_make_another_run(train, told, tmp_path):
    train("grpo", out=tmp_path)
    train("grpo", out=tmp_path, trackers=["notes"], steps=3)
    assert len(training.read_log(tmp_path)) == 3


def test_a_tracker_is_closed_where_a_run_breaks_off(train, told, tmp_path):
    with pytest.raises(FloatingPointError):
        train("grpo", out=tmp_path, trackers=["notes"], learning_rate=float("inf"))
    assert told[-1] == ("finish",)


def test_a_tracker_that_writes_to_a_folder_needs_one(train, told):
    with pytest.raises(ValueError, match=r"notes write to a folder, and this run has none: pass out="):
        train("grpo", trackers=["notes"])
    assert told == []


def test_unknown_and_missing_trackers_are_named_before_anything_starts(told, monkeypatch):
    with pytest.raises(ValueError, match=r"'tensorbored' is no tracker that accelerate knows; .*tensorboard.*wandb"):
        training.TrainConfig("grpo", trackers=["tensorbored"])
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", [])
    with pytest.raises(ValueError, match=r"'wandb' is not installed \(pip install wandb\); .*installed here: none"):
        training.TrainConfig("grpo", trackers=["notes", "wandb"])
    assert training.TrainConfig("grpo", trackers=["notes"]).trackers == ["notes"]
