"""What a supervisor asks: does this worker live, has it started, does it want traffic."""
