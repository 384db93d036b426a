"""The training loop and what it needs: configs, runner, hooks, optimiser, checkpoints, processes. Knows no task."""
