"""Time and memory of the network on this machine, against its plain form and against the machine's own speed."""
