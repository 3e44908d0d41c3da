"""Dask: clients on any engine, tasks, and the threads within them."""
