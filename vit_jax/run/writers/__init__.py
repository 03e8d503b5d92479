"""Writers of a run: functions that get its numbers and its pictures.

A writer is a function (step, numbers, pictures): {metric: number}, and
{name: uint8 [height, width, 3]}. `metric_log` calls all writers of a run:
JSON lines, picture files, `events` for TensorBoard, and the caller's.
`trackers` starts `tracker_process`, which sends everything to W&B or MLflow.
"""
