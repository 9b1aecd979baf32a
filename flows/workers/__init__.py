"""Workers and what protects their runs: GPU locks, supervisor, run lock, heartbeat, placement."""
