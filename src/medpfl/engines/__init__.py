"""Where a run's tasks are computed: in this process, in several processes, or on a Ray cluster."""
