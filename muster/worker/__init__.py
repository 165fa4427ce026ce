"""Code that may crash, hang or eat the memory runs in a process of its own:
`muster.worker.host.WorkerHost`."""
