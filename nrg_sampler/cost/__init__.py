"""What a guided step costs in time, operations and memory."""
