"""The recipes' models in PyTorch, a file each, named as the recipe is (`-` is `_`).

Such a file has `model(weights, settings)`: float32 arrays under the names and in the layout of the
recipe's parameters, which it takes out of `weights` one by one, and the run's settings -> a module
that makes the loss of a batch, `loss = module(**batch)`, tensors under the names of the batch's
arrays.  A file more is a workload more: benchmarks/workloads.py lists the folder."""
