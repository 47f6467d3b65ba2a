"""Pass@k against exact fractions, brute force, and figures computed elsewhere on published outcomes."""

import json
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dphrl_lite import passk
from dphrl_lite.passk import Outcomes


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_against_exact_fractions(nck):
    n, c, k = nck
    assert passk.pass_at_k(n, c, k) == pytest.approx(float(1 - Fraction(comb(n - c, k), comb(n, k))), abs=1e-12)


def test_large_n_is_still_exact():
    exact = float(1 - Fraction(comb(9_990, 512), comb(10_000, 512)))
    assert passk.pass_at_k(10_000, 10, 512) == pytest.approx(exact, rel=1e-11)


def test_against_counting_all_subsets():
    outcomes = [1, 0, 0, 1, 0, 0, 0]
    hits = [any(chosen) for chosen in combinations(outcomes, 3)]
    assert passk.pass_at_k(7, 2, 3) == pytest.approx(np.mean(hits))


def test_broadcasts():
    values = passk.pass_at_k(8, np.array([[0], [4], [8]]), np.array([1, 8]))
    assert np.allclose(values, [[0, 0], [0.5, 1], [1, 1]])
    assert isinstance(passk.pass_at_k(8, 4, 1), float)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (-1, 0, 1), (4, -1, 1), (4, 1, 0), (4, 1.5, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match=r"expected|must|draw"):
        passk.pass_at_k(n, c, k)


def test_reference_figures_qwen(shared_data):
    rows = [json.loads(line) for line in (shared_data / "rollouts/qwen_math_100x8.jsonl").open()]
    table = Outcomes(np.array([row["score"] for row in rows])).pass_at_k([1, 2, 4, 8])
    assert table["mean"].round(4).tolist() == [0.9100, 0.9329, 0.9510, 0.9600]


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, [0.3348, 0.4484, 0.5499, 0.6369]), (43, [0.4704, 0.5711, 0.6548, 0.7237])]
)
def test_reference_figures_dsr(shared_data, epoch, expected):
    counts = json.loads((shared_data / "rollouts/dsr_correct_of_8_by_epoch.json").read_text())
    table = Outcomes.from_counts(8, [c[epoch] for c in counts.values()]).pass_at_k([1, 2, 4, 8])
    assert table["mean"].round(4).tolist() == expected


def test_bands_cover_the_truth_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        solve = rng.beta(0.6, 0.9, size=80)
        row = Outcomes.from_counts(16, rng.binomial(16, solve)).pass_at_k(4, confidence=0.9).iloc[0]
        inside += row.low <= 1 - ((1 - rng.beta(0.6, 0.9, size=200_000)) ** 4).mean() <= row.high
    assert 0.83 <= inside / 200 <= 0.96


@pytest.mark.parametrize("rate", [0.004, 0.996])
def test_bands_near_the_ends_cover_the_truth(rate):
    solved, inside = np.random.default_rng(0).binomial(64, rate, 400), 0
    for count in solved:
        row = Outcomes.from_counts(1, (np.arange(64) < count).astype(int)).pass_at_k(1).iloc[0]
        inside += row.low <= rate <= row.high
    assert inside / 400 > 0.9


def test_the_band_of_one_is_wilsons():
    row = Outcomes.from_counts(4, [4] * 64).pass_at_k(1).iloc[0]
    square = stats.t.ppf(0.975, 63) ** 2
    assert (row["low"], row["high"]) == (pytest.approx(64 / (64 + square)), pytest.approx(1.0))
    assert Outcomes.from_counts(4, [0] * 64).pass_at_k(1).iloc[0]["high"] == pytest.approx(1 - row["low"])


def test_many_problems_make_the_band_that_of_the_spread():
    values = np.random.default_rng(0).beta(2, 2, 5000)
    low, high = passk.share_band(values.mean(), values.var() / 5000, 5000, 4999, 0.95)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(5000), rel=0.01)


def test_bands_draw_clusters_whole():
    """Ten databases, each solved or not: a hundred questions say no more than ten."""
    solved = np.repeat([1, 0] * 5, 10)
    ids = [f"db{i // 10}:count:{i}" for i in range(100)]
    width = lambda **of: Outcomes.from_counts(1, solved, **of).pass_at_k(1).eval("high - low").item()
    assert width(problem_ids=ids) == width(clusters=np.arange(100) // 10) > 2.5 * width()
    with pytest.raises(ValueError, match="one label for each of the 100 problems; got 3"):
        Outcomes.from_counts(1, solved, clusters=[1, 2, 3])


def test_clusters_are_read_from_the_kits_names():
    names = ["mini62:count:5", "mini62:most:1", "cd3:2-4-10:2", "cd3:2-4-10:7", "sort:4-3-1", "anything", 7]
    assert passk.clusters_of(names) == ["mini62"] * 2 + ["cd3:2-4-10"] * 2 + ["sort:4-3-1", "anything", "7"]


def test_chance_forgets_what_two_draws_of_one_model_differ_in():
    rng, rates = np.random.default_rng(0), np.random.default_rng(1).beta(0.3, 1, 4000)
    draws = [rng.binomial(1, rates[:, None], (4000, 8)) for _ in range(2)]
    both = Outcomes(np.concatenate(draws, axis=1))
    forgotten = (draws[0].any(1) & ~draws[1].any(1)).sum()
    assert passk.chance_forgets(both, 8) == pytest.approx(forgotten, rel=0.1)
    with pytest.raises(ValueError, match="between 1 and n"):
        passk.chance_forgets(both, 9)


def test_bands_are_reproducible_and_ordered():
    out = Outcomes(np.random.default_rng(1).random((30, 16)) < 0.3)
    table = out.pass_at_k([1, 4, 16])
    assert table.equals(out.pass_at_k([1, 4, 16]))
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] <= table["high"]).all() and (table["low"] < table["high"]).all()


def test_ragged_problems_raise_or_are_dropped_and_counted():
    out = Outcomes.from_counts([8, 2, 4], [4, 1, 0])
    with pytest.raises(ValueError, match="1 of 3 problems have fewer than k = 4 samples"):
        out.pass_at_k([1, 4])
    table = out.pass_at_k([1, 4, 8], drop_short=True)
    assert table["dropped"].tolist() == [0, 1, 2]
    assert table["problems"].tolist() == [3, 2, 1]
    assert table["mean"].tolist() == pytest.approx([(0.5 + 0.5 + 0) / 3, (1 - 1 / 70) / 2, 1.0])
    with pytest.raises(ValueError, match="no problem has k = 9"):
        out.pass_at_k(9, drop_short=True)


def test_cover_at():
    out = Outcomes.from_counts(10, [0, 6, 7, 10])
    assert out.cover_at([0.0, 0.6, 0.7, 1.0]).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert out.cover_at(0.6) == 0.75
    with pytest.raises(ValueError, match="between 0 and 1"):
        out.cover_at(1.2)


def test_compare_gives_expected_counts():
    base, trained = Outcomes.from_counts(4, [4, 4, 0, 0, 2]), Outcomes.from_counts(4, [4, 0, 4, 0, 2])
    assert passk.compare(base, trained, k=1).to_dict() == {"keep": 1.25, "forget": 1.25, "gain": 1.25, "never": 1.25}


def test_died_counts_what_was_found_often_and_is_found_no_more():
    counts = pd.DataFrame({"base": [30, 8, 7, 0], "grpo": [90, 0, 0, 5], "dph-js": [1, 1, 0, 0]})
    table = passk.died(counts)
    assert table.loc["grpo"].to_dict() == {"died": 1, "of": 2}
    assert table.loc["dph-js"].to_dict() == {"died": 0, "of": 2}
    assert passk.died(counts, often=7).loc["dph-js", "died"] == 1


def test_compare_matches_problems_by_id():
    base = Outcomes.from_counts(4, [4, 0], problem_ids=["a", "b"])
    trained = Outcomes.from_counts(4, [0, 4], problem_ids=["b", "a"])
    assert passk.compare(base, trained, k=1).keep == 1
    with pytest.raises(ValueError, match="same problems"):
        passk.compare(base, Outcomes.from_counts(4, [0, 4], problem_ids=["b", "c"]), k=1)
    with pytest.raises(ValueError, match="same set"):
        passk.compare(base, Outcomes.from_counts(4, [1]), k=1)


def test_crossing_is_the_first_k_below_base():
    base, trained = Outcomes.from_counts(8, [1, 1, 8]), Outcomes.from_counts(8, [4, 0, 8])
    curves = [out.pass_at_k(range(1, 9))["mean"].to_numpy() for out in (base, trained)]
    first = int(np.argmax(curves[1] < curves[0])) + 1
    assert 1 < first < 8
    assert passk.crossing(base, trained) == first
    assert passk.crossing(base, trained, ks=[8, first - 1]) == 8
    assert passk.crossing(base, trained, ks=range(1, first)) is None
    assert passk.crossing(trained, base) == 1


def test_a_model_does_not_cross_itself_whatever_the_order():
    base = Outcomes.from_counts(7, [0, 1, 2, 3, 5, 6], problem_ids="abcdef")
    assert passk.crossing(base, base) is None
    assert passk.crossing(base, Outcomes.from_counts(7, base.c[::-1], problem_ids="fedcba")) is None


@pytest.mark.parametrize(("trained", "ks", "said"), [
    (Outcomes.from_counts(4, [1]), None, "same set"),
    (Outcomes.from_counts(4, [1, 1], problem_ids="ac"), None, "same problems"),
    (Outcomes.from_counts(4, [1, 1]), [], "ks is empty"),
    (Outcomes.from_counts(4, [1, 1]), [1, 8], "draw more"),
    (Outcomes.from_counts(4, [1, 1]), [1.5], "whole numbers"),
])  # fmt: skip
def test_crossing_refuses_what_cannot_be_compared(trained, ks, said):
    with pytest.raises(ValueError, match=said):
        passk.crossing(Outcomes.from_counts(4, [2, 2], problem_ids="ab"), trained, ks)


@pytest.mark.parametrize("make", [
    lambda: Outcomes([0.3, 0.4]),
    lambda: Outcomes(np.zeros((0, 3), bool)),
    lambda: Outcomes.from_counts([2, 2], [3, 0]),
    lambda: Outcomes.from_counts(0, [0]),
    lambda: Outcomes(np.zeros((2, 2), bool), problem_ids=["a", "a"]),
    lambda: Outcomes([[True], [True, False]]),
    lambda: Outcomes.from_counts([2, 2], [1, 1, 1]),
    lambda: Outcomes.from_counts(2, [1]).pass_at_k(1, confidence=95),
    lambda: Outcomes.from_counts(np.inf, [1]),
])  # fmt: skip
def test_bad_outcomes_are_refused(make):
    with pytest.raises(ValueError, match=r"must|need|more correct"):
        make()


# ---- estimators side by side --------------------------------------------------------------------------------------------


def test_with_replacement_is_the_plug_in():
    assert passk.with_replacement(4, 1, 2) == pytest.approx(7 / 16)
    assert passk.with_replacement(8, [0, 4, 8], 3).tolist() == pytest.approx([0, 7 / 8, 1])
    with pytest.raises(ValueError, match="draw more"):
        passk.with_replacement(4, 1, 5)


def test_errors_of_the_estimators_are_those_of_drawing():
    rates, n, ks = np.array([0.05, 0.4]), 6, [1, 3, 6]
    found = passk.estimator_errors(rates, n, ks).set_index(["k", "estimator"])
    drawn = np.random.default_rng(0).random((40_000, len(rates), n)) < rates[:, None]
    c = drawn.sum(-1)
    for k in ks:
        estimates = {
            "unbiased": passk.pass_at_k(n, c, k),
            "with replacement": passk.with_replacement(n, c, k),
            "first k": drawn[..., :k].any(-1),
        }
        truth = (1 - (1 - rates) ** k).mean()
        for name, values in estimates.items():
            row, means = found.loc[k, name], values.mean(1)
            assert row["truth"] == pytest.approx(truth)
            assert row["bias"] == pytest.approx(means.mean() - truth, abs=0.006)
            assert row["std"] == pytest.approx(means.std(), rel=0.03)


def test_only_sampling_with_replacement_is_biased():
    found = passk.estimator_errors([0.0, 0.02, 0.3, 1.0], 64, [1, 2, 64]).set_index(["estimator", "k"])
    assert np.allclose(found.loc["unbiased", "bias"], 0, atol=1e-12)
    assert np.allclose(found.loc["with replacement", "bias"].loc[1], 0, atol=1e-12)
    assert (found.loc["with replacement", "bias"].loc[2:] < -1e-5).all()
    assert (found.loc["unbiased", "std"] <= found.loc["first k", "std"] + 1e-12).all()
    large = passk.estimator_errors([0.001, 1.0], 5000, [5000]).set_index("estimator")
    assert large.loc["unbiased", "bias"] == pytest.approx(0, abs=1e-9)


def test_estimator_errors_refuse_what_is_no_chance():
    with pytest.raises(ValueError, match="between 0 and 1"):
        passk.estimator_errors([0.5, 1.2], 8, [1])
    with pytest.raises(ValueError, match="draw more"):
        passk.estimator_errors([0.5], 8, [9])


# ---- anyone's counts ----------------------------------------------------------------------------------------------------

TABLE = pd.DataFrame(
    {"model": ["a", "a", "b", "b"], "problem": ["x", "y", "y", "x"], "n": [8, 4, 8, 8], "c": [3, 0, 8, 1]}
)


def as_bytes(table, kind):
    if kind == "parquet":
        return table.to_parquet(index=False)
    if kind.startswith("json"):
        return table.to_json(orient="records", lines=kind == "jsonl").encode()
    return table.to_csv(index=False, sep={"csv": ",", "excel": ";", "tsv": "\t"}[kind]).encode()


@pytest.mark.parametrize("kind", ["csv", "excel", "tsv", "jsonl", "json", "parquet"])
def test_counts_are_read_whatever_the_format(kind, tmp_path):
    path = tmp_path / "table.dat"
    path.write_bytes(as_bytes(TABLE, kind))
    for source in (path, str(path), path.read_bytes()):
        found = passk.read_counts(source)
        assert found[list(TABLE)].to_dict("list") == TABLE.to_dict("list")
    out = passk.by_model(found)
    assert list(out) == ["a", "b"]
    assert (
        passk.compare(out["a"], out["b"], 1).to_dict()
        == passk.compare(Outcomes.from_counts([8, 4], [3, 0]), Outcomes.from_counts([8, 8], [1, 8]), 1).to_dict()
    )


def test_two_columns_suffice_and_a_byte_order_mark_does_no_harm():
    found = passk.read_counts(b"\xef\xbb\xbfn,c\n8,3\n8,0\n")
    assert found["problem"].tolist() == ["0", "1"]
    assert passk.by_model(found)["model"].c.tolist() == [3, 0]


def test_runs_of_a_method_are_told_apart_and_families_kept(tmp_path):
    run = {"method": ["base", "grpo", "grpo", "dph-f", "dph-f"], "seed": [0, 0, 1, 0, 0]}
    run |= {"strength": [None, None, None, 0.1, 1.0], "problem": "p", "n": 4, "c": 1, "distinct": 1}
    for family in ("cd3", "cd4"):
        pd.DataFrame(run).assign(family=family).to_parquet(tmp_path / f"{family}.parquet")
    found = passk.read_counts(tmp_path)
    models = ["base", "grpo, seed 0", "grpo, seed 1", "dph-f at 0.1", "dph-f at 1.0"]
    assert list(passk.by_model(found)) == models
    assert len(passk.by_model(found)["base"]) == 2
    assert passk.by_model(found, "cd4")["base"].problem_ids == ("cd4/p",)
    assert found["distinct"].tolist() == [1] * 10


@pytest.mark.parametrize(("text", "said"), [
    (b"", "neither CSV nor JSON lines nor Parquet"),
    (b"PAR1 cut short", "neither CSV nor JSON lines nor Parquet"),
    (b'{"n": 8, "c": ', "neither CSV nor JSON lines nor Parquet"),
    (b"\xff\xfe\x00n,c", "neither CSV nor JSON lines nor Parquet"),
    (b"n,right\n8,3\n", r"no column c among \['n', 'right'\]: expected a table"),
    (b"drawn,right\n8,3\n", "no column c and no column n"),
    (b"n,c\n", "no rows"),
    (b"n,c\n8,3\n8,9\n", r"1 of 2 rows are wrong, the first is row 2 \(.*c 9\): more right .* expected c <= n"),
    (b"n,c\n8,2.5\n", "c must be a whole number >= 0"),
    (b"n,c\n8,many\n", "c must be a whole number >= 0"),
    (b"n,c\n8,\n", "c must be a whole number >= 0"),
    (b"n,c\n-8,-9\n", "n must be a whole number >= 0"),
    (b"n,c\n0,0\n", "at least one answer"),
    (b"problem,n,c\nx,8,1\nx,8,2\n", "its problem stands there before"),
])  # fmt: skip
def test_tables_that_are_no_counts_are_refused_in_words(text, said):
    with pytest.raises(ValueError, match=said):
        passk.read_counts(text)


def test_no_table_at_a_path(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(FileNotFoundError, match="no table at"):
            passk.read_counts(path)


def test_a_model_with_guesses_against_counting_every_draw():
    """Of 5 answers 2 are right, guesses are right once in 4, every third answer is a guess; two are submitted."""
    n, c, guess, share = 5, 2, 0.25, 1 / 3
    both_own, one_own, none_own = (1 - share) ** 2, 2 * share * (1 - share), share**2
    missed = both_own * comb(3, 2) / comb(5, 2) + one_own * (3 / 5) * (1 - guess) + none_own * (1 - guess) ** 2
    assert passk.with_guesses([n], [c], 2, guess, share)[0] == pytest.approx(1 - missed)


def test_a_model_with_guesses_is_unbiased_and_its_ends_are_known():
    p, guess, share, n, k = 0.3, 0.1, 0.4, 8, 4
    c = np.arange(n + 1)
    chance = np.array([comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    expected = chance @ passk.with_guesses(n, c, k, guess, share)
    assert expected == pytest.approx(1 - (1 - (1 - share) * p - share * guess) ** k)
    assert passk.with_guesses(n, c, k, guess, 0) == pytest.approx(passk.pass_at_k(n, c, k))
    assert passk.with_guesses(n, c, k, guess, 1) == pytest.approx(np.full(n + 1, 1 - (1 - guess) ** k))


@pytest.mark.parametrize("wrong", [{"guess": 1.5}, {"guess": -0.1}, {"share": 2}, {"share": -1}])
def test_a_model_with_guesses_refuses_what_is_no_chance(wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        passk.with_guesses([4], [2], 2, **({"guess": 0.5, "share": 0.5} | wrong))


# ---- answers of other frameworks -------------------------------------------------------------------------------------


def lines(rows) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_samples_of_lm_eval_are_counted_filter_by_filter(tmp_path):
    row = lambda doc, filter, right: {
        "doc_id": doc, "doc": {"q": "?"}, "target": "7", "arguments": [["?"]], "resps": [["7"]],
        "filtered_resps": ["7"], "filter": filter, "metrics": ["exact_match"], "doc_hash": f"h{doc}", "exact_match": right,
    }  # fmt: skip
    for run, right in enumerate((1.0, 0.0)):
        rows = [row(doc, filter, right * (doc == 0)) for doc in (0, 1) for filter in ("strict", "flexible")]
        (tmp_path / f"samples_gsm8k_{run}.jsonl").write_bytes(lines(rows))
    found = passk.read_counts(tmp_path)
    sums = found.groupby("model")[["n", "c"]].sum()
    assert sums.to_numpy().tolist() == [[4, 1], [4, 1]] and set(sums.index) == {"strict", "flexible"}
    assert passk.by_model(found)["strict"].c.tolist() == [1, 0]


def test_dumps_of_verl_are_counted_prompt_by_prompt():
    rows = [
        {"input": q, "output": "x", "gts": "7", "score": s, "step": 3, "acc": s > 0}
        for q, s in (("a", 1), ("a", -1), ("b", 1))
    ]
    found = passk.read_counts(lines(rows))
    assert found[["problem", "n", "c"]].to_numpy().tolist() == [["a", 2, 1], ["b", 1, 1]]
    with pytest.raises(ValueError, match="score must be 1 for a right answer"):
        passk.read_counts(lines(rows), correct="score")


def test_details_of_lighteval_are_counted(tmp_path):
    doc = [{"id": str(i), "query": "?"} for i in (0, 0, 1)]
    metric = [{"extractive_match": float(right), "other": 0.5} for right in (1, 0, 1)]
    pd.DataFrame({"doc": doc, "metric": metric}).to_parquet(tmp_path / "details.parquet")
    found = passk.read_counts(tmp_path)
    assert found[["problem", "n", "c"]].to_numpy().tolist() == [["0", 2, 1], ["1", 1, 1]]


def test_a_column_of_clusters_is_kept():
    found = passk.read_counts(b"problem,cluster,n,c\na,x,4,1\nb,x,4,2\nc,y,4,3\n")
    assert passk.by_model(found)["model"].pass_at_k(1)["clusters"].item() == 2
