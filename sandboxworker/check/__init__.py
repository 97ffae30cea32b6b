"""What is unsafe in a master's configuration: one small rule for each thing, each with its cure."""
