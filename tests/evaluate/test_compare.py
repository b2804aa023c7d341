"""Before against after, paired by item: by hand, and against the theory of the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.evaluate.alike import settings_of
from bft_ray.evaluate.compare import Change, Paired, compare, paired, render
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.stats.errors import mean_metrics, ratio_error


def records(values, name="correct"):
    return [{"id": f"q{n}", name: value} for n, value in enumerate(values)]


def test_lost_and_gained_by_hand():
    before, after = records([1, 1, 1, 0, 0, 1]), records([1, 0, 0, 1, 0, 1])
    both = paired(before, after, "mmlu/accuracy")
    assert both is not None
    assert (both.before, both.after) == (pytest.approx(4 / 6), pytest.approx(3 / 6))
    assert both.drop == pytest.approx(1 / 6) and (both.num_lost, both.num_gained, both.num_items) == (2, 1, 6)
    assert both.low < both.drop < both.high and both.p == 1.0  # McNemar: 2 against 1


def test_lower_is_better_turns_the_sign():
    rows = [{"id": "a", "nll": 8.0, "num_bytes": 4}, {"id": "b", "nll": 6.0, "num_bytes": 12}]
    worse = [row | {"nll": row["nll"] + 2} for row in rows]
    both = paired(rows, worse, "general/bits_per_byte")
    assert both is not None
    assert both.before == pytest.approx(14 / 16 / math.log(2)) and both.drop == pytest.approx(4 / 16 / math.log(2))
    assert (both.num_lost, both.num_gained) == (2, 0)


def test_the_interval_is_that_of_the_mean_difference():
    draw = np.random.default_rng(0)
    hard = draw.normal(size=400)
    noise = 0.1 * draw.normal(size=(2, 200))
    noise = np.concatenate([noise, -noise], 1)  # symmetric: no skewness to take out
    before, after = hard + noise[0], hard - 0.05 + noise[1]
    both = paired(records(before, "probability"), records(after, "probability"), "choices/probability")
    assert both is not None
    difference = before - after
    error = difference.std(ddof=1) / math.sqrt(400)
    low, high = stats.ttest_rel(before, after).confidence_interval(0.95)
    assert (both.low, both.high) == (pytest.approx(low), pytest.approx(high))
    assert both.p == pytest.approx(stats.ttest_rel(before, after).pvalue)
    assert both.detectable == pytest.approx((1.966 + 0.842) * error, rel=0.01)
    unpaired = mean_metrics("x", before)["x_detectable"]
    assert both.detectable < unpaired / 5


def test_areas_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    label = draw.integers(0, 2, 60)
    scores = [np.round(label * shift + draw.normal(size=60), 1) for shift in (2, 1)]
    sides = [
        [{"id": n, "score": float(s), "label": int(y)} for n, (s, y) in enumerate(zip(side, label, strict=True))]
        for side in scores
    ]
    for name, of in [("auroc", roc_auc_score), ("auprc", average_precision_score)]:
        both = paired(*sides, f"pairs/{name}")
        assert both is not None
        assert (both.before, both.after) == (pytest.approx(of(label, scores[0])), pytest.approx(of(label, scores[1])))
        assert both.low < both.drop < both.high


def test_every_metric_is_paired_as_its_kind_declares_it():
    """A mean over subjects and an area of other columns than `score` and `label`."""
    right = {"before": [1, 1, 0, 1], "after": [1, 0, 0, 1]}
    before, after = (
        [{"id": n, "correct": own, "subject": "abbb"[n]} for n, own in enumerate(right[side])] for side in right
    )
    both = paired(before, after, "mmlu/macro_accuracy")
    assert both is not None and (both.before, both.after) == (pytest.approx((1 + 2 / 3) / 2), pytest.approx(2 / 3))
    assert (both.num_lost, both.num_gained, both.num_items) == (1, 0, 4)
    rows = [{"id": n, "mean_nll": n / 4, "is_wrong": n % 2} for n in range(4)]
    area = paired(rows, rows, "texts/wrong_auroc")
    assert area is not None and area.before == 0.75 and area.drop == 0


def test_items_of_one_side_are_counted():
    both = paired(records([1, 0, 1]), records([1, 1]), "a/accuracy")
    assert both is not None and (both.num_items, both.num_unpaired) == (2, 1)
    said = render([Change("mmlu/accuracy", 0.0, 0.0, both)]).splitlines()
    assert said[-1] == "items that only one of the evaluations has are left out: mmlu/accuracy 1"
    with pytest.raises(BadInput, match="no item in common"):
        paired(records([1]), [{"id": "x", "correct": 1}], "a/accuracy")
    assert paired(records([1]), records([1]), "a/probability") is None  # no such column


def test_the_error_of_a_ratio_is_that_of_the_mean_for_equal_parts():
    values = np.array([1.0, 2.0, 4.0])
    assert ratio_error(values, np.ones(3)) == pytest.approx(values.std(ddof=1) / math.sqrt(3))


def test_the_table():
    def result(right, error):
        rows = [{"set": "mmlu"} | row for row in records(right)]
        return EvaluationResult(
            {"mmlu/accuracy": sum(right) / 4, "mmlu/calibration_error": error, "mmlu/num_items": 4.0}, rows
        )

    changes, _ = compare(result([1, 1, 0, 1], 0.25), result([1, 0, 0, 0], 0.5))
    assert [change.name for change in changes] == ["mmlu/accuracy", "mmlu/calibration_error"]
    header, accuracy, calibration = render(changes).splitlines()
    assert header.split()[:4] == ["metric", "before", "after", "difference"]
    cells = accuracy.split()
    assert cells[:4] == ["mmlu/accuracy", "0.750", "0.250", "-0.500"] and cells[-4:] == [
        "0.5",
        "2",
        "0",
        "4",
    ]  # p, lost, gained, items: at 4 items nothing could be shown
    low, high = float(cells[4].strip("[,")), float(cells[5].strip("]"))
    assert low < -0.5 < high and high >= 0
    assert calibration.split() == ["mmlu/calibration_error", "0.250", "0.500", "0.250"]
    assert render([]) == "nothing in common to compare"


def test_items_that_were_not_measured_are_left_out():
    before = [{"id": "a", "rouge_l": 0.5}, {"id": "b"}, {"id": "c", "rouge_l": 0.1}]
    after = [{"id": "a", "rouge_l": 0.4}, {"id": "b", "rouge_l": 0.3}, {"id": "c", "rouge_l": 0.1}]
    both = paired(before, after, "math/rouge_l")
    assert both is not None and (both.num_items, both.num_unpaired, both.num_lost) == (2, 2, 1)
    rows = [{"id": n, "score_mlp": n / 4, "label": n % 2} for n in range(4)]
    area = paired(rows, rows, "described/embedding_auroc_mlp")
    assert area is not None and area.before == 0.75 and area.drop == 0


def test_where_no_item_moved_nothing_is_said_to_be_detectable():
    records = [{"set": "x", "id": str(i), "exact_match": 0.0} for i in range(4)]
    same = EvaluationResult({"x/exact_match": 0.0}, records)
    (line,) = render(compare(same, same)[0]).splitlines()[1:]
    assert line.split() == ["x/exact_match", "0.000", "0.000", "0.000", "[-0.490,", "0.490]", "1", "0", "0", "4"]
    rows = [{"set": "x", "id": str(i), "probability": 0.5 + i / 8} for i in range(4)]
    same = EvaluationResult({"x/probability": 0.5}, rows)
    (line,) = render(compare(same, same)[0]).splitlines()[1:]
    assert line.split() == ["x/probability", "0.688", "0.688", "0.000", "0", "0", "4"]
    one = EvaluationResult({"x/probability": 0.5}, rows[:1])
    (line,) = render(compare(one, one)[0]).splitlines()[1:]
    assert line.split() == ["x/probability", "0.500", "0.500", "0.000", "0", "0", "1"]


def test_five_per_cent_lost_and_none_gained():
    """6 of 120 lost, none gained: p = 2 / 2^6; of 5, p = 2 / 2^5, and no longer beyond noise."""
    six = paired(records([1] * 120), records([0] * 6 + [1] * 114), "a/accuracy")
    five = paired(records([1] * 120), records([0] * 5 + [1] * 115), "a/accuracy")
    assert six is not None and five is not None
    assert (six.p, five.p) == (pytest.approx(1 / 32), pytest.approx(1 / 16))
    assert six.low > 0 and five.low == 0


def test_the_question_stands_first_and_the_others_are_adjusted():
    def change(name, p):
        return Change(name, 0.5, 0.4, Paired(0.5, 0.4, 0.1, 0.01, 0.19, p, 0.2, 10, 2, 80, 0))

    changes = [change("a/accuracy", 0.01), change("b/accuracy", 0.03), change("c/accuracy", 0.03)]
    lines = render(changes, "c/accuracy").splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["c/accuracy", "a/accuracy", "b/accuracy"]
    assert [line.split()[6] for line in lines[1:4]] == ["0.03", "0.02", "0.03"]  # Holm over two
    assert lines[4] == (
        "the question is c/accuracy; every other one is a lead, no finding: at 95 % one of 20 differs by chance, and "
        "their p is adjusted for all 2 (Holm)"
    )
    assert render(changes).splitlines()[4].startswith("no metric was named as the question; each is a lead, no finding")
    assert render(changes[:1], "a/accuracy").splitlines()[2:] == []


def test_items_that_share_groups_are_fewer():
    draw = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 10)
    effect = np.repeat(draw.normal(size=20), 10)
    sides = [
        [
            {"id": i, "probability": float(v), "groups": [f"p{g}"]}
            for i, (v, g) in enumerate(zip(side, patients, strict=True))
        ]
        for side in (effect + 0.1 * draw.normal(size=200), np.zeros(200))
    ]
    shared = paired(*sides, "a/probability")
    alone = paired(*([{k: v for k, v in r.items() if k != "groups"} for r in side] for side in sides), "a/probability")
    assert shared is not None and alone is not None and (shared.num_groups, alone.num_groups) == (20, 0)
    low, high = stats.ttest_1samp(effect[::10], 0).confidence_interval(0.95)
    assert shared.high - shared.low == pytest.approx(high - low, rel=0.05)  # a mean of 20 patients
    assert alone.high - alone.low < 0.4 * (shared.high - shared.low)
    change = Change("a/probability", 0.0, 0.0, shared)
    assert "items share groups, and the errors are over these: a/probability 20" in render([change])


def test_what_is_not_of_the_same_items_or_units_is_not_compared():
    text = {"set": "validation", "nll": 9.0, "num_correct": 1, "num_bytes": 20}
    choice = {"set": "mmlu", "probability": 0.5, "correct": 1}
    names = ("validation/nll", "validation/perplexity", "validation/token_accuracy", "validation/bits_per_byte")
    metrics = dict.fromkeys((*names, "mmlu/accuracy"), 0.5)

    def evaluation(tokens, answers):
        rows = [{"id": f"f:{n}", "num_tokens": num} | text for n, num in enumerate(tokens)]
        rows += [{"id": f"f:{n}", "answer": right} | choice for n, right in enumerate(answers)]
        return EvaluationResult(metrics, rows)

    before = evaluation([4, 4], [0, 1])
    changes, why = compare(before, evaluation([4, 4], [0, 1, 2]))
    assert [change.name for change in changes] == list(metrics) and why == []
    changes, [reason] = compare(before, evaluation([4, 20], [0, 1]))  # another tokenizer
    assert [change.name for change in changes] == ["validation/bits_per_byte", "mmlu/accuracy"]
    assert reason.startswith(
        "nll, perplexity, token_accuracy of validation are not compared: they are means over tokens"
    )
    changes, [reason] = compare(before, evaluation([4, 4], [1, 1]))  # another row in its place
    assert [change.name for change in changes] == list(names)
    assert "mmlu is not compared: 1 of 2 items have another text or right answer under the same id" in reason


GENES = {"kind": "pairs", "path": "pairs.jsonl"}
ANSWERS = {"kind": "generation", "name": "said", "path": "said.jsonl", "decoding": {"max_new_tokens": 8}}
JUDGED = {
    "kind": "rubric",
    "name": "judged",
    "path": "judged.jsonl",
    "judges": [{"url": "http://127.0.0.1:1", "model": "m"}],
}


@pytest.mark.parametrize(
    ("task", "change", "told"),
    [
        (GENES, {"yes": "no", "no": "yes"}, "yes was 'yes' and is 'no' (also: no)"),
        (GENES, {"question": "{gene_b}, {gene_a}?"}, "question was 'Do the genes"),
        (GENES, {"path": "copy.jsonl", "limit": 3}, ""),
        (ANSWERS, {"decoding": {"max_new_tokens": 9}}, "decoding.max_new_tokens was 8 and is 9"),
        (ANSWERS, {"answer": "final"}, "answer was 'text' and is 'final'"),
        (ANSWERS, {"decoding": {"max_new_tokens": 8, "engine": "vllm"}, "columns": {"prompt": "q"}}, ""),
        (JUDGED, {"judges": [{"url": "http://127.0.0.1:1", "model": "n"}]}, "judges.0.model was 'm' and is 'n'"),
        (JUDGED, {"judges": [{"url": "http://127.0.0.1:2", "model": "m", "timeout_s": 3}], "max_requests": 9}, ""),
    ],
)
def test_a_set_that_was_measured_otherwise_is_not_compared(make_tree, task, change, told):
    """Another question, answer, judge or length: its values are of something else, though the rows are the same."""
    one, two = (
        settings_of(make_config(make_tree(evaluation={"tasks": [tree]})).evaluation.tasks[0], 64)
        for tree in (task, task | change)
    )
    records = [{"set": "x", "id": str(n), "exact_match": n % 2} for n in range(4)]
    before, after = (EvaluationResult({"x/exact_match": 0.5}, records, {"x": own}) for own in (one, two))
    changes, why = compare(before, after)
    assert (len(changes), len(why)) == ((0, 1) if told else (1, 0))
    assert not told or (why[0].startswith("x is not compared: ") and told in why[0])
    earlier = EvaluationResult(before.metrics, records)  # of a version that did not write them
    assert len(compare(earlier, after)[0]) == 1


@pytest.mark.parametrize("num_cut", [0, 2])
def test_another_length_matters_where_prompts_were_cut(num_cut):
    records = [{"set": "x", "id": str(n), "accuracy": n % 2} for n in range(4)]
    metrics = {"x/accuracy": 0.5, "x/num_truncated": num_cut}
    before, after = (EvaluationResult(metrics, records, {"x": settings_of(None, length)}) for length in (12, 256))
    changes, why = compare(before, after)
    assert bool(changes) == (num_cut == 0)
    assert why == ([] if changes else ["x is not compared: data.max_length was 12 and is 256. " + SAME])


SAME = "Measure both models with the same settings"
