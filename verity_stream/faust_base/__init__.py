"""What workers and other teams' apps share of Faust: the app, its options, the fixes."""
