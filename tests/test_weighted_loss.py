"""The experiments on weighted losses: known answers of the formulas, verdicts that can say no, and documents."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fastbalance as fb

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def formulas(module):
    return module("_formulas")


@pytest.fixture(scope="module")
def common(module):
    return module("_common")


@pytest.mark.parametrize(
    ("batch_rows", "weighted", "resampled"), [(16, 2.487, 0.250), (64, 1.244, 0.125), (256, 0.622, 0.0625)]
)
def test_spread_of_the_class_mass(formulas, batch_rows, weighted, resampled):
    assert formulas.mass_cv(0.01, batch_rows) == pytest.approx(weighted, abs=5e-4)
    assert formulas.mass_cv(0.5, batch_rows) == pytest.approx(resampled, abs=5e-4)
    assert formulas.permuted_mass_cv(0.5, batch_rows, batch_rows) == 0
    assert formulas.permuted_mass_cv(0.5, batch_rows, 10**9) == pytest.approx(resampled, abs=5e-4)


@pytest.mark.parametrize(
    ("f", "whole", "absent", "times", "inflation"),
    [(0.1, 0.333, 0.185, 9, 2.78), (0.01, 1.231, 0.851, 99, 25.25), (0.001, 3.947, 0.984, 999, 250.25)],
)
def test_known_answers_at_a_batch_of_16(formulas, f, whole, absent, times, inflation):
    assert formulas.weight_cv(f, 16) == pytest.approx(whole, abs=5e-4)
    assert formulas.no_minority(f, 16) == pytest.approx(absent, abs=5e-4)
    assert formulas.batch_ratio(f) == pytest.approx(times)
    assert formulas.inflation(f) == pytest.approx(inflation, abs=5e-3)


@pytest.mark.parametrize(
    ("f", "shares"),
    [(0.1, (0.426, 0.482, 0.496, 0.499)), (0.01, (0.130, 0.312, 0.448, 0.488)), (0.001, (0.016, 0.058, 0.183, 0.371))],
)
def test_divided_by_the_weights_the_minority_loses(formulas, f, shares):
    found = [formulas.normalised_mass(f, batch_rows) for batch_rows in (16, 64, 256, 1024)]
    assert found == pytest.approx(shares, abs=6e-4)


@pytest.mark.parametrize(("batch_rows", "weighted", "iid"), [(1, 0.04, 2.0), (16, 0.557, 3.765), (256, 2.88, 3.98)])
def test_largest_stable_step(formulas, batch_rows, weighted, iid):
    assert formulas.stable_step("weighted", 0.01, batch_rows) == pytest.approx(weighted, abs=6e-3)
    assert formulas.stable_step("iid", 0.01, batch_rows) == pytest.approx(iid, abs=6e-3)
    assert formulas.stable_step("fixed", 0.01, batch_rows) == 4


@pytest.mark.parametrize(("epochs", "seen"), [(1, 0.393), (2, 0.632), (5, 0.918), (10, 0.993)])
def test_coverage_with_replacement(formulas, epochs, seen):
    assert formulas.coverage(epochs, 1e-6, 10**7) == pytest.approx(seen, abs=5e-4)


def test_prior_shift_and_both_corrections_are_one(formulas):
    assert formulas.prior_shift(0.01) == pytest.approx(4.595, abs=5e-4)
    f, kept = 0.01, 0.01 / 0.99  # the share of negatives that leaves both classes equal
    sampled = np.linspace(0.01, 0.99, 25)
    logits = np.log(sampled / (1 - sampled)) - formulas.prior_shift(f)
    assert formulas.corrected(sampled, kept) == pytest.approx(1 / (1 + np.exp(-logits)))
    labels = torch.tensor([0] * 99 + [1])
    loader = fb.BalancedLoader({"x": labels.float(), "y": labels}, label="y", batch_size=10, device="cpu")
    correction = fb.log_prior_correction(loader)
    assert float(correction[1] - correction[0]) == pytest.approx(-formulas.prior_shift(f), abs=1e-5)


def test_traces_of_equal_moments_have_the_ratio_of_the_formula(formulas):
    means, variances = np.zeros((2, 3)), np.array([3.0, 3.0])
    counts = np.array([99_000_000, 1_000_000])
    found = formulas.gradient_traces(np.array([0.99, 0.01]), np.array([0.5, 0.5]), means, variances, counts, 10)
    assert found["weighted"] / found["iid"] == pytest.approx(25.25, abs=5e-3)
    assert found["stratified"] == pytest.approx(found["iid"])
    few = formulas.gradient_traces(
        np.array([0.99, 0.01]), np.array([0.5, 0.5]), means, variances, np.array([99, 6]), 10
    )
    assert few["one pass"] == pytest.approx(0.5 * 0.3 * (94 / 98 + 1 / 5))


def test_a_verdict_can_say_no(common):
    measured = common.t_interval(np.random.default_rng(0).normal(2.487, 0.01, 20))
    verdicts = [
        common.finding("CV", common.about(expected, "formula", margin=0.05), measured).verdict
        for expected in (2.487, 0.25, measured[0] + 0.05)
    ]
    assert verdicts == ["agrees", "differs", "open"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, "agrees"),
        (-0.2, -0.1, "differs"),
        (-0.1, 0.2, "open"),
        (math.nan, math.nan, "open"),
        (0.1, math.inf, "agrees"),
        (0.0, 0.0, "differs"),
    ],
)
def test_the_verdict_on_a_direction(common, low, high, expected):
    assert common.verdict(common.above(0, "direction"), low, high) == expected


def test_a_wide_interval_does_not_agree(common):
    assert common.verdict(common.about(1.0, "formula", margin=0.1), 0.5, 1.5) == "open"


def test_a_result_is_as_bad_as_its_worst_finding(common):
    rows = {v: common.finding(v, common.above(0, ""), common.exact(x)) for v, x in (("good", 1), ("bad", -1))}
    assert common.Result([rows["good"]]).verdict == "agrees"
    assert common.Result([rows["good"], rows["bad"]]).verdict == "differs"


def test_intervals_cover_as_often_as_they_say(common):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        _, low, high = common.t_interval(rng.normal(1.0, 1.0, 10))
        hits += low <= 1.0 <= high
    assert 0.91 <= hits / 300 <= 0.98
    assert common.paired([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]) == (1.0, 1.0, 1.0)


def test_feeds_are_the_samplers_that_they_name(module):
    feeds = module("_feeds")
    labels = feeds.two_class_labels(1000, 0.02)
    sampler = fb.BalancedBatchSampler(labels, 20, seed=3)
    assert feeds.balanced(labels, 20, 50, seed=3).tolist() == list(sampler)
    assert sorted(feeds.natural(labels, 20, 50, seed=0).flatten().tolist()) == list(range(1000))
    assert labels[feeds.iid(labels, 20, 500, seed=0)].float().mean() == pytest.approx(0.5, abs=0.02)
    once = feeds.undersampled_once(labels, 20, 50, seed=0)
    assert len(once.unique()) == 40


def test_networks_side_by_side_learn_as_one_does_alone(module):
    learners, feeds = module("_learners"), module("_feeds")
    x, y = feeds.gaussians(200, 0.2, 3, 1.0, seed=0, bias=False)
    batches = torch.stack([feeds.natural(y, 20, 30, seed) for seed in range(2)])
    weights = learners.class_weights(y)
    for kind, make in (
        ("sgd", lambda p: torch.optim.SGD(p, 0.1)),
        ("momentum", lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        ("adam", lambda p: torch.optim.Adam(p, 0.1)),
    ):
        networks = learners.Networks((3, 5, 1), (0.01, 0.1), 2)
        alone = [p[1, 1].clone().requires_grad_() for p in networks.parameters]
        optimiser = learners.Optimiser(kind, networks)
        learners.train(networks, x[None], y, batches, optimiser, divide="rows", weights=weights, falling=False)
        torch_optimiser = make(alone)
        for rows in batches[1]:
            z = (x[rows] @ alone[0] + alone[1]).relu() @ alone[2] + alone[3]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                z[:, 0], y[rows].float(), weight=weights[y[rows]]
            )
            torch_optimiser.zero_grad()
            loss.backward()
            torch_optimiser.step()
        for mine, theirs in zip(networks.parameters, alone, strict=True):
            torch.testing.assert_close(mine[1, 1].detach(), theirs.detach(), rtol=1e-4, atol=1e-5)


def test_calibration_error_of_known_probabilities(module):
    learners = module("_learners")
    p = np.repeat([0.2, 0.6], 150)
    y = np.concatenate([np.arange(150) < 30, np.arange(150) < 90]).astype(int)
    shuffled = np.random.default_rng(0).permutation(300)
    assert learners.ece(y[shuffled], p[shuffled], n_bins=2) == pytest.approx(0.0)
    assert learners.ece(y[shuffled], p[shuffled] + 0.1, n_bins=2) == pytest.approx(0.1)


def test_the_document_names_what_was_not_run(module, monkeypatch, tmp_path, common):
    report = module("_report")
    monkeypatch.setattr(common, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "table.md")
    wrong = common.finding("CV of the mass", common.about(1.0, "made wrong on purpose"), common.exact(2.0))
    common.save("e01_dispersion", "How uneven?", common.Result([wrong], [common.Grid("g", ("a",), [[1.5]])]), 2.0, 1.0)
    report.write({"e01_dispersion": "How uneven?\n\nSet-up.", "e02_other": "Why?"})
    text = (tmp_path / "table.md").read_text()
    assert "| e02 | Why? | not run |" in text
    assert "**differs**" in text
    assert "0 / 1 / 0" in text


def test_an_exponential_average_evens_the_steps_out(formulas):
    assert formulas.averaged_cv(0.9) == pytest.approx(0.2294, abs=5e-5)
    assert formulas.averaged_cv(0.0) == 1.0
    masses, average, found = np.random.default_rng(0).exponential(size=100_000), 0.0, []
    for mass in masses:
        average = 0.9 * average + mass
        found.append(average)
    assert np.std(found[100:]) / np.mean(found[100:]) == pytest.approx(formulas.averaged_cv(0.9), rel=0.05)


def test_steps_to_a_target_count_the_first_touch_or_are_infinite(module):
    losses = np.array([[0.5, 0.9], [0.3, 0.8], [0.4, 0.7]])
    assert module("_course").first_at(losses, (1, 10, 100), 0.35).tolist() == [10, math.inf]
    assert module("_course").first_at(losses, (1, 10, 100), 0.7).tolist() == [1, 100]


def test_a_spike_is_three_times_the_median_of_the_steps_before(module):
    course = module("_course")
    calm = np.ones(course.WINDOW + 50)
    assert course.spike_share(calm) == 0
    spiky = calm.copy()
    spiky[[-20, -10]] = 3.1
    spiky[-15] = 2.9
    assert course.spike_share(spiky) == pytest.approx(2 / 50)
    assert course.spike_share(np.geomspace(1, 100, 500)) == 0  # a loss that rises slowly has none
    assert course.spread(np.array([1.0, 3.0])) == 0.5


def test_validation_rows_choose_the_rate_and_test_rows_are_reported(module):
    never = math.inf
    course = module("_course").Course(
        n_steps=100,
        valid=np.array([[50.0, 20.0, never], [50.0, 30.0, 1.0]]),
        test=np.array([[5.0, 40.0, 3.0], [5.0, never, 3.0]]),
        spread=np.zeros((2, 3)),
        spikes=np.zeros((2, 3)),
    )
    assert course.best == 1  # the third is faster once, and once it never comes
    assert (course.steps.tolist(), course.never, course.usable.tolist()) == ([40.0, 100.0], 1, [3.0, 2.0])
    excess = module("e13_rate_and_batch").Excess(np.array([[2.0, 1.0]]), np.array([[0.0, math.inf]]))
    assert (excess.best, excess.at(1).tolist()) == (1, [1e3])


def test_ratios_are_geometric(module):
    middle, low, high = module("e17_steps_to_target").times(np.array([8.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0]))
    assert middle == pytest.approx(2.0)
    assert low < 2.0 < high


def test_a_recorder_sees_the_steps_that_are_made(module):
    learners, course = module("_learners"), module("_course")
    x, y = module("_feeds").gaussians(40, 0.5, 3, 1.0, seed=0, bias=False)
    networks = learners.Networks((3, 1), (0.1, 0.2), 1)
    before = [p.clone() for p in networks.parameters]
    seen = course.Recorder(networks, None, torch.ones(2), [1], lambda models: np.array(len(models.parameters)))
    batch = torch.arange(40)[None, None]
    optimiser = learners.Optimiser("sgd", networks)
    learners.train(networks, x[None], y, batch, optimiser, row_losses=seen.row_losses, falling=False, watch=seen)
    moved = sum(((p - q) ** 2).sum(dim=(2, 3)) for p, q in zip(networks.parameters, before, strict=True)).sqrt()
    torch.testing.assert_close(seen.lengths[0], moved.detach())
    assert float(seen.lengths[0][0, 1]) == pytest.approx(2 * float(seen.lengths[0][0, 0]), rel=1e-4)
    assert (len(seen.batches), len(seen.unseen)) == (1, 1)
    z = (x @ before[0][0, 0] + before[1][0, 0])[:, 0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, y.float())
    torch.testing.assert_close(seen.batches[0][0, 0], expected)


@pytest.fixture
def kept(module, monkeypatch, tmp_path):
    """Keeps made-up findings in place of the results."""
    monkeypatch.setattr(module("_kept"), "RESULTS", tmp_path)

    def keep(experiment, measured_by_quantity):
        rows = [
            dict(quantity=name, expected="0", measured=value, low=value - 1, high=value + 1, verdict="open")
            for name, value in measured_by_quantity.items()
        ]
        (tmp_path / f"{experiment}_x.json").write_text(json.dumps(dict(findings=rows, grids=[])))

    return keep


def test_a_figure_of_other_results_is_found(module, monkeypatch, tmp_path, kept):
    plots, svg = module("plots"), module("_svg")
    cover = {f"majority seen after {e} epochs, {arm}": e / 4 for e in (1, 2) for arm in (plots.OURS, plots.IID)}
    monkeypatch.setattr(plots, "PLOTS", {"coverage": plots.PLOTS["coverage"]})
    kept("e06", cover)
    assert plots.stale(tmp_path) == ["coverage.svg"]
    plots.write(tmp_path)
    assert plots.stale(tmp_path) == []
    text = (tmp_path / "coverage.svg").read_text()
    assert svg.svg_of("coverage", plots.PLOTS["coverage"], plots.PLOTS["coverage"].data()) == text
    kept("e06", cover | {f"majority seen after 2 epochs, {plots.OURS}": 0.9})
    assert plots.stale(tmp_path) == ["coverage.svg"]


def test_a_table_of_other_results_is_found(module, monkeypatch, tmp_path, kept):
    why = module("why")
    monkeypatch.setattr(why, "DOCUMENTS", (tmp_path / "page.md",))
    monkeypatch.setattr(module("plots"), "PLOTS", {})
    (tmp_path / "page.md").write_text("Text.\n\n<!-- e01: CV * -->\n\nMore.\n")
    kept("e01", {"CV of a": 1.0, "CV of b": 2.0, "chance": 3.0})
    with pytest.raises(SystemExit, match=r"page\.md: not what the results say"):
        why.main(check=True)
    why.main(check=False)
    why.main(check=True)
    text = (tmp_path / "page.md").read_text()
    assert "| CV of a | 0 | 1 | 0 .. 2 | open |\n| CV of b" in text
    assert "chance" not in text
    kept("e01", {"chance": 3.0})
    with pytest.raises(SystemExit, match=r"e01: no quantity 'CV \*'"):
        why.main(check=True)
    (tmp_path / "e01_x.json").unlink()
    with pytest.raises(SystemExit, match="e01: 0 kept results; run"):
        why.main(check=True)


@pytest.mark.parametrize("rule", ["", ", best rates", " at best rates"])
def test_real_tables_are_drawn_whatever_their_names(module, kept, rule):
    plots, svg = module("plots"), module("_svg")
    arms = ("natural", plots.WEIGHTED, "unheard of")
    kept("e10", {f"a, B 8 (B f = 1): {m}{rule}, fastbalance minus {arm}": 0.5 for m in ("x", "pr_auc") for arm in arms})
    data = plots.tables_data()
    assert data["metric"] == "pr_auc"
    of_rule = [["a, B 8 (B f = 1)", "pr_auc", "best rates" if rule else "", arm, 0.5, -0.5, 1.5] for arm in arms[:2]]
    assert data["rows"] == of_rule
    assert "<svg" in svg.svg_of("real_tables", plots.PLOTS["real_tables"], data)


def test_every_figure_is_on_the_page(module):
    page = BENCH.parent / "docs" / "why-resample.md"
    embedded = re.findall(r"\]\(figures/(\w+)\.svg\)", page.read_text())
    assert sorted(embedded) == sorted(module("plots").PLOTS)
    assert sorted(path.stem for path in (page.parent / "figures").glob("*")) == sorted(embedded)
