"""Weighted loss against resampling: what theory and the published figures say, and what is measured.

    _formulas.py   closed forms, each with its source
    _feeds.py      row numbers of the batches of each way to make them; fastbalance's are its own
    _learners.py   logistic models and small networks, many seeds and learning rates side by side
    _common.py     expectation, measurement, interval -> verdict; tables; results as JSON
    _tables.py     real tables from PyPI packages
    _report.py     the kept results as a document
    e00 .. e16     one experiment a file: question, set-up, expectation, and `run(quick)`
    run.py         runs them and writes docs/weighted_loss_table.md

A verdict is computed, never typed: "agrees" where the whole interval lies in the expected range, "differs" where it
lies outside of it, "open" where it does neither.
"""
