"""What training in few bits needs besides: rounding of updated weights, and a scale of the loss."""
