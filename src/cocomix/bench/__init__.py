"""`cocomix bench`: how fast we are, as ratios to other libraries and to the reference's own arithmetic."""
