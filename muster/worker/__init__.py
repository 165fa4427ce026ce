"""Code that may crash, hang or eat the memory runs in its own process:
`muster.worker.host.WorkerHost`."""
