"""Weighted loss against resampling: what theory and the published figures say, and what is measured.

    _formulas.py   closed forms, each with its source
    _feeds.py      row numbers of the batches of each way to make them; fastbalance's are its own
    _learners.py   logistic models and small networks, many seeds and learning rates side by side
    _common.py     expectation, measurement, interval -> verdict; tables; results as JSON
    _tables.py     real tables from PyPI packages
    _course.py     a training that is watched step by step
    _memory.py     peak memory of a feed, in a process of its own
    _report.py     the kept results as a document
    e00 .. e17     one experiment a file: question, set-up, expectation, and `run(quick)`
    run.py         runs them and writes docs/weighted_loss_table.md, then calls why.py
    why.py         fills the tables of docs/why-resample.md and docs/prior-correction.md, makes the figures, checks both
    plots.py       the figures; _svg.py how they look; _kept.py reads the kept results

A verdict is computed, never typed: "agrees" where the whole interval lies in the expected range, "differs" where it
lies outside of it, "open" where it does neither.
"""
