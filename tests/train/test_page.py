"""The page of a training run: its curves and its hardest items are those that were recorded."""

from __future__ import annotations

from bft_ray.page.html import to_html
from bft_ray.page.model import Figure, Table
from bft_ray.train.page import METRICS, hardest_table, training_page


def test_the_curves_are_those_of_the_run():
    history = {
        name: [(step, 0.1 * place + step / 1000) for step in range(1, 901)] for place, name in enumerate(METRICS)
    }
    page = training_page("run: test, bft", history, [])
    figures = {part.name: part for part in page.sections[0].parts if isinstance(part, Figure)}
    assert list(figures) == ["sample_weight", "confidence", "nll"]
    median = figures["confidence"].marks[1]
    assert median.label == "median" and len(median.x) <= 302 and (median.x[0], median.x[-1]) == (1, 900)
    own = dict(history["train/confidence_p50"])
    assert all(own[step] == value for step, value in zip(median.x, median.y, strict=True))
    assert page.answer.startswith("**900 steps**: the median confidence of a batch went from ")
    html = to_html(page, live=False)
    assert html.count("<svg viewBox") == 3 and "<script" not in html and len(html) < 200_000


def test_small_confidences_are_told_apart():
    """Those of a model that was never trained."""
    page = training_page("run", {"train/confidence_p50": [(1, 0.000213), (126, 0.000436)]}, [])
    assert page.answer.endswith("went from 0.000213 to 0.000436.")


def test_the_hardest_items_by_id():
    choices = [{"set": "choices", "id": f"c{n}", "probability": value} for n, value in enumerate((0.5, 0.1, 0.9))]
    texts = [
        {"set": "validation", "id": f"v{n}", "nll": nll, "num_tokens": count}
        for n, (nll, count) in enumerate(((4.0, 4), (9.0, 3)))
    ]
    odd = [{"set": "pairs", "id": "p", "score": 1.0}]
    page = training_page("t", {}, [*choices, *texts, *odd])
    tables = [part for section in page.sections for part in section.parts if isinstance(part, Table)]
    assert tables[0].texts()[1:] == [
        ["`c1`", "0.100"],
        ["`c0`", "0.500"],
        ["`c2`", "0.900"],
    ]
    assert tables[1].texts()[1:] == [["`v1`", "3.000"], ["`v0`", "1.000"]]
    assert len(tables) == 2 and hardest_table(odd, "pairs") is None
    many = [{"set": "", "id": str(n), "probability": n / 100} for n in range(40)]
    assert len(hardest_table(many, "").rows) == 15


def test_a_run_of_which_nothing_is_known_has_a_page_too():
    page = training_page("t", {}, [])
    assert page.sections == [] and "nothing of weights and confidences was recorded" in page.answer
