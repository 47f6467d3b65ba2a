"""Widgets of verifiable tasks: a query, its rows, its verdict."""

import ipywidgets

from dphrl_lite import figures
from dphrl_lite.tasks import cases, get, suite
from dphrl_lite.widgets.controls import dropdown, offers, wide
from dphrl_lite.widgets.live import Live


def sql_lab(problem: str = "school-08") -> Live:
    """Ask a shipped question, write or choose a query, and compare its rows with the gold query's, and see the verdict."""
    questions = {question.id: question for question in cases.questions()}
    judges = [get("sql", databases=folder) for folder in cases.DATABASES]
    labels = [(f"{name}: {question.meta['question']}", name) for name, question in questions.items()]
    instances = [("one database", 1), ("two databases: same tables, other rows", 2)]
    controls = {
        "problem": dropdown("question", labels, problem, pixels=860),
        "suggestion": dropdown("try", [], pixels=860),
        "query": ipywidgets.Textarea(description="query", continuous_update=False, rows=3, **wide(860)),
        "instances": dropdown("judge on", instances, 1, pixels=860),
    }

    def suggest():
        queries = cases.suggestions(questions[controls["problem"].value])
        controls["suggestion"].options = [(f"{label}: {sql[:90]}", sql) for label, sql in queries.items()]
        controls["suggestion"].index = 0
        write()

    def write(_change=None):
        controls["query"].value = controls["suggestion"].value or ""

    offers(controls, ["problem"], suggest)
    controls["suggestion"].observe(write, names="value")

    def build(problem, suggestion, query, instances):
        question, folders = questions[problem], cases.DATABASES[:instances]
        verdict = suite.Suite(judges[:instances]).verify(question, query)
        results = cases.results(question, verdict.answer or query, folders)
        return figures.query_results(results, figures.verdict(verdict.reason, verdict.correct))

    return Live(controls, build)
