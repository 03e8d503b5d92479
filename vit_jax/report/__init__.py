"""The report of a run: one HTML page, and the same numbers as JSON.

`run_record` reads the files of a run folder. `test_pass` computes predictions
for the test split. `numbers` has functions of arrays, `plots` draws, `page`
writes HTML, `sections` has the parts of the report, `writer_pictures`
draws for TensorBoard and trackers, and `writing` puts everything together.

Imports `augment`, `base_config`, `checkpoint`, `console`, `data`, `evaluators`,
`figures`, `files`, `inference`, `parallel` and `run`.
"""
