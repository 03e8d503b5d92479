"""XLA flags for fast compilation, used by the tests and their subprocesses."""

import importlib.metadata

FLAGS = (
  '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
)
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # The older fusion of XLA compiles in half the time. Other versions of XLA may
  # not know this flag, and XLA exits if a flag is unknown.
  FLAGS += ' --xla_cpu_use_fusion_emitters=false'
