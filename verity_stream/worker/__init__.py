"""Who runs connectors, and watches them: Faust, the runner, the mirror, the watchdog."""
