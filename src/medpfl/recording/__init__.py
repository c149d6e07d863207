"""Recording of real updates: watch a training loop, make records and truth files, and check them by replay."""
