"""Other runtimes, one file each: `run(model, feeds)` returns the outputs on each image and the runtime's version."""
