"""Options with which XLA compiles quickly, for tests and their processes."""

import importlib.metadata

FLAGS = (
  '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
)
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # XLA's older way to fuse operations compiles in half the time. An XLA that no
  # longer has it would end at the unknown flag.
  FLAGS += ' --xla_cpu_use_fusion_emitters=false'
